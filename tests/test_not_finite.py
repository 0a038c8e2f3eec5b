"""A network whose outputs are NaN or infinite is never scored, timed or shipped: one message, exit code 3."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
from click.testing import CliRunner

from kdcompress.cli import main

FINISHED = Path(__file__).parent / "fixtures" / "e33f4e2" / "finished"


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(params=[float("nan"), 3e38])
def broken(tmp_path, request):
    run = Path(shutil.copytree(FINISHED, tmp_path / "run"))
    tensors = safetensors.torch.load_file(run / "student.safetensors")
    tensors["fc.weight"][3] = request.param
    safetensors.torch.save_file(tensors, run / "student.safetensors")
    return run / "student.safetensors"


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_evaluate_says_how_many_outputs_are_not_finite(broken, json):
    done = kdcompress("evaluate", broken, "--recipe", "quickstart", "-q", *json)
    assert done.exit_code == 3, done.output
    assert "180 of 1,800 outputs are not finite (NaN or infinite), on 180 of 180 images" in done.stderr
    assert not done.stdout


def test_bench_says_so_too(broken):
    done = kdcompress("bench", broken, "--rounds", 1, "--threads", 1, "-q", "--json")
    assert done.exit_code == 3, done.output
    assert "1 of 10 outputs are not finite (NaN or infinite)" in done.stderr


def test_export_of_a_checkpoint_ships_nothing(broken, tmp_path):
    checkpoint = shutil.move(broken, tmp_path / "checkpoint.safetensors")
    options = ("--student", "cifar/resnet8", "--recipe", "quickstart", "--mean", 0.3, "--std", 0.4)
    done = kdcompress("export", checkpoint, *options, "--out", tmp_path / "out", "-q")
    assert done.exit_code == 3, done.output
    if "not finite in float32" in done.stderr:  # NaN weights are refused before anything is computed
        assert not (tmp_path / "out").exists()
        return
    assert "outputs_finite: 180 (limit 0): of 1,800 outputs" in done.stderr
    assert not (tmp_path / "out" / "student.onnx").exists()


@pytest.mark.parametrize("broken", [float("nan")], indirect=True)
def test_weights_that_are_not_finite_end_every_command_that_loads_them_alike(broken, tmp_path):
    checkpoint, out = shutil.move(broken, tmp_path / "checkpoint.safetensors"), tmp_path / "out.safetensors"
    taught = ("--recipe", "quickstart", "--set", "teacher.model=cifar/resnet8")
    commands = [
        ("strip", checkpoint, "--student", "cifar/resnet8", "--out", out),
        ("distill", *taught, "--set", f"teacher.weights={checkpoint}", "--out", out, "-q"),
        ("distill", "--recipe", "quickstart", "--set", f"student.weights={checkpoint}", "--out", out, "-q"),
    ]
    for words in commands:
        done = kdcompress(*words)
        assert done.exit_code == 3, done.output
        assert "'fc.weight' holds values that are not finite" in done.stderr
        assert done.stderr.count("Error: ") == 1
        assert not out.exists()
