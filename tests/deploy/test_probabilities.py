"""The output `probabilities` is added behind the logits, which stay as they were to the bit."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, trained_student

from kdcompress.deploy.calibration import Calibration
from kdcompress.deploy.formats.onnx import graph, open_
from kdcompress.deploy.load import load
from kdcompress.deploy.probabilities import (
    NAME,
    has_probabilities,
    probabilities_gate,
    temperature_in,
    with_probabilities,
    without_probabilities,
)
from kdcompress.deploy.ship import Subject, ship
from kdcompress.deploy.variants import Fp32Reference, to_fp16
from kdcompress.errors import UserError

TEMPERATURE = 1.75


def outputs(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images(7).numpy()}), strict=True))


@pytest.fixture(scope="module")
def student():
    return trained_student()


@pytest.fixture(scope="module")
def plain(student):
    """The student's graph without probabilities; nothing in it is to be changed."""
    return graph(student, SPEC, metadata={})


@pytest.fixture(scope="module")
def shipped(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    subject = Subject(student, MODEL, SPEC, CLASSES, batches, {}, temperature=TEMPERATURE, probabilities=True)
    return folder, ship(subject, folder, formats=["onnx", "openvino", "safetensors"])


def test_the_logits_are_the_same_bits_and_the_probabilities_their_softmax(plain):
    both = with_probabilities(plain, TEMPERATURE)
    onnx.checker.check_model(both, full_check=True)
    got = outputs(both)
    assert list(got) == ["logits", NAME]
    np.testing.assert_array_equal(got["logits"], outputs(plain)["logits"])
    expected = torch.softmax(torch.from_numpy(got["logits"]).double() / TEMPERATURE, 1)
    np.testing.assert_allclose(got[NAME], expected, atol=1e-6)


def test_taking_the_output_off_again_gives_the_graph_of_before(plain):
    both = with_probabilities(plain, TEMPERATURE)
    assert has_probabilities(both)
    assert not has_probabilities(plain)
    assert without_probabilities(both).SerializeToString() == plain.SerializeToString()


@pytest.mark.parametrize("text", ["", "[[", "NaN", "-1", '"2"', "[" * 100_000])
def test_a_damaged_temperature_is_one_message_that_names_the_file(plain, text):
    both = with_probabilities(plain, TEMPERATURE)
    assert temperature_in(plain, "kdcompress.", "a.onnx") is None
    entry = both.metadata_props.add()
    entry.key, entry.value = "kdcompress.temperature", text
    with pytest.raises(UserError, match=r"a\.onnx: kdcompress\.temperature in its metadata: is damaged"):
        temperature_in(both, "kdcompress.", "a.onnx")
    entry.value = "1.5"
    assert temperature_in(both, "kdcompress.", "a.onnx") == 1.5


def test_the_gate_fails_for_another_temperature_and_for_a_file_without_the_output(plain):
    got = outputs(with_probabilities(plain, TEMPERATURE))
    assert probabilities_gate(got, TEMPERATURE).passed
    assert not probabilities_gate(got, 1.0).passed
    assert not probabilities_gate({"logits": got["logits"]}, TEMPERATURE).passed


def test_every_shipped_file_that_can_has_the_output_and_its_gate(shipped):
    folder, done = shipped
    names = {gate.gate for gate in done.gates}
    assert {"probabilities", "openvino_probabilities"} <= names
    assert all(gate.passed for gate in done.gates)
    assert open_(folder / "student.onnx").output_names == ("logits", NAME)
    config = json.loads((folder / "config.json").read_text())
    assert config["temperature"] == TEMPERATURE


@pytest.mark.parametrize("name", ["student.onnx", "student.xml"])
def test_a_loaded_file_gives_its_logits(shipped, student, name):
    network, _ = load(shipped[0] / name)
    with torch.no_grad():
        expected = student.eval()((images(3) - torch.tensor(SPEC.mean).view(1, 3, 1, 1))
                                  / torch.tensor(SPEC.std).view(1, 3, 1, 1))  # fmt: skip
    torch.testing.assert_close(network(images(3)), expected, rtol=1e-3, atol=1e-3)


def test_a_temperature_alone_is_metadata_and_no_output(student, tmp_path):
    subject = Subject(student, MODEL, SPEC, CLASSES, batches, {}, temperature=TEMPERATURE)
    ship(subject, tmp_path, formats=["onnx"])
    file = open_(tmp_path / "student.onnx")
    assert file.output_names == ("logits",)
    assert float(file.metadata["kdcompress.temperature"]) == TEMPERATURE


def test_a_smaller_file_has_the_output_in_float32(shipped, tmp_path):
    exact = Fp32Reference(shipped[0] / "student.onnx", batches)
    variant = to_fp16(exact, Calibration((images(8).numpy(),), 0, "0" * 64), tmp_path)
    assert all(gate.passed for gate in variant.gates), [gate for gate in variant.gates if not gate.passed]
    assert "fp16_probabilities" in {gate.gate for gate in variant.gates}
    assert open_(variant.path).output_names == ("logits", NAME)
