"""Small inputs that would take endless time or memory: each is written into a folder, for a command."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hostile import cases, forked
from kdcompress.deploy.load import load
from kdcompress.tools import bench as timing

_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("x", 1)]


def _facts(path):
    forked.note_inputs()
    timing._artefact("a", path, timing.BenchRequest(files=(str(path),)))


def _loaded(path):
    forked.note_inputs()
    load(path)


READERS = {
    "evaluate": lambda path: cases.cli("evaluate", path, "--recipe", "quickstart", "-q"),
    "load": _loaded,
    "bench": lambda path: cases.cli("bench", path, "-q"),
    "pack": lambda path: cases.cli("bench", path, "--target", f"pack:{path.parent / 'run'}", "-q"),
}
"""The ways of an ONNX file into the program."""


def _graph(folder, nodes, weights=(), functions=()):
    path = folder / "a.onnx"
    ends = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, 8, 8]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3, 8, 8]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=_OPSETS, ir_version=9, functions=list(functions)), path)
    return path


def identity_cycle(folder):
    """Two nodes that pass each other's output on."""
    pairs = [("Identity", ["a"], ["b"]), ("Identity", ["b"], ["a"]), ("Add", ["images", "a"], ["logits"])]
    return _graph(folder, [helper.make_node(*pair) for pair in pairs])


def long_identity_chain(folder):
    """One weight that 4000 nodes pass on, and 4000 that read the last of them."""
    count = 4000
    nodes = [helper.make_node("Identity", [f"w{i}"], [f"w{i + 1}"]) for i in range(count)]
    nodes += [
        helper.make_node("Add", [f"a{i}" if i else "images", f"w{count}"], [f"a{i + 1}"])
        for i in range(count)
    ]
    nodes.append(helper.make_node("Relu", [f"a{count}"], ["logits"]))
    return _graph(folder, nodes, [numpy_helper.from_array(np.ones((3, 8, 8), np.float32), "w0")])


def doubling_functions(folder):
    """25 functions that call the one before them twice."""
    functions = [
        helper.make_function("x", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], _OPSETS)
    ]
    for level in range(1, 26):
        calls = [
            helper.make_node(f"f{level - 1}", ["a"], ["m"], domain="x"),
            helper.make_node(f"f{level - 1}", ["m"], ["b"], domain="x"),
        ]
        functions.append(helper.make_function("x", f"f{level}", ["a"], ["b"], calls, _OPSETS))
    return _graph(folder, [helper.make_node("f25", ["images"], ["logits"], domain="x")], (), functions)


def function_that_calls_itself(folder):
    """A function without an end."""
    calls = [helper.make_node("f", ["a"], ["b"], domain="x")]
    function = helper.make_function("x", "f", ["a"], ["b"], calls, _OPSETS)
    return _graph(folder, [helper.make_node("f", ["images"], ["logits"], domain="x")], (), [function])


def long_chain_of_functions(folder):
    """1000 functions that call the one before them."""
    functions = [
        helper.make_function("x", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], _OPSETS)
    ]
    functions += [
        helper.make_function(
            "x", f"f{i}", ["a"], ["b"], [helper.make_node(f"f{i - 1}", ["a"], ["b"], domain="x")], _OPSETS
        )
        for i in range(1, 1000)
    ]
    # Every one of them is read, the shortest chains first.
    names = ["images", *(f"m{i}" for i in range(999)), "logits"]
    nodes = [helper.make_node(f"f{i}", [names[i]], [names[i + 1]], domain="x") for i in range(1000)]
    return _graph(folder, nodes, (), functions)


def nested_subgraphs(folder):
    """A graph in an attribute of a node in a graph, 2000 times; protobuf's own writer refuses to write it."""

    def field(number, content):
        size, length = bytearray(), len(content)
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2, *size, length]) + content

    graph = b""
    for _ in range(2000):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"  # type: GRAPH
        graph = field(1, field(4, b"If") + field(5, attribute))
    path = folder / "a.onnx"
    path.write_bytes(b"\x08\x09" + field(7, graph))
    return path
