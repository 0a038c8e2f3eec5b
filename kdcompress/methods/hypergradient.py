"""Differentiates a loss after several SGD steps with respect to parameters of the stepped losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Tensors = tuple[Tensor, ...]
Objective = Callable[[Tensors], Tensor]
"""A scalar loss of the stepped parameters; it may also depend on the meta-parameters."""


@dataclass(frozen=True, slots=True)
class SGD:
    """Settings of the steps: v ← momentum · v + g + weight_decay · θ, θ ← θ - lr · v, with v = 0 at first."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Hypergradient:
    """The derivative of the final loss.

    Args:
        gradients: With respect to each meta-parameter; zeros where nothing flows.
        loss: The final loss, without gradient.
    """

    gradients: Tensors
    loss: Tensor


def sgd_trajectory(objectives: Sequence[Objective], start: Tensors, sgd: SGD) -> list[Tensors]:
    """Takes one SGD step on each objective in turn; `start` is not changed.

    Args:
        objectives: One per step.
        start: θ; a parameter without a gradient counts as one of gradient zero, so it decays.
        sgd: Settings.

    Returns:
        θ before each step and after the last one, without gradients.
    """
    points = [tuple(t.detach() for t in start)]
    velocity = [torch.zeros_like(t) for t in start]
    for objective in objectives:
        theta = tuple(t.requires_grad_() for t in _leaves(points[-1]))
        with torch.enable_grad():
            loss = objective(theta)
        gradients = torch.autograd.grad(loss, theta, allow_unused=True, materialize_grads=True)
        velocity = [
            sgd.momentum * v + g + sgd.weight_decay * t.detach()
            for v, g, t in zip(velocity, gradients, theta, strict=True)
        ]
        points.append(tuple(t.detach() - sgd.lr * v for t, v in zip(theta, velocity, strict=True)))
    return points


def hypergradient(
    objectives: Sequence[Objective], final: Objective, start: Tensors, meta: Tensors, sgd: SGD
) -> Hypergradient:
    """Computes d(final loss after the steps)/d(meta-parameters), exactly: by second derivatives.

    The steps are made without a graph and then replayed backwards, each with a graph of its own: memory is
    that of one step. An objective is evaluated twice at the same point and must be the same function both
    times.

    Args:
        objectives: One per step.
        final: Evaluated after the last step.
        start: θ; not changed, and no gradient is left in it.
        meta: Leaves that the objectives depend on.
        sgd: Settings of the steps.

    Source:
        Reverse-mode differentiation through SGD with momentum, Maclaurin et al., Gradient-based
        Hyperparameter Optimization through Reversible Learning, ICML 2015, with stored points.
    """
    *before, end = sgd_trajectory(objectives, start, sgd)
    theta = tuple(t.requires_grad_() for t in _leaves(end))
    with torch.enable_grad():
        loss = final(theta)
    of_theta, total = _split(_gradients(loss, (*theta, *meta)), len(theta))
    # Adjoint of the velocity: what it adds to later steps through the momentum.
    of_velocity: Tensors = tuple(torch.zeros_like(t) for t in theta)
    for objective, point in zip(reversed(objectives), reversed(before), strict=True):
        theta = tuple(t.requires_grad_() for t in _leaves(point))
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                objective(theta), theta, create_graph=True, allow_unused=True, materialize_grads=True
            )
            adjoint = [v - sgd.lr * a for v, a in zip(of_velocity, of_theta, strict=True)]
            product = torch.stack([(g * u).sum() for g, u in zip(gradients, adjoint, strict=True)]).sum()
        second, of_meta = _split(_gradients(product, (*theta, *meta)), len(theta))
        total = tuple(t + m for t, m in zip(total, of_meta, strict=True))
        of_theta = tuple(
            a + sgd.weight_decay * u + s for a, u, s in zip(of_theta, adjoint, second, strict=True)
        )
        of_velocity = tuple(sgd.momentum * u for u in adjoint)
    return Hypergradient(total, loss.detach())


class Stepped(nn.Module):
    """Runs functions of the networks with other parameters in place of the modules' own.

    Buffers are copies in every run, and generators are restored after it: so dropout draws the same masks
    each time, and batch-norm statistics do not move.

    Args:
        modules: Their trainable parameters are exchanged.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self._own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        self._devices = sorted({p.device.index for p in self._own.values() if p.is_cuda})

    def start(self) -> Tensors:
        """Returns the modules' own parameters."""
        return tuple(self._own.values())

    def objective(self, function: Callable[[], Tensor]) -> Callable[[Tensors], Tensor]:
        """Makes a loss that is computed by the modules a loss of the parameters they have meanwhile."""

        def of_parameters(values: Tensors) -> Tensor:
            given = {name: buffer.clone() for name, buffer in self.named_buffers()}
            given |= dict(zip(self._own, values, strict=True))
            with (
                torch.random.fork_rng(devices=self._devices),
                _TwiceDifferentiable(),
                sdpa_kernel(SDPBackend.MATH),  # the others have first derivatives only
            ):
                result: Tensor = torch.func.functional_call(self, given, (function,))
            return result

        return of_parameters

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """Calls the function; `functional_call` has exchanged the parameters then."""
        return function()


class _TwiceDifferentiable(TorchFunctionMode):
    """Computes hard sigmoids, of which torch has no second derivative, by operations that have one."""

    REPLACED = (F.hardsigmoid, torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.REPLACED:
            x = args[0] if args else (kwargs or {})["input"]
            return (x + 3).clamp(0, 6) / 6
        return func(*args, **(kwargs or {}))


def _leaves(point: Tensors) -> Tensors:
    """Gives leaves on the same memory."""
    return tuple(t.detach() for t in point)


def _gradients(loss: Tensor, inputs: Tensors) -> Tensors:
    if not loss.requires_grad:  # no gradient depends on anything
        return tuple(torch.zeros_like(t) for t in inputs)
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def _split(tensors: Tensors, count: int) -> tuple[Tensors, Tensors]:
    return tuple(t.detach() for t in tensors[:count]), tuple(t.detach() for t in tensors[count:])
