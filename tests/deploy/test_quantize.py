from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from small_student import SPEC, images
from spoilt import CLASSES, calibrated, pictures, written
from torch import nn

from kdcompress.bench.environment import environment
from kdcompress.deploy.float_graph import layers_of, outputs, prepare_graph
from kdcompress.deploy.int8_diagnosis import usual_target
from kdcompress.deploy.layer_noise import LayerNoise, snr_db
from kdcompress.deploy.quantize import Quantiser, check_rescue, in_int8
from kdcompress.errors import UserError


@pytest.fixture(scope="module")
def source(run):
    """The `student.onnx` of a residual network."""
    return run[0] / "student.onnx"


@pytest.fixture(scope="module")
def quantiser(source):
    return Quantiser(source, calibrated(spec=SPEC), "x86")


@pytest.fixture(scope="module")
def graph(quantiser):
    return quantiser.graph()


def tensors(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def makers(model):
    return {name: node for node in model.graph.node for name in node.output}


def weights_of(model, name):
    """(levels, scales) of the layer whose weights are called so."""
    known = tensors(model)
    return known[f"{name}_quantized"], known[f"{name}_scale"]


def test_every_layer_is_int8_with_a_scale_per_output_channel(source, quantiser, graph):
    assert len(quantiser.layers) == 10
    assert in_int8(graph) == {layer.node for layer in quantiser.layers}
    exact = tensors(onnx.load(source))
    for layer in quantiser.layers:
        levels, scales = weights_of(graph, layer.weight)
        assert levels.dtype == np.int8
        assert scales.shape == (len(levels),)
        restored = levels * scales.reshape(-1, *[1] * (levels.ndim - 1))
        assert np.abs(restored - exact[layer.weight]).max() <= scales.max() / 2 * 1.001


def test_the_layers_are_called_as_in_the_network(quantiser):
    names = [layer.name for layer in quantiser.layers]
    assert names[:2] == ["conv1", "layer1.0.conv1"]
    assert names[-1] == "fc"
    macs = {layer.name: layer.macs for layer in quantiser.layers}
    assert macs["conv1"] == 16 * 3 * 3 * 3 * 16 * 16
    assert macs["fc"] == 64 * 5


def test_images_are_normalised_in_float_and_logits_come_out_in_float(graph):
    (first,) = [node for node in graph.graph.node if "images" in node.input]
    assert first.op_type == "Sub"
    assert [graph.graph.input[0].name, graph.graph.output[0].name] == ["images", "logits"]
    kinds = {value.type.tensor_type.elem_type for value in (*graph.graph.input, *graph.graph.output)}
    assert kinds == {TensorProto.FLOAT}
    # 256 levels of a logit would make ties.
    assert makers(graph)["logits"].op_type == "Gemm"


def test_the_file_is_valid_free_in_its_batch_and_near_the_float_one(source, graph):
    onnx.checker.check_model(graph, full_check=True)
    assert [entry.domain for entry in graph.opset_import] == [""]
    expected = outputs(onnx.load(source), images(40).numpy())
    # Products of 8-bit weights saturate where the processor has no VNNI instructions.
    own = Quantiser(source, calibrated(spec=SPEC), usual_target(platform.machine(), environment()["isa"]))
    given = outputs(own.graph(), images(40).numpy())
    assert given.shape == (40, 5)
    assert 15 < snr_db(expected, given) < 60


def test_equal_inputs_give_equal_bytes_whatever_the_hash_seed(source, graph):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\nfrom small_student import SPEC\nfrom spoilt import calibrated\n"
        "from kdcompress.deploy.quantize import Quantiser\n"
        "model = Quantiser(Path(sys.argv[1]), calibrated(spec=SPEC), 'x86').graph()\n"
        "sys.stdout.buffer.write(model.SerializeToString(deterministic=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(Path(__file__).parent)],
        capture_output=True, check=False, env={"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == graph.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("target", "activations", "largest"),
    [("x86", TensorProto.UINT8, 127), ("x86-novnni", TensorProto.UINT8, 64), ("arm", TensorProto.INT8, 127)],
)
def test_the_target_decides_on_signs_and_bits(quiet_file, target, activations, largest):
    model = Quantiser(quiet_file, calibrated(), target).graph()
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    roundings = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {kinds[node.input[2]] for node in roundings} == {activations}
    levels, _ = weights_of(model, "network.conv.weight")
    assert np.abs(levels.astype(int)).max() <= largest
    assert np.abs(levels.astype(int)).max() >= largest - 1


def test_cutting_the_ranges_ignores_a_rare_extreme_and_prints_nothing(quiet_file, capsys):
    scales = {}
    for ranges in ("minmax", "percentile"):
        model = Quantiser(quiet_file, calibrated(400), "x86", ranges).graph()
        scales[ranges] = tensors(model)["div_scale"]
    assert scales["percentile"] <= scales["minmax"]
    assert capsys.readouterr().out == ""


def test_a_layer_left_in_float_keeps_its_weights_its_input_and_the_relu_before_it(quiet_file):
    quantiser = Quantiser(quiet_file, calibrated(), "x86")
    model = quantiser.graph(["fc"])
    assert in_int8(model) == {layer.node for layer in quantiser.layers if layer.name == "conv"}
    given = makers(model)
    (fc,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert fc.input[1] == "network.fc.weight"
    chain, name = [], fc.input[0]
    while given[name].op_type != "Conv":
        chain.append(given[name].op_type)
        name = given[name].input[0]
    assert "Relu" in chain
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(chain)
    onnx.checker.check_model(model, full_check=True)


def test_with_every_layer_in_float_nothing_is_rounded(quiet_file):
    model = Quantiser(quiet_file, calibrated(), "x86").graph(["conv", "fc"])
    assert not {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    x = pictures(20).numpy()
    np.testing.assert_allclose(outputs(model, x), outputs(onnx.load(quiet_file), x), rtol=1e-4, atol=1e-5)


def test_the_layer_that_one_scale_ruins_is_named_and_leaving_it_in_float_mends_it(loud_file):
    quantiser = Quantiser(loud_file, calibrated(), "x86")
    x = pictures(200).numpy()
    expected = outputs(onnx.load(loud_file), x)
    assert snr_db(expected, outputs(quantiser.graph(), x)) < 3
    worst, other = quantiser.measure_layers()
    assert (worst.layer, other.layer) == ("fc", "conv")
    assert worst.gain_db > 20 > abs(other.gain_db)
    assert snr_db(expected, outputs(quantiser.graph(["fc"]), x)) > 25


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The file of a network with two spatial means, two others, a grouped convolution and a product."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 3, padding=1, groups=3)
            self.mix = nn.Linear(4, 4)
            self.fc = nn.Linear(10, CLASSES)

        def forward(self, x):
            x = self.mix(self.conv(x))
            x = x * x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True)
            return self.fc(torch.cat([x.mean((2, 3)), x.mean((1, 3))], 1))

    return written(Mixed(), tmp_path_factory.mktemp("mixed") / "student.onnx")


def test_a_spatial_mean_is_pooled_and_any_other_mean_is_not(mixed):
    model = prepare_graph(mixed)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GlobalAveragePool") == 2
    assert kinds.count("ReduceMean") == 2
    onnx.checker.check_model(model, full_check=True)
    x = pictures(5).numpy()
    np.testing.assert_allclose(outputs(model, x), outputs(onnx.load(mixed), x), rtol=1e-5, atol=1e-6)


def test_layers_are_found_and_measured_also_where_their_weights_came_transposed(mixed):
    found = {layer.name: layer for layer in layers_of(prepare_graph(mixed))}
    assert list(found) == ["conv", "mix", "fc"]
    assert (found["conv"].groups, found["conv"].macs) == (3, 6 * 9 * 16)
    assert (found["mix"].groups, found["mix"].macs) == (1, 6 * 4 * 4 * 4)
    assert found["fc"].macs == 10 * CLASSES


def test_a_damaged_file_is_a_users_mistake(tmp_path):
    (tmp_path / "student.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"onnxruntime's tools fail on it"):
        check_rescue(tmp_path / "student.onnx", 1)


def test_at_least_one_layer_must_become_int8(quiet_file):
    check_rescue(quiet_file, 1)
    with pytest.raises(UserError) as caught:
        check_rescue(quiet_file, 2)
    assert str(caught.value) == (
        "--int8-rescue 2: the network has 2 layers with weights, and at least one must be int8; "
        "give at most 1"
    )


def test_signal_to_noise_is_that_between_images():
    exact = np.array([[1.0, 100.0], [3.0, 100.0]], np.float32)
    assert snr_db(exact, exact) == float("inf")
    # Signal 2, noise 0.02: what the images share, the 100, is no signal.
    assert snr_db(exact, exact + np.float32([0.1, 0])) == pytest.approx(20, abs=1e-3)
    flat = np.zeros((2, 2), np.float32)
    assert snr_db(flat, flat + 1) == -float("inf")


def test_a_ratio_that_is_no_number_is_null_in_a_document():
    assert LayerNoise("a", float("inf"), 1.23456).to_json() == {"layer": "a", "own_db": None, "gain_db": 1.23}


@pytest.mark.exhaustive
def test_the_tools_leave_the_import_path_alone():
    code = (
        "import sys; before = list(sys.path)\nimport kdcompress.deploy.ort_tools\n"
        "assert sys.path == before, set(sys.path) - set(before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_network_stays_as_it_is_when_it_is_quantised(source, quantiser):
    before = source.read_bytes()
    quantiser.graph(["conv1"])
    assert source.read_bytes() == before
    assert quantiser.graph().SerializeToString(deterministic=True) == quantiser.graph().SerializeToString(
        deterministic=True
    )
