"""Compiled passes of a network: its output alone, or with the tensors of taps as further outputs.

With CUDA graphs the GPU replays all kernels of a pass at one launch. A graph has its tensors at fixed places,
which the graphs of the next batch reuse. So there are three rules. Graphs run only in `graphed_batch`, which
tells torch where a batch begins; all passes of one batch, forward and backward, have places of their own.
What a pass returns is copied, so that a method may keep it as long as it likes. And the gradients of a batch
must be used before the next one begins, which rules out their accumulation over batches.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.networks.tap_points import Tap
from kdcompress.networks.trace import first_input

BACKEND = "inductor"
"""Backend of torch.compile."""
RECOMPILE_LIMIT = 64
"""Versions of one piece of code. torch's 8 are few for student, peers and teacher of one class in two modes;
beyond them it goes on uncompiled."""

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def compiler_problem(device_type: str) -> str | None:
    """Returns what is missing here for torch.compile, and what to do about it; None: nothing is.

    Args:
        device_type: cpu or cuda.
    """
    without = "or take train.compile: false"
    if device_type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return f"needs a C++ compiler; install one (apt install g++), set CXX to its path, {without}"
        return None
    if importlib.util.find_spec("triton") is None:
        return f"needs Triton; pip install triton, {without}"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return f"needs a C compiler; install one (apt install gcc), set CC to its path, {without}"
    return None


_in_batch = False


@contextlib.contextmanager
def graphed_batch(on: bool) -> Iterator[None]:
    """Lets compiled passes replay CUDA graphs within its block, which is the work on one batch.

    Args:
        on: False: they do not, and nothing happens.
    """
    global _in_batch
    if not on:
        yield
        return
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    _in_batch = True
    try:
        yield
    finally:
        _in_batch = False


class CompiledPasses:
    """Compiles a network's pass for each set of taps, at its first use.

    The taps are read by hooks on a twin: the same modules with the same parameters, buffers and modes. The
    network itself stays without hooks.

    Args:
        network: Compiled with its present and later weights; it may be moved and trained on.
        graphs: True replays CUDA graphs, in `graphed_batch` alone (`usable`).
    """

    def __init__(self, network: nn.Module, *, graphs: bool = False) -> None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        self._network, self._graphs = network, graphs
        self._output: Callable[[Tensor], Any] = _compiled(network, graphs)
        self._passes: dict[tuple[Tap, ...], _TappedPass] = {}

    @property
    def usable(self) -> bool:
        """False outside of a batch for passes with graphs: the network's own are to be used there."""
        return _in_batch or not self._graphs

    def output(self, images: Tensor) -> Any:
        """Runs one pass in the network's present mode and returns its output alone."""
        output = self._output(images)
        return _copied(output) if self._graphs else output

    def __call__(self, images: Tensor, taps: Sequence[Tap]) -> tuple[Any, dict[Tap, Tensor]]:
        """Runs one pass in the network's present mode.

        Args:
            images: Normalised, `[B, C, H, W]`.
            taps: Readings.

        Returns:
            The output, and the readings; one that the pass does not come by is left out.
        """
        key = tuple(taps)
        if key not in self._passes:
            self._passes[key] = _TappedPass(self._network, key, self._graphs)
        output, readings = self._passes[key](images)
        if not self._graphs:
            return output, readings
        return _copied(output), {tap: _copied(tensor) for tap, tensor in readings.items()}


class _TappedPass:
    def __init__(self, network: nn.Module, taps: tuple[Tap, ...], graphs: bool) -> None:
        self._taps = taps
        self._pairs: list[tuple[nn.Module, nn.Module]] = []
        twin = _twin(network, self._pairs, {})
        places: dict[tuple[str, str], list[Tap]] = {}
        for tap in taps:
            places.setdefault((tap.path, tap.side), []).append(tap)
        seen: dict[tuple[str, str], list[Tensor]] = {place: [] for place in places}
        for (path, side), here in places.items():
            module, clones = twin.get_submodule(path), any(tap.clone for tap in here)
            if side == "input":
                module.register_forward_pre_hook(_before(seen[path, side], clones), with_kwargs=True)
            else:
                module.register_forward_hook(_after(seen[path, side], clones))

        def run(images: Tensor) -> tuple[Any, list[Tensor | None]]:
            for tensors in seen.values():
                tensors.clear()
            output = twin(images)
            found: list[Tensor | None] = []
            for tap in taps:
                tensors = seen[tap.path, tap.side]
                found.append(tensors[tap.call] if tap.call < len(tensors) else None)
            for tensors in seen.values():
                tensors.clear()  # or the last step's maps would be kept until the next one
            return output, found

        self._run: Callable[[Tensor], tuple[Any, list[Tensor | None]]] = _compiled(run, graphs)

    def __call__(self, images: Tensor) -> tuple[Any, dict[Tap, Tensor]]:
        for module, twin in self._pairs:
            if twin.training != module.training:
                twin.training = module.training
        output, found = self._run(images)
        pairs = zip(self._taps, found, strict=True)
        return output, {tap: tensor for tap, tensor in pairs if tensor is not None}


def _compiled(function: Callable[..., Any], graphs: bool) -> Callable[..., Any]:
    # Only inductor knows modes.
    mode = "reduce-overhead" if graphs and BACKEND == "inductor" else None
    compiled: Callable[..., Any] = torch.compile(function, backend=BACKEND, mode=mode)
    return compiled


def _copied(value: Any) -> Any:
    """Copies a tensor out of a graph's memory; gradients go through."""
    return value.clone() if isinstance(value, Tensor) else value


def _twin(
    module: nn.Module, pairs: list[tuple[nn.Module, nn.Module]], made: dict[int, nn.Module]
) -> nn.Module:
    """Copies the tree of modules; the copies share the originals' dictionaries of parameters and buffers."""
    if id(module) in made:
        return made[id(module)]
    twin = module.__class__.__new__(module.__class__)
    made[id(module)] = twin
    twin.__dict__ = dict(module.__dict__)
    for name in _HOOKS:
        twin.__dict__[name] = OrderedDict(module.__dict__[name])
    twin.__dict__["_modules"] = {
        name: None if child is None else _twin(child, pairs, made) for name, child in module._modules.items()
    }
    pairs.append((module, twin))
    return twin


def _before(seen: list[Tensor], clones: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = first_input(args, kwargs)
        seen.append(tensor.clone() if clones else tensor)

    return hook


def _after(seen: list[Tensor], clones: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(output.clone() if clones else output)

    return hook
