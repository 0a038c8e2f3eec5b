from __future__ import annotations

import copy
import logging
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_student import SPEC, images, randomise, trained_student
from torch import nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.graph_gates import graph_gates, paths_in
from kdcompress.deploy.normalised import Deployed
from kdcompress.errors import NetworkError, UserError


class Small(nn.Module):
    """Exports in a second."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def pooled(self, x):
        return self.drop(self.bn(self.conv(x)).relu().mean((2, 3)))

    def forward(self, x):
        return self.fc(self.pooled(x))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network in training mode and its file."""
    torch.manual_seed(0)
    network = randomise(Small()).train()
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    onnx_format.write(network, SPEC, path, metadata={"recipe": "tiny", "kdcompress.teacher": "none"})
    return network, path


def gate(gates, name):
    return next(gate for gate in gates if gate.gate == name)


def test_the_file_is_the_network_in_eval_mode_with_its_normalisation(small):
    network, path = small
    file = onnx_format.open_(path)
    x = images(7).numpy()
    expected = Deployed(copy.deepcopy(network), SPEC).eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(file(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(file(x), file(x))  # no dropout is left


def test_writing_leaves_the_network_in_its_mode(small):
    network, _ = small
    assert all(part.training for part in network.modules())


def test_the_input_is_images_of_any_batch_and_the_output_logits(small):
    graph = onnx.load(small[1]).graph
    (given,), (got,) = graph.input, graph.output
    axes = [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim]
    assert (given.name, axes) == ("images", ["batch", 3, 16, 16])
    assert (got.name, got.type.tensor_type.shape.dim[1].dim_value) == ("logits", 5)


def test_the_metadata_stand_under_one_prefix(small):
    file = onnx_format.open_(small[1])
    assert file.metadata == {"kdcompress.recipe": "tiny", "kdcompress.teacher": "none"}
    assert file.providers == ("CPUExecutionProvider",)
    assert file.opset == 20
    model = onnx.load(small[1])
    assert model.producer_name == "kdcompress"


def test_no_path_of_the_machine_is_in_the_file(small):
    content = small[1].read_bytes()
    for place in (os.getcwd(), sys.prefix, str(Path(torch.__file__).parent), str(small[1].parent)):
        assert place.encode() not in content
    assert list(paths_in(onnx.load(small[1]))) == []


def test_the_same_weights_give_the_same_bytes_whatever_layout_they_have_in_memory(small, tmp_path):
    network, path = small
    twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
    metadata = {"teacher": "none", "recipe": "tiny"}  # another order
    onnx_format.write(twin, SPEC, tmp_path / "twin.onnx", metadata=metadata)
    assert (tmp_path / "twin.onnx").read_bytes() == path.read_bytes()


def test_nothing_is_printed_logged_or_warned(capfd, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        onnx_format.write(Small(1), InputSpec(1, 16, 16, (0.5,), (0.5,)), tmp_path / "a.onnx", metadata={})
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert [path.name for path in tmp_path.iterdir()] == [
        "a.onnx"
    ]  # one file, no report, no external weights
    assert onnx_format.open_(tmp_path / "a.onnx").input_shape == ("batch", 1, 16, 16)


def test_an_opset_is_written_as_asked(small, tmp_path):
    onnx_format.write(small[0], SPEC, tmp_path / "a.onnx", metadata={}, opset=18)
    file = onnx_format.open_(tmp_path / "a.onnx")
    assert file.opset == 18
    assert gate(graph_gates(file, 18), "opset").passed
    assert not gate(graph_gates(file, 19), "opset").passed
    assert onnx.load(tmp_path / "a.onnx").ir_version == 8  # what opset 18 came with: old runtimes refuse more


def test_an_opset_below_the_exporters_is_refused_and_nothing_is_written(small, tmp_path):
    with pytest.raises(UserError, match=r"opset 17 was asked for.*18 and newer"):
        onnx_format.write(small[0], SPEC, tmp_path / "a.onnx", metadata={}, opset=17)
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_auxiliary_outputs_is_refused(tmp_path):
    class Two(Small):
        def forward(self, x):
            return super().forward(x), self.pooled(x)

    with pytest.raises(NetworkError, match=r"one tensor of logits.*gives a tuple"):
        onnx_format.write(Two(), SPEC, tmp_path / "a.onnx", metadata={})


def test_a_network_that_cannot_be_exported_is_one_line_and_prints_no_graph(capfd, tmp_path):
    class Asks(Small):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else 2 * y

    with pytest.raises(NetworkError, match="Asks: cannot be exported to ONNX") as caught:
        onnx_format.write(Asks(), SPEC, tmp_path / "a.onnx", metadata={})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_wrong_image_size_is_one_line(small):
    file = onnx_format.open_(small[1])
    with pytest.raises(UserError, match="fails on input of 1×3×8×8") as caught:
        file(np.zeros((1, 3, 8, 8), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a graph", b"\x08"])
def test_a_file_that_is_no_onnx_is_one_line(tmp_path, content):
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        onnx_format.open_(path)
    assert "a.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_no_classifier_is_refused(tmp_path):
    tensor = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [tensor], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    ])  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="as of an image classifier"):
        onnx_format.open_(tmp_path / "a.onnx")


def changed(path, target, change):
    model = onnx.load(path)
    change(model)
    onnx.save(model, target)
    return onnx_format.open_(target)


def test_a_stack_trace_in_a_node_is_found(small, tmp_path):
    trace = f'File "{sys.prefix}/lib/x.py", line 1'
    file = changed(small[1], tmp_path / "a.onnx", lambda m: setattr(m.graph.node[0], "doc_string", trace))
    found = gate(graph_gates(file, None), "one_file_no_paths")
    assert not found.passed
    assert sys.prefix in found.detail


@pytest.mark.parametrize("value", ["/home/someone/t.pt", "C:\\models\\t.pt", "see file:///x", "at (/a/b)"])
def test_a_path_of_any_machine_in_the_metadata_is_found(small, tmp_path, value):
    file = changed(
        small[1], tmp_path / "a.onnx", lambda m: onnx.helper.set_model_props(m, {"kdcompress.teacher": value})
    )
    assert not gate(graph_gates(file, None), "one_file_no_paths").passed


@pytest.mark.parametrize(
    "value", ["torchvision/resnet101", "and/or", "1/2", "/s", "https://host/a/b", '["a / b"]', "top1: 0.9"]
)
def test_what_is_no_path_is_not_taken_for_one(small, tmp_path, value):
    file = changed(
        small[1], tmp_path / "a.onnx", lambda m: onnx.helper.set_model_props(m, {"kdcompress.teacher": value})
    )
    assert gate(graph_gates(file, None), "one_file_no_paths").passed


def test_a_class_may_be_named_like_a_path(small, tmp_path):
    labels = {"kdcompress.labels": '["/usr/bin/thing"]'}
    file = changed(small[1], tmp_path / "a.onnx", lambda m: onnx.helper.set_model_props(m, labels))
    assert gate(graph_gates(file, None), "one_file_no_paths").passed


def test_an_invalid_graph_fails_the_checker(small, tmp_path):
    def lie(model):
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7  # onnxruntime only warns

    file = changed(small[1], tmp_path / "a.onnx", lie)
    assert not gate(graph_gates(file, None), "onnx_checker").passed


def test_inconsistent_shapes_left_by_an_exporter_are_inferred_anew(small):
    model = onnx.load(small[1])
    info = onnx.helper.make_tensor_value_info(model.graph.node[0].output[0], onnx.TensorProto.FLOAT, [9, 9])
    del model.graph.value_info[:]
    model.graph.value_info.append(info)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(onnx_format._check_model(model), full_check=True)


def test_a_families_student_exports_with_its_trained_statistics(run, student):
    folder, _ = run
    names = {tensor.name for tensor in onnx.load(folder / "student.onnx").graph.initializer}
    assert any("layer1.0.conv1.weight" in name for name in names)  # PyTorch's names, for debugging
    assert trained_student().layer1[0].bn1.running_mean.abs().sum() > 0
