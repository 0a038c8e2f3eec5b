"""Checks in a pass in training mode, before anything is written, that a network can be trained."""

from __future__ import annotations

import torch

from kdcompress.errors import NetworkError
from kdcompress.networks.activations import LOGITS, Want
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.undisturbed import frozen_state


def check_trainable(tapped: Tapped, want: Want = LOGITS) -> None:
    """Runs one pass of two images in training mode; modes, buffers and generators are left alone.

    Args:
        tapped: The network.
        want: Outputs that the method reads; pooled features are left out where no linear layer reads them,
            since the method that needs them says so itself.

    Raises:
        NetworkError: It has no parameters, no gradient reaches its output, its output is no tensor in
            training, or it calls a module that is read in another way than in evaluation.
    """
    network = tapped.network
    parameters = list(network.parameters())
    if not parameters:
        raise NetworkError(f"{tapped.model}: has no parameters, so there is nothing to train")
    if tapped.task.has_classes and tapped.taps.classifier is None:
        want = want - {"pooled"}
    want = want | {tapped.task.activation}
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with frozen_state([network], parameters=False), torch.enable_grad():
            network.train()
            output = tapped.run_sample(want).output(tapped.task)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if output is None or not output.requires_grad:
        raise NetworkError(
            f"{tapped.model}: no gradient reaches its parameters from its output, so it cannot be trained; "
            "leave out detach(), numpy() and torch.no_grad() in its forward()"
        )
