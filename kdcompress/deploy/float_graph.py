"""An exported graph as the tools that change its numbers want it: folded, with shapes, its layers named."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from kdcompress import __version__
from kdcompress.deploy import ort_tools as ort
from kdcompress.deploy.calibration import Calibration
from kdcompress.deploy.formats.onnx import INPUT, PROVIDER

Ranges = Literal["minmax", "percentile"]

WITH_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_METHODS = {"minmax": ort.CalibrationMethod.MinMax, "percentile": ort.CalibrationMethod.Percentile}
_INFERRED = "onnx.infer"
"""What onnxruntime marks a graph with whose shapes are known; else it writes and reads it once more."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An operator with weights.

    Args:
        name: Place in the network, as its weights say.
        node: The name of its node.
        source: The tensor it reads.
        weight: The name of its weights.
        macs: Multiply-accumulates of one image.
        groups: 1, or those of a grouped convolution; as many as channels: depthwise.
    """

    name: str
    node: str
    source: str
    weight: str
    macs: int
    groups: int


def prepare_graph(source: Path) -> ModelProto:
    """Folds batch norms and constants, replaces spatial means by pooling and infers shapes.

    Raises:
        NetworkError: It is no graph that onnxruntime takes.
    """
    with tempfile.TemporaryDirectory(prefix="kdcompress-") as folder:
        path = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Not more than basic: the rest depends on the machine and is done anew wherever the file is loaded.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        with ort.quiet_ort_tools():
            onnxruntime.InferenceSession(source, options, providers=[PROVIDER])
        model = onnx.load(path)
    _pool_where_the_mean_is_spatial(model)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.helper.set_model_props(model, {_INFERRED: "onnxruntime.quant"})
    return model


def layers_of(model: ModelProto) -> Iterator[Layer]:
    """Yields the operators with weights, in the graph's order.

    Args:
        model: Result of `prepare_graph`.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {
        info.name: [size.dim_value for size in info.type.tensor_type.shape.dim]
        for info in (*model.graph.value_info, *model.graph.output)
    }
    readers = {name: node for node in model.graph.node for name in node.input}
    names_so_far: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in WITH_WEIGHTS or node.input[1] not in weights:
            continue
        weight = list(weights[node.input[1]].dims)
        name = _place(node, readers)
        if name in names_so_far:  # weights that are used twice
            name = f"{name} ({node.name})"
        names_so_far.add(name)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        macs = _macs(node, weight, shapes)
        yield Layer(name, node.name, node.input[0], node.input[1], macs, groups)


def measured_ranges(model: ModelProto, images: Calibration, ranges: Ranges, operators: list[str]) -> Any:
    """Returns the ranges of the activations around the operators, as onnxruntime's quantiser takes them.

    Args:
        model: With the shapes of its tensors.
        images: Images to measure on.
        ranges: How.
        operators: Their types; none: all tensors.

    Raises:
        NetworkError: They cannot be measured.
    """
    with tempfile.TemporaryDirectory(prefix="kdcompress-") as folder:
        path = Path(folder) / "float.onnx"
        onnx.save(model, path)
        with ort.quiet_ort_tools():
            calibrator = ort.create_calibrator(
                path,
                operators,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=_METHODS[ranges],
                extra_options={"symmetric": False},
            )
            # One batch at a time: a calibrator keeps all that it is given in one go.
            for batch in images.batches:
                calibrator.collect_data(_One(batch))
            return calibrator.compute_data()


def outputs(model: ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Runs the graph on images [B, C, H, W]; returns outputs [B, K]."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with ort.quiet_ort_tools():
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER])
        output: NDArray[np.float32] = session.run(None, {INPUT: images})[0]
    return output


def clean_graph(model: ModelProto, source: ModelProto) -> ModelProto:
    """Sorts the nodes, removes the tools' marks and copies the source's metadata."""
    sorted_ = ort.ONNXModel(model)
    sorted_.topological_sort()
    model = sorted_.model
    # Shapes can be inferred; as kept from the source they may speak of another type.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in source.metadata_props})
    model.producer_name, model.producer_version, model.doc_string = "kdcompress", __version__, ""
    used = {node.domain for node in model.graph.node}
    imported = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(name, imported[name]) for name in sorted(imported))
    return model


class _One(ort.CalibrationDataReader):  # type: ignore[misc]
    """A single batch, as calibrators read it."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._left = [{INPUT: images}]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return self._left.pop() if self._left else None


def _macs(node: NodeProto, weight: list[int], shapes: dict[str, list[int]]) -> int:
    """Computes the multiply-accumulates of one image; 0 if the shapes are not known."""
    if node.op_type == "MatMul":
        return math.prod(shapes.get(node.output[0], [0])[1:]) * weight[0]
    if node.op_type == "Gemm":
        return math.prod(weight)
    # Each weight once for each position: of what comes out, or of what goes in where that is the coarser.
    positions = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0], [0, 0, 0])
    return math.prod(weight) * math.prod(positions[2:])


def _place(node: NodeProto, readers: dict[str, NodeProto]) -> str:
    """Returns a layer's place in the network: its weights say it, or its bias where they came transposed."""
    after = readers.get(node.output[0])
    biases = [*node.input[2:], *(after.input if after is not None and after.op_type == "Add" else ())]
    for name in map(str, (node.input[1], *biases)):
        for kind in (".weight", ".bias"):
            if kind in name:
                return name.removeprefix("network.").partition(kind)[0]
    return str(node.name)


def _pool_where_the_mean_is_spatial(model: ModelProto) -> None:
    """Writes the mean over height and width as a pooling, which has an int8 kernel where the mean has none.

    Measured on MobileNetV3-small, which takes such a mean in every squeeze: int8 becomes 1.1 times faster.
    """
    axes = {
        t.name: sorted(axis % 4 for axis in numpy_helper.to_array(t).reshape(-1).tolist())
        for t in model.graph.initializer
        if t.data_type == TensorProto.INT64
    }
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in model.graph.value_info}
    nodes = []
    for node in model.graph.node:
        spatial = (
            node.op_type == "ReduceMean"
            and len(node.input) == 2
            and axes.get(node.input[1]) == [2, 3]
            and ranks.get(node.input[0]) == 4
        )
        nodes += _pooled(node) if spatial else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _pooled(mean: NodeProto) -> list[NodeProto]:
    """Returns nodes that compute the mean over height and width by pooling."""
    keeps = next((attribute.i for attribute in mean.attribute if attribute.name == "keepdims"), 1)
    (output,) = mean.output
    if keeps:
        return [onnx.helper.make_node("GlobalAveragePool", [mean.input[0]], [output], name=mean.name)]
    pooled, flat = f"{output}_pooled", f"{mean.name}_flat"
    return [
        onnx.helper.make_node("GlobalAveragePool", [mean.input[0]], [pooled], name=mean.name),
        onnx.helper.make_node("Flatten", [pooled], [output], name=flat),
    ]
