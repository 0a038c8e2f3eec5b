"""The data flow of one pass through a network: which operation read what, and inside which module call.

Module hooks alone do not see what happens between modules (a residual sum, a functional activation); a
dispatch mode alone does not know modules. Together they give a graph whose nodes are tensors and whose
module calls are intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcompress.errors import KdcompressError, NetworkError
from kdcompress.networks.undisturbed import undisturbed


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor that depends on the images, at the moment an operation wrote it.

    Args:
        operation: The ATen operation's name without its name space, such as `convolution`; "" for the images.
        inputs: Indices of the nodes it was computed from.
        shape: Shape of the tensor.
        calls: Indices of the module calls that were open, outermost first.
    """

    operation: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    calls: tuple[int, ...]


@dataclass(slots=True)
class Call:
    """One call of one module.

    Args:
        path: Its path in `named_modules`; "" for the network itself.
        number: Number of calls of this module before it.
        module: The module.
        read: The node of its first argument, or None if that is no tensor of the pass.
        wrote: The node of its output, or None if that is no single tensor.
        read_is_rewritten: True if an in-place operation changed its input afterwards.
        wrote_is_rewritten: True if an in-place operation changed its output afterwards.
    """

    path: str
    number: int
    module: nn.Module
    read: int | None = None
    wrote: int | None = None
    read_is_rewritten: bool = False
    wrote_is_rewritten: bool = False


@dataclass(slots=True)
class Trace:
    """A recorded pass.

    Args:
        nodes: In the order they were written.
        calls: In the order they were entered.
        output: The node the network returned.
    """

    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    output: int = -1

    def consumers(self) -> dict[int, list[int]]:
        """Returns the nodes that were computed from each node."""
        readers: dict[int, list[int]] = {index: [] for index in range(len(self.nodes))}
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                readers[source].append(index)
        return readers

    def bottlenecks(self) -> list[int]:
        """Lists the nodes that every path to the output passes through, in order, without the images.

        A residual block's inner maps are none: its shortcut goes around them.
        """
        towards_output = {self.output}
        for index in range(self.output, -1, -1):
            if index in towards_output:
                towards_output.update(self.nodes[index].inputs)
        last_reader = dict.fromkeys(towards_output, 0)
        for index in sorted(towards_output):
            for source in self.nodes[index].inputs:
                last_reader[source] = index
        indices, open_until = [], 0
        for index in sorted(towards_output):
            if index > 0 and open_until <= index:
                indices.append(index)
            open_until = max(open_until, last_reader[index])
        return indices


def record(network: nn.Module, images: Tensor, model: str) -> Trace:
    """Runs the network once, undisturbed, and records the data flow.

    Args:
        network: Any module of one tensor argument that returns one tensor.
        images: `[B, C, H, W]`, normalised, on the network's device.
        model: Named in the error.

    Raises:
        NetworkError: It cannot run on these images, or does not return one tensor `[B, K]`.
    """
    recorder = _Recorder(images)
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(
                f"{model}: {path or 'the network'} is a TorchScript module, which can be neither read nor "
                "exported; build it from its Python class, and load its weights into that"
            )
        enter, leave = recorder.hooks(path)
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with undisturbed(network), recorder:
            output = run_once(network, images, model)
    finally:
        for handle in handles:
            handle.remove()
    if not recorder.knows(output):
        raise NetworkError(
            f"{model}: its output does not depend on the images, so there is nothing to learn from it"
        )
    return recorder.finish(output)


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Returns what a module was called with first, by position or by name; None: nothing."""
    return next(iter((*args, *kwargs.values())), None)


def run_once(network: Callable[[Tensor], Any], images: Tensor, model: str) -> Tensor:
    """Returns the network's output `[B, K]`; an error inside it becomes a user error with the image size.

    Raises:
        NetworkError: It cannot run on these images, or does not return one tensor `[B, K]`.
    """
    size = "x".join(str(side) for side in images.shape[1:])
    try:
        output = network(images)
    except KdcompressError:
        raise
    except Exception as error:  # networks of others assert, or fail in ways of their own
        reason = str(error).strip().split("\n", 1)[0]
        if not reason or not isinstance(error, (RuntimeError, ValueError, TypeError, AssertionError)):
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        raise NetworkError(
            f"{model}: cannot run on images of {size} (channels x height x width): {reason}; "
            "choose another data.image_size or another network"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != images.shape[0]:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise NetworkError(
            f"{model}: returns {got}, expected logits of shape [batch, classes] in one tensor (a backbone: "
            "features of shape [batch, features])"
        )
    if output.shape[1] == 0:
        raise NetworkError(
            f"{model}: returns {list(output.shape)}; where it is built for 0 classes it must leave its "
            "classifier out and return its features"
        )
    return output


_Key = tuple[int, tuple[int, ...], tuple[int, ...]]


def _key(tensor: Tensor) -> _Key:
    # Views come back from the dispatcher as other Python objects, so where the numbers lie is the identity.
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace(nodes=[Node("", (), tuple(images.shape), ())])
        self._now: dict[_Key, int] = {_key(images): 0}
        self._open: list[int] = []
        self._alive: list[Tensor] = [images]  # freed memory would be handed out again under the same key
        self._read: dict[int, tuple[Tensor, int]] = {}
        self._wrote: dict[int, tuple[Tensor, int]] = {}
        self._dropped_in_place: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Looked up before the call: an in-place operation writes a new node under the old key.
        read = [self._now.get(_key(t)) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = func(*args, **(kwargs or {}))
        inputs = tuple(sorted({index for index in read if index is not None}))
        if inputs:
            name = str(func._schema.name).split("::", 1)[-1]
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.numel() > 0:
                    self._now[_key(tensor)] = len(self.trace.nodes)
                    self.trace.nodes.append(Node(name, inputs, tuple(tensor.shape), tuple(self._open)))
                    self._alive.append(tensor)
        return result

    def hooks(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """Returns the hooks that open and close a call of the module at `path`."""
        count = 0

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            nonlocal count
            call = Call(path, count, module)
            count += 1
            tensor = first_input(args, kwargs)
            if isinstance(tensor, Tensor):
                call.read = self._now.get(_key(tensor))
                self._read[len(self.trace.calls)] = (tensor, tensor._version)
                if isinstance(module, nn.modules.dropout._DropoutNd) and module.inplace:
                    # Idle in eval mode, but in training it rewrites what it reads.
                    self._dropped_in_place[tensor.data_ptr()] = len(self.trace.calls)
            self._open.append(len(self.trace.calls))
            self.trace.calls.append(call)

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            index = self._open.pop()
            if isinstance(output, Tensor):
                self.trace.calls[index].wrote = self._now.get(_key(output))
                self._wrote[index] = (output, output._version)

        return enter, leave

    def knows(self, output: Tensor) -> bool:
        """Tells if a tensor was computed from the images."""
        return _key(output) in self._now

    def finish(self, output: Tensor) -> Trace:
        """Returns the trace, with the calls marked whose input or output was rewritten in place."""
        for index, (tensor, version) in self._read.items():
            self.trace.calls[index].read_is_rewritten = self._rewritten(index, tensor, version)
        for index, (tensor, version) in self._wrote.items():
            self.trace.calls[index].wrote_is_rewritten = self._rewritten(index, tensor, version)
        self.trace.output = self._now[_key(output)]
        return self.trace

    def _rewritten(self, call: int, tensor: Tensor, version: int) -> bool:
        return tensor._version != version or self._dropped_in_place.get(tensor.data_ptr(), -1) > call
