"""Small inputs that would take endless time or memory: each is written into a folder, for a command."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper

from hostile import cases, forked
from kdcompress.deploy.load import load
from kdcompress.tools import bench as timing

_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("x", 1)]


def _facts(path):
    forked.note_inputs()
    timing._artefact("a", Path(path), timing.BenchRequest(files=(str(path),)))


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


def _strip(path):
    cases.cli("strip", path, "--student", "cifar/resnet8", "--out", path.parent / "run" / "out.safetensors")


def _export(path):
    cases.cli("export", path, "--student", "cifar/resnet8", "--recipe", "quickstart", "-q")


def _evaluate(path):
    cases.cli("evaluate", path, "--recipe", "quickstart", "-q")


def _checkpoint(folder, **beside):
    """A whole checkpoint with more in it."""
    path = folder / "a.pth"
    (folder / "run").mkdir()
    torch.save({"model": safetensors.torch.load_file(cases.WEIGHTS), **beside}, path)
    return path


def lists_of_one_list(folder, tensor=1):
    """A list of 100 times the same list, seven deep."""
    value = {"x": tensor}
    for _ in range(7):
        value = [value] * 100
    return _checkpoint(folder, a=value, b=value)


def lists_of_one_tensor(folder):
    """The same with a tensor at the end of each of the 10^14 paths."""
    return lists_of_one_list(folder, torch.zeros(1))


def list_that_holds_itself(folder):
    """A list of 100 times itself."""
    value = []
    value.extend([value] * 100)
    return _checkpoint(folder, a=value)


def key_of_doubled_tuples(folder, **options):
    """A key that is a tuple of twice the same tuple, 40 deep; a dictionary takes its hash when it is read."""

    class Mapping(dict):
        def __reduce_ex__(self, protocol):
            return dict, (), None, None, iter([(key, 1)])

    key = (1,)
    for _ in range(40):
        key = (key, key)
    path = folder / "a.pth"
    (folder / "run").mkdir()
    torch.save({"conv1.weight": torch.zeros(1), "a": Mapping()}, path, **options)
    return path


def key_of_doubled_tuples_in_the_old_format(folder):
    """The same as PyTorch before 1.6 saved it."""
    return key_of_doubled_tuples(folder, _use_new_zipfile_serialization=False)


def name_of_dots(folder):
    """A tensor whose name has 5 million dots."""
    (folder / "run").mkdir()
    path = folder / "a.safetensors"
    state = safetensors.torch.load_file(cases.WEIGHTS)
    safetensors.torch.save_file({**state, "." * 5_000_000: torch.zeros(1)}, path)
    return path


def packed_zeros(folder):
    """A checkpoint whose tensor of 300 MB is packed to 1 MB."""
    (folder / "run").mkdir()
    plain, path = folder / "plain.pth", folder / "a.pth"
    torch.save({"conv1.weight": torch.zeros(1000)}, plain)
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipfile.ZipFile(plain) as old, packed as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as file:
                file.write(old.read(name))
                for _ in range(300 if name.endswith("data/0") else 0):
                    file.write(bytes(1 << 20))
    plain.unlink()
    return path


def layers_in_reverse(folder):
    """A graph of OpenVINO with 20000 layers, of which the last one in the file comes first."""
    count = 20_000
    port = '<port id="0"><dim>1</dim><dim>3</dim><dim>8</dim><dim>8</dim></port>'
    kinds = ["Parameter", *["ReLU"] * (count - 2), "Result"]
    layers = [
        f'<layer id="{i}" name="{i}" type="{kinds[i]}"><output>{port}</output></layer>'
        for i in reversed(range(count))
    ]
    edges = [
        f'<edge from-layer="{i - 1}" from-port="0" to-layer="{i}" to-port="0"/>' for i in range(1, count)
    ]
    path = folder / "a.xml"
    path.write_text(f"<net><layers>{''.join(layers)}</layers><edges>{''.join(edges)}</edges></net>")
    path.with_suffix(".bin").write_bytes(b"")
    return path


def many_axes(folder):
    """A weight of 300000 axes, whose product has 19 million bits."""
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    tensor.dims.extend([2**62] * 300_000)
    return _graph(folder, [helper.make_node("Add", ["images", "w"], ["logits"])], [tensor])


def many_axes_in_openvino(folder):
    """The same in a graph of OpenVINO."""
    path = layers_in_reverse(folder)
    output = f'<output><port id="0">{f"<dim>{2**62}</dim>" * 300_000}</port></output>'
    constant = f'<layer id="-1" type="Const"><data element_type="f32"/>{output}</layer>'
    path.write_text(path.read_text().replace("</layers>", f"{constant}</layers>"))
    return path


def weights_for_images_of(side):
    """Returns a maker of weights whose `config.json` says images of this side."""

    def make(folder):
        config = json.loads((cases.FINISHED / "config.json").read_text())
        config["input"] |= {"height": side, "width": side}
        (folder / "config.json").write_text(json.dumps(config))
        return shutil.copy(cases.WEIGHTS, folder / "a.safetensors")

    return make


def graph_for_images_of(side):
    """Returns a maker of a graph whose metadata say images of this side; it takes others."""

    def make(folder):
        model = onnx.load(cases.GRAPH)
        entry = next(entry for entry in model.metadata_props if entry.key == "kdcompress.input")
        entry.value = json.dumps(json.loads(entry.value) | {"height": side, "width": side})
        onnx.save(model, folder / "a.onnx")
        return folder / "a.onnx"

    return make


def graph_of_large_images(folder):
    """A graph that itself takes images of 16384 x 16384 pixels."""
    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["logits"])]
    path = _graph(folder, nodes)
    model = onnx.load(path)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 16384
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = 1
    onnx.save(model, path)
    return path
