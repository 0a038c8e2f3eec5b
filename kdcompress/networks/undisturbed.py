"""Contexts that restore networks, random generators and optimisers when they end."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Runs its block in eval mode under `no_grad`, then restores modes, buffers and random generators."""
    with frozen_state([network], parameters=False), torch.no_grad():
        network.eval()
        yield


@contextmanager
def frozen_state(
    modules: Iterable[nn.Module],
    optimisers: Iterable[torch.optim.Optimizer] = (),
    *,
    parameters: bool = True,
) -> Iterator[None]:
    """Restores modules, optimisers and torch's random generators when its block ends, also by an exception.

    For a step that must leave no trace, such as the inner step of a meta-gradient. No value is read from the
    device. A graph from before the block can still be differentiated if the block changed no parameter in
    place (batch norm's statistics may move).

    Args:
        modules: Their train/eval modes, buffers, parameters and gradients are restored.
        optimisers: Their states (momentum) and settings (learning rate) are restored.
        parameters: False: the block changes no parameter and no gradient, so no copies of them are made.
    """
    every = list({id(m): m for module in modules for m in module.modules()}.values())
    modes = [(module, module.training) for module in every]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in every
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    own = {id(p): p for module in every for p in module.parameters(recurse=False)}.values()
    values = [(p, p.detach().clone()) for p in own] if parameters else []
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p, _ in values]
    states = [(optimiser, copy.deepcopy(optimiser.state_dict())) for optimiser in optimisers]
    devices = {p.device.index for p in own if p.is_cuda}
    try:
        with torch.random.fork_rng(devices=[device for device in devices if device is not None]):
            yield
    finally:
        for module, training in modes:
            module.training = training
        # Through `data`: these are the values that graphs outside the block have saved, so versions stay.
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            buffer.data.copy_(before)
        for parameter, before in values:
            parameter.data.copy_(before)
        for parameter, gradient, kept in gradients:
            parameter.grad = gradient
            if gradient is not None and kept is not None:
                gradient.data.copy_(kept)
        for optimiser, state in states:
            optimiser.load_state_dict(state)
