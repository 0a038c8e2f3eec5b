"""`export.calibrate` through the command line: every command takes the files, and refuses what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import kdcompress as package
from kdcompress.cli import main
from kdcompress.deploy.formats.onnx import open_

RECIPE = """
name: calibrated
data: {dataset: digits}
student: {model: cifar/resnet8}
method: {name: none}
train: {epochs: 1, max_steps: 5, threads: 1}
optim: {lr: 0.05}
export: {calibrate: true, int8: true, fp16: true, embed_preprocess: resize}
bench: {rounds: 1}
"""
FILES = ("student.onnx", "student.int8.onnx", "student.fp16.onnx", "student.image.onnx")


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    work = tmp_path_factory.mktemp("calibrated")
    (work / "recipe.yaml").write_text(RECIPE)
    done = kdcompress("distill", "--recipe", work / "recipe.yaml", "--out", work / "run", "-q")
    assert done.exit_code == 0, done.output
    return work / "run"


def document(run, name):
    return json.loads((run / name).read_text())


def test_every_file_has_both_outputs_the_gate_and_the_temperature_of_the_results(run):
    facts = document(run, "results.json")["student"]["calibration"]
    assert facts["temperature"] > 0
    assert facts["fitted_on"]["split"] == "held-out"
    gates = {gate["gate"]: gate["passed"] for gate in document(run, "gates.json")["gates"]}
    for prefix in ("", "int8_", "fp16_", "image_"):
        assert gates[f"{prefix}probabilities"] is True
    for name in FILES:
        file = open_(run / name)
        assert file.output_names == ("logits", "probabilities"), name
        assert float(file.metadata["kdcompress.temperature"]) == facts["temperature"]


def test_the_probabilities_are_the_softmax_at_that_temperature(run):
    temperature = document(run, "results.json")["student"]["calibration"]["temperature"]
    file = open_(run / "student.onnx")
    got = file.outputs(np.random.default_rng(0).random((3, 1, 8, 8), np.float32))
    expected = torch.from_numpy(got["logits"]).div(temperature).softmax(1)
    np.testing.assert_allclose(got["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(got["probabilities"].sum(1), 1, atol=1e-6)


def test_evaluate_bench_and_load_take_the_first_output(run):
    done = kdcompress("evaluate", run / "student.onnx", "--recipe", run / "recipe.yaml", "--json", "-q")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["top1"] == document(run, "results.json")["student"]["top1"]
    done = kdcompress(
        "bench", run / "student.onnx", run / "student.int8.onnx",
        "--threads", 1, "--rounds", 1, "--runtime", "onnxruntime,openvino", "--json", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert not json.loads(done.stdout)["failures"]
    network, spec = package.load(run / "student.onnx")
    images = torch.rand(2, spec.channels, spec.height, spec.width)
    plain, own = package.load(run)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (own.mean, own.std))
    with torch.no_grad():
        torch.testing.assert_close(network(images), plain((images - mean) / std), rtol=1e-3, atol=1e-3)


def test_export_writes_the_output_again(run, tmp_path):
    done = kdcompress("export", run, "--out", tmp_path / "again", "--json", "-q")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again" / "student.onnx").read_bytes() == (run / "student.onnx").read_bytes()


def test_the_page_says_that_the_output_is_there(run):
    assert "second output" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.held_out=0", "export.calibrate: the temperature is fitted on held-out images, and nothing is"),
        ("export.formats=[safetensors]", "export.calibrate: adds an output to ONNX and OpenVINO files"),
        ("export.formats=[onnx,executorch]", "export.calibrate: a file of the format 'executorch' has one"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_written(tmp_path, change, message):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = kdcompress(
        "distill", "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--set", change,
        "--set", "export.int8=false", "--set", "export.fp16=false",
        "--set", "export.embed_preprocess=normalize",
    )  # fmt: skip
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()
