"""Reads the size of a network from its ONNX file: precision, input, parameters, multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from kdcompress.deploy.onnx_file import read_onnx
from kdcompress.errors import UserError

_MISFITS = (
    LookupError, ValueError, TypeError, ArithmeticError, StopIteration, RuntimeError,
    onnx.shape_inference.InferenceError, onnx.checker.ValidationError,
)  # fmt: skip
"""Raised on a graph whose parts do not fit together."""
_QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
_PRODUCTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_PRODUCTS |= {"FusedConv": 1, "QLinearConv": 3, "QLinearMatMul": 3, "ConvInteger": 1, "MatMulInteger": 1}
"""Operators whose multiply-accumulates count, and which of their inputs holds the weights."""
_PASSING = frozenset({"DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape"})
"""Through these a weight reaches its operator with as many elements as it has."""
_MOST_AXES = 64
"""Largest number of axes of a tensor; numpy takes as many."""
IMAGE_SHAPE = "preprocess/shape"
"""Of a graph that cuts the images out itself: the constant [0, C, S, S] that says what it has cut."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The size of a network in a file.

    Args:
        precision: "int8" if it quantises, else the type of most of its weights: "fp32", "fp16", "bf16".
        parameters: Elements of the weights that its operators read, each tensor once; batch norm folded into
            a convolution no longer shows.
        macs: Multiply-accumulates of one image, of convolutions and matrix products; None where a size is
            not fixed.
        input_shape: (C, H, W) of the images; None where the file leaves one open.
        pixels: True: it takes them as bytes with the channels last, as a decoder gives them.
    """

    precision: str
    parameters: int
    macs: int | None
    input_shape: tuple[int | None, int | None, int | None]
    pixels: bool = False


def graph_facts(path: Path, shape: tuple[int, int, int] | None = None) -> GraphFacts:
    """Reads a file; the values of its weights stay on the disk where they lie beside it.

    Args:
        path: The `.onnx` file.
        shape: (C, H, W) of the images for which the multiply-accumulates are counted where the file leaves
            it open.

    Raises:
        UserError: It is no ONNX file, or no network of images.
    """
    model = read_onnx(path)
    try:
        return _facts(model, path, shape)
    except _MISFITS as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise UserError(f"{path}: is damaged: its graph does not fit together ({reason:.200})") from None


def _facts(model: ModelProto, path: Path, shape: tuple[int, int, int] | None) -> GraphFacts:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if any(len(tensor.dims) > _MOST_AXES for tensor in weights.values()):
        raise ValueError(f"a weight has more than {_MOST_AXES} axes")  # their product would never end
    inputs = [value for value in model.graph.input if value.name not in weights]
    dimensions = inputs[0].type.tensor_type.shape.dim if inputs else []
    if len(inputs) != 1 or len(dimensions) != 4:
        raise UserError(
            f"{path}: expected one input of four axes (batch, C, H, W), as of an image classifier"
        )
    own = [
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None for axis in dimensions
    ]
    element = inputs[0].type.tensor_type.elem_type
    pixels = element == TensorProto.UINT8 and own[3] in {1, 3} and own[1] not in {1, 3}
    if pixels:
        own = [own[0], own[3], own[1], own[2]]
    read = _weights_read(model)
    requested = shape or (None, None, None)
    fixed = [size or other for size, other in zip(own[1:], requested, strict=True)]
    return GraphFacts(
        precision=_precision(model, [weights[name] for name in read]),
        parameters=sum(math.prod(weights[name].dims) for name in read),
        macs=None if None in fixed else _macs(model, _sizes(fixed, pixels)),
        input_shape=(own[1], own[2], own[3]),
        pixels=pixels,
    )


def _sizes(image: list[int | None], pixels: bool) -> list[int]:
    """Returns the shape of the input with one image (C, H, W) in it."""
    channels, height, width = _known(image)
    return [1, height, width, channels] if pixels else [1, channels, height, width]


def _precision(model: ModelProto, weights: list[TensorProto]) -> str:
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        return "int8"
    names = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    elements: dict[str, int] = {}
    for tensor in weights:
        name = names.get(tensor.data_type, "fp32")
        elements[name] = elements.get(name, 0) + math.prod(tensor.dims)
    return max(elements, key=elements.__getitem__, default="fp32")


def _weights_read(model: ModelProto) -> list[str]:
    """Names of the initializers that products read as weights or biases, and normalisations as theirs."""
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    origins: dict[str, str] = {}
    found: dict[str, None] = {}

    def origin(name: str) -> str:
        """Follows the nodes that only pass a tensor on back to where it comes from, each node once."""
        passed: list[str] = []
        while name not in weights and name in makers and makers[name].op_type in _PASSING:
            if len(passed) > len(makers):
                raise ValueError(f"{name:.100} is computed from itself")
            passed.append(name)
            name = origins.get(name, makers[name].input[0])
        origins.update(dict.fromkeys(passed, name))
        return name

    for node in model.graph.node:
        for name in map(origin, _parameter_inputs(node)):
            if weights.get(name, 0) > 1:  # a single number is a constant
                found[name] = None
    return list(found)


def _parameter_inputs(node: NodeProto) -> Iterator[str]:
    if node.op_type in _PRODUCTS:
        yield node.input[_PRODUCTS[node.op_type]]
        # A quantised product has scales and zero points between its weight and its bias.
        bias = {"QLinearConv": 8}.get(node.op_type, 2)
        if not node.op_type.endswith(("MatMul", "Integer")) and len(node.input) > bias:
            yield node.input[bias]
        if node.op_type == "MatMul":
            yield node.input[0]
    elif node.op_type in {"BatchNormalization", "LayerNormalization", "InstanceNormalization"}:
        yield from node.input[1:3]
    elif node.op_type in {"PRelu", "Add", "Mul"}:
        # The bias of a matrix product, a learned scale or position.
        yield from node.input


def _macs(model: ModelProto, shape: list[int]) -> int | None:
    sized = ModelProto()
    sized.CopyFrom(model)
    for tensor in sized.graph.initializer:
        if tensor.name == IMAGE_SHAPE:
            # Nobody infers that the batch is still the input's, where a size is computed from the input.
            sizes = onnx.numpy_helper.to_array(tensor)
            sizes = np.where(sizes == 0, shape[0], sizes)
            tensor.CopyFrom(onnx.numpy_helper.from_array(sizes, IMAGE_SHAPE))
        if math.prod(tensor.dims) > 1024:  # shapes are computed from small tensors alone
            tensor.ClearField("raw_data")
    weights = {tensor.name for tensor in sized.graph.initializer}
    entry = next(value for value in sized.graph.input if value.name not in weights)
    for axis, size in zip(entry.type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = size
    del sized.graph.value_info[:]
    for output in sized.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        shapes[value.name] = [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]
    total = 0
    for node in inferred.graph.node:
        if node.op_type in _PRODUCTS:
            count = _product(node, shapes)
            if count is None:
                return None
            total += count
    return total


def _product(node: NodeProto, shapes: dict[str, list[int | None]]) -> int | None:
    """Computes the multiply-accumulates of one operator; None if a shape is not known."""
    first, weight, output = (
        shapes.get(name, [None])
        for name in (node.input[0], node.input[_PRODUCTS[node.op_type]], node.output[0])
    )
    sizes = [size for size in (*first, *weight, *output) if size is not None]
    if len(sizes) != len(first) + len(weight) + len(output) or not first or not weight:
        return None
    if node.op_type == "ConvTranspose":
        # Each input element meets every tap of each output channel of its group: [Cin, Cout/groups, kH, kW].
        return math.prod(map(int, _known(first))) * math.prod(map(int, _known(weight)[1:]))
    if "Conv" in node.op_type:
        return math.prod(_known(output)) * math.prod(_known(weight)[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(_known(output)) * _known(first)[0 if transposed else 1]
    return math.prod(_known(output)) * _known(first)[-1]


def _known(sizes: list[int | None]) -> list[int]:
    return [size for size in sizes if size is not None]
