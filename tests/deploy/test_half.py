from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from small_student import images
from spoilt import CLASSES, PLAIN, calibrated, pictures, written
from torch import nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.float_graph import outputs
from kdcompress.deploy.half import LARGEST, convert_to_fp16, in_float16, largest_activation
from kdcompress.deploy.layer_noise import snr_db


@pytest.fixture(scope="module")
def source(run):
    """The `student.onnx` of a residual network."""
    return run[0] / "student.onnx"


@pytest.fixture(scope="module")
def half(source):
    return convert_to_fp16(source)


def kinds(model):
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_weights_are_float16_between_an_input_and_an_output_in_float32(half):
    assert len(in_float16(half)) == 10
    (images_,), (logits,) = half.graph.input, half.graph.output
    assert {value.type.tensor_type.elem_type for value in (images_, logits)} == {TensorProto.FLOAT}
    assert (images_.name, logits.name) == ("images", "logits")
    assert images_.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_images_are_normalised_in_float32(half):
    first, second, third = half.graph.node[:3]
    assert [first.op_type, second.op_type, third.op_type] == ["Sub", "Div", "Cast"]
    assert {kinds(half)[name] for name in ("mean", "std")} == {TensorProto.FLOAT}
    assert {kind for name, kind in kinds(half).items() if "weight" in name} == {TensorProto.FLOAT16}


def test_the_file_is_valid_half_the_size_and_near_the_float_one(source, half):
    onnx.checker.check_model(half, full_check=True)
    sizes = [sum(t.ByteSize() for t in model.graph.initializer) for model in (half, onnx.load(source))]
    assert 0.49 < sizes[0] / sizes[1] < 0.55
    x = images(40).numpy()
    assert 45 < snr_db(outputs(onnx.load(source), x), outputs(half, x)) < 100


def test_equal_files_give_equal_bytes_and_the_source_stays(source, half):
    before = source.read_bytes()
    assert convert_to_fp16(source).SerializeToString(deterministic=True) == half.SerializeToString(
        deterministic=True
    )
    assert source.read_bytes() == before


def test_weights_are_rounded_to_the_nearest_float16(source, half):
    exact = {t.name: numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            np.testing.assert_array_equal(
                numpy_helper.to_array(tensor), exact[tensor.name].astype(np.float16), tensor.name
            )


def test_a_network_that_normalises_nothing_is_halved_from_its_first_layer(tmp_path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, CLASSES, 4)

        def forward(self, x):
            return self.conv(x).flatten(1)

    nothing = InputSpec(3, 4, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = onnx.load(written(Bare(), tmp_path / "a.onnx", nothing))
    # As another exporter would leave it.
    nodes = [node for node in model.graph.node if node.op_type not in {"Sub", "Div"}]
    nodes[0].input[0] = "images"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "b.onnx")
    half = convert_to_fp16(tmp_path / "b.onnx")
    assert half.graph.node[0].op_type == "Cast"
    onnx.checker.check_model(half, full_check=True)
    x = pictures(6).numpy()
    np.testing.assert_allclose(outputs(half, x), outputs(model, x), rtol=1e-2, atol=1e-3)


def test_the_largest_activation_is_that_of_any_tensor(quiet_file, loud_file):
    x = torch.cat([torch.from_numpy(batch) for batch in calibrated().batches])
    network = (x - torch.tensor(PLAIN.mean).view(1, 3, 1, 1)) / torch.tensor(PLAIN.std).view(1, 3, 1, 1)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(loud_file).graph.initializer}
    maps = torch.nn.functional.conv2d(
        network, *(torch.from_numpy(weights[f"network.conv.{kind}"].copy()) for kind in ("weight", "bias"))
    )
    assert largest_activation(loud_file, calibrated()) == pytest.approx(float(maps.abs().max()), rel=1e-4)
    assert largest_activation(quiet_file, calibrated()) < 10 < LARGEST
