"""fp16: an exported graph with float16 weights and arithmetic, between an input and an output in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from kdcompress.deploy import ort_tools as ort
from kdcompress.deploy.calibration import Calibration
from kdcompress.deploy.float_graph import WITH_WEIGHTS, clean_graph, measured_ranges, prepare_graph

LARGEST = 65504.0
"""Finite in float16."""

_NORMALISING = frozenset({"Sub", "Div", "Add", "Mul"})


def convert_to_fp16(source: Path) -> ModelProto:
    """Converts weights and arithmetic of an ONNX file to float16; equal files give equal bytes.

    Images come in as float32 and are normalised as such: pixels near the mean would lose their last bits in
    the subtraction. Operators without a float16 form stay in float32.

    Args:
        source: The ONNX file, with the normalisation in its graph.

    Raises:
        NetworkError: It cannot be converted.
    """
    made_from = onnx.load(source)
    model = onnx.shape_inference.infer_shapes(made_from)
    head, input_name = _normalisation(model)
    images = model.graph.input[0]
    if head:
        normalised = onnx.ValueInfoProto()
        normalised.CopyFrom(images)
        normalised.name = input_name
        model.graph.input[0].CopyFrom(normalised)
    head_names = {node.name for node in head}
    behind = [node for node in model.graph.node if node.name not in head_names]
    del model.graph.node[:]
    model.graph.node.extend(behind)
    constants = {name for node in head for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in constants]
    for tensor in kept:
        model.graph.initializer.remove(tensor)
    with ort.quiet_ort_tools():
        model = ort.convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    if head:
        model.graph.input[0].CopyFrom(made_from.graph.input[0])
        model.graph.node.extend(head)
        model.graph.initializer.extend(kept)
    return clean_graph(model, made_from)


def in_float16(model: ModelProto) -> set[str]:
    """Returns the names of the nodes whose weights are float16."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in WITH_WEIGHTS and types.get(node.input[1]) == TensorProto.FLOAT16
    }


def largest_activation(source: Path, images: Calibration) -> float:
    """Computes the largest absolute value of any tensor in the float32 graph; NaN counts as infinite.

    Args:
        source: The ONNX file.
        images: Images to measure on.
    """
    ranges = measured_ranges(prepare_graph(source), images, "minmax", [])
    ends = [np.abs(end).max() for tensor in ranges.values() for end in tensor.range_value]
    return float(np.nan_to_num(np.max(ends), nan=np.inf))


def _normalisation(model: ModelProto) -> tuple[list[onnx.NodeProto], str]:
    """Finds the nodes after the input that only scale and shift the images, and their output tensor."""
    constants = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[onnx.NodeProto] = []
    input_name = model.graph.input[0].name
    while len(readers.get(input_name, [])) == 1:
        (node,) = readers[input_name]
        if node.op_type not in _NORMALISING or not constants.issuperset(set(node.input) - {input_name}):
            break
        found.append(node)
        (input_name,) = node.output
    return found, input_name
