"""An ONNX file alone says its precision, its size and what it computes, as does the network behind it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from deploy.small_student import randomise
from onnx import TensorProto, helper, numpy_helper

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.graph_size import graph_facts
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import UserError
from kdcompress.networks.build import build


def _saved(path, nodes, weights, *, shape=("batch", 3, 8, 8), outputs=1):
    entry = helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))
    leave = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [entry], leave, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def _convolution(path, **fields):
    """5 channels of 3×3 over 3 channels, stride 2, then a classifier of 4 classes over 5 × 4 × 4."""
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["map"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Flatten", ["map"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "c"], ["logits"], transB=1),
    ]
    weights = {
        "w": np.zeros((5, 3, 3, 3), np.float32),
        "b": np.zeros(5, np.float32),
        "v": np.zeros((4, 80), np.float32),
        "c": np.zeros(4, np.float32),
    }
    return _saved(path, nodes, weights, **fields)


def test_a_convolution_and_a_classifier_are_counted_by_hand(tmp_path):
    facts = graph_facts(_convolution(tmp_path / "a.onnx"))
    assert facts.parameters == 5 * 3 * 9 + 5 + 4 * 80 + 4
    assert facts.macs == 4 * 4 * 5 * 3 * 9 + 4 * 80
    assert (facts.precision, facts.input_shape) == ("fp32", (3, 8, 8))


def test_groups_and_transposed_convolutions_and_matrix_products(tmp_path):
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["map"], group=3),
        helper.make_node("ConvTranspose", ["map", "t"], ["larger"]),
        helper.make_node("ReduceMean", ["larger", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "v"], ["product"]),
        helper.make_node("Add", ["product", "c"], ["logits"]),
    ]
    weights = {
        "w": np.zeros((3, 1, 3, 3), np.float32),  # 6×6 after it
        "t": np.zeros((3, 2, 2, 2), np.float32),
        "axes": np.array([2, 3]),
        "v": np.zeros((2, 7), np.float32),
        "c": np.zeros(7, np.float32),
    }
    facts = graph_facts(_saved(tmp_path / "a.onnx", nodes, weights))
    assert facts.macs == 6 * 6 * 3 * 9 + 6 * 6 * 3 * 2 * 4 + 2 * 7
    assert facts.parameters == 27 + 24 + 14 + 7


@pytest.mark.parametrize(
    "name", ["cifar/resnet8", pytest.param("torchvision/mobilenet_v3_small", marks=pytest.mark.exhaustive)]
)
def test_an_exported_network_counts_as_the_one_it_was_made_from(tmp_path, name):
    network = build(name, num_classes=4, channels=3, image_size=(32, 32)).eval()
    randomise(network)  # equal tensors, as of a fresh batch norm, are stored once
    onnx_format.write(
        network, InputSpec(3, 32, 32, (0.5,) * 3, (0.25,) * 3), tmp_path / "a.onnx", metadata={}
    )
    facts = graph_facts(tmp_path / "a.onnx")
    assert facts.macs == count_macs(network, 3, 32, 32)
    assert facts.parameters == pytest.approx(count_parameters(network), rel=0.01)  # batch norm is folded
    assert facts.precision == "fp32"


def test_int8_and_fp16_are_told_from_the_graph(tmp_path):
    quantised = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["weight"], axis=0),
        helper.make_node("Conv", ["images", "weight"], ["logits"]),
    ]
    weights = {
        "w": np.zeros((5, 3, 8, 8), np.int8),
        "s": np.ones(5, np.float32),
        "z": np.zeros(5, np.int8),
    }
    facts = graph_facts(_saved(tmp_path / "q.onnx", quantised, weights))
    assert (facts.precision, facts.parameters, facts.macs) == ("int8", 960, 960)
    halves = [
        helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "w"], ["logits"]),
    ]
    facts = graph_facts(_saved(tmp_path / "h.onnx", halves, {"w": np.zeros((5, 3, 8, 8), np.float16)}))
    assert (facts.precision, facts.parameters) == ("fp16", 960)


def test_an_image_size_that_is_left_open_is_asked_for(tmp_path):
    path = _convolution(tmp_path / "a.onnx", shape=("batch", 3, "h", "w"))
    facts = graph_facts(path)
    assert (facts.input_shape, facts.macs) == ((3, None, None), None)
    assert graph_facts(path, (3, 8, 8)).macs == 4 * 4 * 5 * 3 * 9 + 4 * 80


def test_what_is_no_network_of_images_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no protobuf")
    with pytest.raises(UserError, match="not a whole ONNX file"):
        graph_facts(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        graph_facts(tmp_path / "b.onnx")
    with pytest.raises(UserError, match="expected one input of four axes"):
        graph_facts(_convolution(tmp_path / "a.onnx", shape=("batch", 192)))
