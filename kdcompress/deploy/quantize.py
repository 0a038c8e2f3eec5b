"""int8: quantises an exported graph (static QDQ) and measures the noise of its layers.

Weights are signed and have a scale per output channel; activations have one scale per tensor, from the
ranges seen on real images. Whatever onnxruntime can quantise is quantised: around each operator that stays in
float it converts back and forth, so partial policies come out slower (measured: 2.2 against 1.4 times faster
for MobileNetV2).
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from kdcompress.deploy import ort_tools as ort
from kdcompress.deploy.calibration import Calibration
from kdcompress.deploy.float_graph import (
    WITH_WEIGHTS,
    Ranges,
    clean_graph,
    layers_of,
    measured_ranges,
    prepare_graph,
)
from kdcompress.deploy.layer_noise import CANDIDATES, LayerNoise, measure_layers
from kdcompress.errors import UserError

Target = Literal["x86", "x86-novnni", "arm"]

OPERATORS = sorted({*ort.QDQRegistry, *ort.QLinearOpsRegistry})
"""All that onnxruntime quantises by default."""
ANALYSED = 32
"""Images on which it is seen what each layer loses."""

_HAND_ON = frozenset({"Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
"""What gives no more levels than it gets. A Relu or Clip may also be done by the rounding alone; where that
goes, it must be kept."""


class Quantiser:
    """A float graph with the ranges of its activations, to be quantised in one way or another.

    Args:
        source: The ONNX file, with the normalisation in its graph.
        images: Images to measure the ranges on.
        target: Processor kind it is made for: unsigned activations on x86, signed ones on ARM. Without VNNI
            the sums of two products saturate at 16 bits, so the weights get 7 bits.
        ranges: From the least to the greatest value seen, or cut at the 99.999th percentile.

    Attributes:
        layers: Those with weights, in the graph's order.
    """

    def __init__(self, source: Path, images: Calibration, target: Target, ranges: Ranges = "minmax") -> None:
        self.images, self.target = images, target
        self.made_from = onnx.load(source)
        self._prepared = prepare_graph(source)
        self.layers = tuple(layers_of(self._prepared))
        self._ranges = measured_ranges(self._prepared, images, ranges, OPERATORS)

    def graph(self, in_float: Collection[str] = ()) -> ModelProto:
        """Quantises the graph and keeps the source's metadata; equal inputs give equal bytes.

        Args:
            in_float: Names of layers that are not quantised: neither their weights nor their input.

        Raises:
            NetworkError: It cannot be quantised.
        """
        left = self._left_in_float(in_float)
        with ort.quiet_ort_tools():
            quantiser = ort.QDQQuantizer(
                copy.deepcopy(self._prepared),
                per_channel=True,
                reduce_range=self.target == "x86-novnni",
                weight_qType=ort.QuantType.QInt8,
                activation_qType=ort.QuantType.QInt8 if self.target == "arm" else ort.QuantType.QUInt8,
                tensors_range=copy.deepcopy(self._ranges),
                nodes_to_quantize=[],
                nodes_to_exclude=left,
                op_types_to_quantize=OPERATORS,
                extra_options={},
            )
            quantiser.quantize_model()
        model: ModelProto = quantiser.model.model
        _read_in_float(model, left)
        _give_outputs_in_float(model)
        _drop_unread(model)
        return clean_graph(model, self.made_from)

    def measure_layers(self, count: int = CANDIDATES) -> list[LayerNoise]:
        """Measures the layers that lose most by being quantised and sorts them, the worst first.

        Args:
            count: How many are looked at.
        """
        return measure_layers(self._prepared, self.layers, self.graph, self.images.first(ANALYSED), count)

    def _left_in_float(self, layers: Collection[str]) -> list[str]:
        """Lists the nodes of these layers, and those before them that only hand on rounded tensors."""
        made_by = {output: node for node in self._prepared.graph.node for output in node.output}
        found = []
        for layer in self.layers:
            if layer.name in layers:
                found.append(layer.node)
                before = made_by.get(layer.source)
                while before is not None and before.op_type in _HAND_ON:
                    found.append(before.name)
                    before = made_by.get(before.input[0])
        return list(dict.fromkeys(found))


def in_int8(model: ModelProto) -> set[str]:
    """Returns the names of the nodes whose weights are int8."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in WITH_WEIGHTS
        and node.input[1] in made_by
        and made_by[node.input[1]].op_type == "DequantizeLinear"
        and types.get(made_by[node.input[1]].input[0]) == TensorProto.INT8
    }


def check_rescue(source: Path, count: int) -> None:
    """Refuses to leave so many layers in float that none would be int8.

    Raises:
        UserError: The network has no more layers than that.
    """
    if count == 0:
        return
    there = len(list(layers_of(prepare_graph(source))))
    if count >= there:
        raise UserError(
            f"--int8-rescue {count}: the network has {there} layers with weights, and at least one must be "
            f"int8; give at most {there - 1}"
        )


def _read_in_float(model: ModelProto, nodes: Collection[str]) -> None:
    """Lets nodes read what was there before it was rounded for them."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in nodes and (rounding := _rounding_of(node.input[0], made_by)) is not None:
            node.input[0] = rounding.input[0]


def _give_outputs_in_float(model: ModelProto) -> None:
    """Takes the rounding off the graph's own outputs: 256 levels would make ties of close logits."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for output in model.graph.output:
        rounding = _rounding_of(output.name, made_by)
        if rounding is None:
            continue
        exact, restoring = rounding.input[0], made_by[output.name]
        restoring.output[0] = f"{output.name}_rounded"
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [output.name if name == exact else name for name in names]


def _rounding_of(name: str, made_by: dict[str, NodeProto]) -> NodeProto | None:
    """Finds the QuantizeLinear of a tensor that a DequantizeLinear after it gives."""
    restoring = made_by.get(name)
    if restoring is None or restoring.op_type != "DequantizeLinear":
        return None
    rounding = made_by.get(restoring.input[0])
    return rounding if rounding is not None and rounding.op_type == "QuantizeLinear" else None


def _drop_unread(model: ModelProto) -> None:
    """Takes out the nodes and tensors that nobody reads any more."""
    output_names = {output.name for output in model.graph.output}
    while True:
        read = {name for node in model.graph.node for name in node.input} | output_names
        idle = [node for node in model.graph.node if not read.intersection(node.output)]
        if not idle:
            break
        for node in idle:
            model.graph.node.remove(node)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
