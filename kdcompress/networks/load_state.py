"""Loading a state dictionary into a network of its class."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies tensors into a network, strictly; missing version notes are those of the network itself.

    PyTorch stores the version of each module beside the tensors, in an attribute that neither a safetensors
    file nor a copied dictionary has. Some classes (torchvision's MNASNet) refuse tensors without it.

    Args:
        network: Changed in place.
        state: A tensor for every key of its state dictionary.

    Raises:
        RuntimeError: A key is missing, left over or of another shape.
    """
    noted: Any = OrderedDict(state)
    noted._metadata = getattr(state, "_metadata", None) or getattr(network.state_dict(), "_metadata", None)
    network.load_state_dict(noted, strict=True)
