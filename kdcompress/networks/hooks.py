"""Hooks that read tensors in one pass and are removed after it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kdcompress.networks.tap_points import Tap
from kdcompress.networks.trace import first_input


@contextmanager
def reading(network: nn.Module, taps: Iterable[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Collects the tensors of the taps in the one pass that runs inside the context.

    Yields:
        Filled by the pass. The tensors are the network's own and carry gradients; a tap whose tensor is
        rewritten in place later on reads a copy.
    """
    readings: dict[Tap, Tensor] = {}
    versions: dict[Tap, int] = {}

    def take(here: list[Tap], call: int, tensor: Tensor) -> None:
        for tap in here:
            if tap.call == call:
                readings[tap] = tensor.clone() if tap.clone else tensor
                versions[tap] = _version(readings[tap])

    by_place: dict[tuple[str, str], list[Tap]] = {}
    for tap in taps:
        by_place.setdefault((tap.path, tap.side), []).append(tap)
    handles = []
    for (path, side), here in by_place.items():
        module = network.get_submodule(path)
        if side == "input":
            handles.append(module.register_forward_pre_hook(_before(here, take), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(_after(here, take)))
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()
    for tap, tensor in readings.items():
        assert _version(tensor) == versions[tap], f"{tap} was rewritten in place after it was read"


_Take = Callable[[list[Tap], int, Tensor], None]


def _before(here: list[Tap], take: _Take) -> Callable[..., None]:
    calls = itertools.count()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(here, next(calls), first_input(args, kwargs))

    return hook


def _after(here: list[Tap], take: _Take) -> Callable[..., None]:
    calls = itertools.count()

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        take(here, next(calls), output)

    return hook


def _version(tensor: Tensor) -> int:
    # Tensors of inference mode keep no version, and nothing is learned from them.
    return 0 if tensor.is_inference() else tensor._version
