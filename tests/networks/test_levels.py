"""The arithmetic of int8 against onnxruntime's own, and where it lets gradients through."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdcompress.networks.levels import (
    activation_levels,
    rounded_activation,
    rounded_weight,
    to_whole,
    weight_scales,
)


def through_onnxruntime(values, scale, zero, axis=None):
    """values through QuantizeLinear and DequantizeLinear, one by one and not fused."""
    given = {"axis": axis} if axis is not None else {}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["levels"], **given),
            helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["y"], **given),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(values.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(zero, "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {"x": values.numpy()})[0])


def noise(*shape, seed=0, size=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def off_the_ties(values, scale):
    """Without the values that lie half-way between two levels: a product and a quotient differ there."""
    place = (values.double() / scale.double()).frac().abs()
    return (place - 0.5).abs() > 1e-4


@pytest.mark.parametrize(("low", "high"), [(-1.5, 4.0), (0.0, 6.0), (-3.0, 0.0), (2.0, 5.0)])
def test_activations_come_out_bit_for_bit_as_of_onnxruntime(low, high):
    scale, zero = activation_levels(torch.tensor([low]), torch.tensor([high]))
    values = noise(2_000)
    values = values[off_the_ties(values, scale)]
    assert len(values) > 1_900
    ours = rounded_activation(values, scale, zero)
    theirs = through_onnxruntime(values, scale.numpy()[0], zero.to(torch.uint8).numpy()[0])
    assert torch.equal(ours, theirs)
    assert len(ours.unique()) > 50


def test_the_same_levels_serve_int8_with_its_zero_moved():
    scale, zero = activation_levels(torch.tensor([-1.5]), torch.tensor([4.0]))
    values = noise(2_000)
    values = values[off_the_ties(values, scale)]
    theirs = through_onnxruntime(values, scale.numpy()[0], (zero - 128).to(torch.int8).numpy()[0])
    assert torch.equal(rounded_activation(values, scale, zero), theirs)


def test_levels_are_those_of_onnxruntimes_quantiser():
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    ranges = np.float32([[-1.5, 4.0], [0.3, 6.0], [-3.0, -0.1], [0.0, 0.0], [-1e-3, 7e3]])
    scales, zeros = activation_levels(*torch.from_numpy(ranges.T.copy()))
    for (low, high), scale, zero in zip(ranges, scales, zeros, strict=True):
        known_zero, known_scale = compute_scale_zp(low, high, np.uint8(0), np.uint8(255))
        assert scale.item() == np.float32(known_scale)
        assert zero.item() == int(known_zero)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 3, 3), 0), ((6, 2, 3, 3), 1), ((5, 7), 0)])
def test_weights_have_a_scale_per_output_channel_bit_for_bit_as_of_onnxruntime(shape, axis):
    weight = noise(*shape, seed=1)
    weight.select(axis, 1).mul_(100)
    scales = weight_scales(weight, axis, 127)
    assert scales.shape == (shape[axis],)
    assert scales[1] > 20 * scales[0]
    theirs = through_onnxruntime(weight, scales.numpy(), np.zeros(len(scales), np.int8), axis)
    assert torch.equal(rounded_weight(weight, axis), theirs)


def test_a_channel_of_zeros_stays_zero_and_seven_bits_have_64_steps():
    weight = torch.stack([torch.zeros(5), torch.linspace(-1, 1, 5)])
    assert torch.equal(rounded_weight(weight, 0)[0], torch.zeros(5))
    steps = rounded_weight(noise(1, 4_000), 0, bits=7) / weight_scales(noise(1, 4_000), 0, 64)
    assert steps.round().abs().max() == 64
    assert rounded_weight(noise(1, 4_000), 0, bits=7).unique().numel() <= 129


def test_gradients_pass_where_a_value_is_within_the_range_and_nowhere_else():
    scale, zero = activation_levels(torch.tensor([-1.0]), torch.tensor([1.0]))
    values = torch.tensor([-2.0, -0.9, 0.0, 0.33, 0.99, 1.5], requires_grad=True)
    rounded_activation(values, scale, zero).backward(torch.arange(1.0, 7.0))
    assert values.grad.tolist() == [0, 2, 3, 4, 5, 0]
    weight = noise(3, 4).requires_grad_()
    rounded_weight(weight, 0).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 4))


def test_a_bias_becomes_whole_multiples_of_its_unit():
    bias, unit = torch.tensor([0.26, -0.9, 3.0]), torch.tensor([0.25, 0.5, 0.0])
    assert (bias + to_whole(bias, unit)).tolist() == [0.25, -1.0, 3.0]


def test_the_helper_runs_the_pair_that_it_names():
    assert onnx.__version__
    assert through_onnxruntime(torch.tensor([0.6]), np.float32(1), np.uint8(0)).item() == 1
