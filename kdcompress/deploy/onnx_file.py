"""Reads ONNX files that anybody may have made, and lists all tensors in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from kdcompress.errors import UserError

MOST_LEVELS = 64
"""Functions that call each other; onnx itself takes 100."""
MOST_NODES = 10_000
"""Nodes in place of all calls. ONNX Runtime replaces calls in a time that grows with the square: 2^13 nodes
take 2 seconds and 2^15 take 17. Networks for images have a few thousand."""

_Function = tuple[str, str, str]
"""Domain, name and overload."""


def read_onnx(path: Path) -> ModelProto:
    """Reads a file without the tensors that lie beside it.

    Raises:
        UserError: It cannot be read, is no ONNX file, or calls functions without a reasonable end.
    """
    try:
        # Not by the suffix: runtimes read these bytes and no other form of ONNX.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise UserError(f"{path}: is not a whole ONNX file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    check_functions(model, path)
    return model


def check_functions(model: ModelProto, path: Path) -> None:
    """Refuses a model whose functions stand for more nodes than ONNX Runtime can put in their places.

    Args:
        model: The model.
        path: Its file, for the message.

    Raises:
        UserError: A function calls itself, or the calls are nested too deeply or become too many nodes.
    """
    bodies = {(_domain(entry), entry.name, entry.overload): entry for entry in model.functions}
    sizes: dict[_Function, tuple[int, int]] = {}
    unfinished: set[_Function] = set()

    refusal = (
        f"{path}: its functions become more than {MOST_NODES:,} nodes or {MOST_LEVELS} levels of calls; "
        "export the network without functions of its own"
    )

    def expansion(calls: list[_Function], above: int) -> tuple[int, int]:
        """Counts the nodes that the calls become, and the levels below them."""
        nodes, levels = 0, 0
        for call in calls:
            if call not in sizes:
                if call in unfinished:
                    raise UserError(f"{path}: is damaged: its function {call[1]:.100} calls itself")
                if above == MOST_LEVELS:
                    raise UserError(refusal)
                unfinished.add(call)
                body = list(_nodes(bodies[call]))
                inner, deep = expansion(_calls(body, bodies), above + 1)
                sizes[call] = len(body) + inner, deep + 1
            nodes, levels = nodes + sizes[call][0], max(levels, sizes[call][1])
            if nodes > MOST_NODES or above + levels > MOST_LEVELS:
                raise UserError(refusal)
        return nodes, levels

    if bodies:
        expansion(_calls(_nodes(model.graph), bodies), 0)


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yields the tensors of a model: its weights and constants, in subgraphs and functions too."""
    for outer in (model.graph, *model.functions):
        for body in _bodies(outer):
            sparse = []
            if isinstance(body, GraphProto):
                yield from body.initializer
                sparse = list(body.sparse_initializer)
            for attribute in _attributes(body):
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
                sparse += attribute.sparse_tensors
            for tensor in sparse:
                yield tensor.values
                yield tensor.indices


def _domain(entry: FunctionProto | NodeProto) -> str:
    return "" if entry.domain == "ai.onnx" else str(entry.domain)


def _calls(
    nodes: Iterator[NodeProto] | list[NodeProto], known: dict[_Function, FunctionProto]
) -> list[_Function]:
    called = ((_domain(node), node.op_type, node.overload) for node in nodes)
    return [function for function in called if function in known]


def _nodes(outer: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    for body in _bodies(outer):
        yield from body.node


def _bodies(outer: GraphProto | FunctionProto) -> Iterator[GraphProto | FunctionProto]:
    """Yields a graph and the graphs in it."""
    waiting = [outer]
    while waiting:
        body = waiting.pop()
        yield body
        for attribute in _attributes(body):
            if attribute.HasField("g"):
                waiting.append(attribute.g)
            waiting.extend(attribute.graphs)


def _attributes(body: GraphProto | FunctionProto) -> Iterator[AttributeProto]:
    if isinstance(body, FunctionProto):
        yield from body.attribute_proto
    for node in body.node:
        yield from node.attribute
