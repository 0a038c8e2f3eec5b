"""Removing the classifier of a network whose class cannot be built without it."""

from __future__ import annotations

from torch import nn

from kdcompress.errors import NetworkError


def without_classifier(network: nn.Module, model: str) -> nn.Module:
    """Replaces the network's last linear layer by `nn.Identity`: the output is that layer's input.

    A hidden layer in front of it (MobileNetV3, VGG) stays, and so does a dropout, idle in evaluation: what a
    backbone gives is what `pooled` is of the same network with its classifier.

    Args:
        network: Changed in place.
        model: `FAMILY/NAME`, for the message.

    Raises:
        NetworkError: Its last layer with weights is no linear one.
    """
    layers = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    path, last = layers[-1] if layers else ("", network)
    if not path or type(last) is not nn.Linear:
        raise NetworkError(
            f"{model}: cannot be built without its classifier, since its last layer is a "
            f"{type(last).__name__} and no linear one; choose another network"
        )
    network.set_submodule(path, nn.Identity())
    return network
