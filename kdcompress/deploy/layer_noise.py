"""Measures the noise that the quantisation of each layer adds to the outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from kdcompress.deploy.float_graph import Layer, outputs
from kdcompress.deploy.formats.onnx import INPUT, PROVIDER
from kdcompress.metrics.split_rows import blocks

CANDIDATES = 16
"""Layers of which it is measured what leaving them in float gives back; chosen by their own noise."""


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """The noise that the quantisation of one layer adds.

    Args:
        layer: Its name.
        own_db: Signal to noise of its input and weights after rounding; the noise of other layers aside.
        gain_db: By how much the signal to noise of the outputs rises if it alone stays in float.
    """

    layer: str
    own_db: float
    gain_db: float

    def to_json(self) -> dict[str, Any]:
        """Builds an entry for documents; an infinite ratio is null."""
        finite = {key: round(value, 2) if math.isfinite(value) else None for key, value in self._figures()}
        return {"layer": self.layer, **finite}

    def _figures(self) -> tuple[tuple[str, float], ...]:
        return ("own_db", self.own_db), ("gain_db", self.gain_db)


def measure_layers(
    exact: ModelProto,
    layers: Sequence[Layer],
    quantise: Callable[[Sequence[str]], ModelProto],
    images: NDArray[np.float32],
    count: int = CANDIDATES,
) -> list[LayerNoise]:
    """Measures the layers that lose most by being quantised and sorts them, the worst first.

    The noise that a layer itself makes finds the candidates; what counts is what the outputs get back when
    one of them stays in float.

    Args:
        exact: The float graph, as it is quantised from.
        layers: Its layers.
        quantise: Gives the graph in int8, but for the layers of these names.
        images: `[B, C, H, W]` in [0, 1].
        count: How many layers are looked at.
    """
    quantised = quantise([])
    own = _own_noise(exact, layers, quantised, images)
    worst = sorted(own, key=lambda name: own[name])[:count]
    expected = outputs(exact, images)
    before = snr_db(expected, outputs(quantised, images))
    found = [
        LayerNoise(name, own[name], snr_db(expected, outputs(quantise([name]), images)) - before)
        for name in worst
    ]
    return sorted(found, key=lambda loss: -loss.gain_db)


def snr_db(expected_NK: NDArray[np.float32], given_NK: NDArray[np.float32]) -> float:
    """Computes the signal to noise of outputs in dB; infinite if they are equal.

    The signal is what tells images apart: the mean of each output over the images is taken off.
    """
    mean_K = expected_NK.mean(0, dtype=np.float64)
    noise = signal = 0.0
    for expected, given in blocks(torch.from_numpy(expected_NK), torch.from_numpy(given_NK)):
        exact = expected.double()
        noise += float((given - exact).square().sum())
        signal += float((exact - torch.from_numpy(mean_K)).square().sum())
    return -_db(noise / signal) if signal > 0 else (math.inf if noise == 0 else -math.inf)


def _own_noise(
    exact: ModelProto, layers: Sequence[Layer], quantised: ModelProto, images: NDArray[np.float32]
) -> dict[str, float]:
    """Measures each layer's signal to noise, of rounded input and rounded weights together, in dB."""
    made_by = {output: node for node in quantised.graph.node for output in node.output}
    rounded = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    float_weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in exact.graph.initializer}
    nodes = {node.name: node for node in quantised.graph.node}
    scales: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    of_weights: dict[str, float] = {}
    for layer in layers:
        data, weight = (made_by.get(name) for name in nodes[layer.node].input[:2])
        if data is None or weight is None:
            continue  # stays in float, so it loses nothing
        scales[layer.source] = rounded[data.input[1]], rounded[data.input[2]]
        of_weights[layer.name] = _share_of_noise(float_weights[layer.weight], _dequantised(weight, rounded))
    of_inputs = _noise_of_inputs(exact, images, scales)
    return {
        layer.name: -_db(of_inputs[layer.source] + of_weights[layer.name])
        for layer in layers
        if layer.name in of_weights
    }


def _dequantised(node: NodeProto, tensors: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Computes the weights that a DequantizeLinear gives."""
    levels, scale, zero = (tensors[name] for name in node.input)
    if scale.ndim:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [-1 if number == axis % levels.ndim else 1 for number in range(levels.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    weights: NDArray[np.float64] = (levels.astype(np.float64) - zero) * scale
    return weights


def _noise_of_inputs(
    model: ModelProto, images: NDArray[np.float32], scales: dict[str, tuple[NDArray[Any], NDArray[Any]]]
) -> dict[str, float]:
    """Measures noise over signal of tensors that are rounded to their scales and zero points."""
    opened = copy.deepcopy(model)
    known = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in scales if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=[PROVIDER])
    noise, signal = dict.fromkeys(scales, 0.0), dict.fromkeys(scales, 0.0)
    for image in images:  # one at a time: all activations of a large network are many
        for name, value in zip(scales, session.run(list(scales), {INPUT: image[None]}), strict=True):
            scale, zero = scales[name]
            bounds = np.iinfo(zero.dtype)
            exact = value.astype(np.float64)
            levels = np.clip(np.rint(exact / scale) + zero, bounds.min, bounds.max)
            noise[name] += float(np.square((levels - zero.astype(np.float64)) * scale - exact).sum())
            signal[name] += float(np.square(exact).sum())
    return {name: noise[name] / signal[name] if signal[name] > 0 else 0.0 for name in scales}


def _share_of_noise(exact: NDArray[Any], given: NDArray[np.float64]) -> float:
    signal = float(np.square(exact.astype(np.float64)).sum())
    return float(np.square(given - exact).sum()) / signal if signal > 0 else 0.0


def _db(ratio: float) -> float:
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf
