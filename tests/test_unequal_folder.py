"""A small unequal folder through the command line: what decides, what is told, and why there is no gain."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main

RECIPE = """
data: {dataset: imagefolder, image_size: 16, batch_size: auto, workers: 0}
teacher: {model: cifar/resnet8, epochs: 1, min_top1: 0}
student: {model: cifar/resnet8}
method: {name: kd}
train: {epochs: auto, max_steps: 3, threads: 1}
optim: {lr: 0.05}
bench: {rounds: 1}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    work = tmp_path_factory.mktemp("unequal")
    generator = torch.Generator().manual_seed(0)
    for name, count in (("intact", 60), ("broken", 20)):
        (work / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 128 if name == "intact" else 256, (16, 16, 3), generator=generator)
            Image.fromarray(pixels.byte().numpy()).save(work / "images" / name / f"{number}.png")
    (work / "recipe.yaml").write_text(RECIPE)
    arguments = [
        "distill", "--recipe", work / "recipe.yaml", "--data", work / "images", "--out", work / "run",
        "--baseline",
    ]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result, work / "run"


def results(run):
    return json.loads((run / "results.json").read_text())


def test_unequal_classes_and_resolved_values_are_told_before_the_training(done):
    told, _ = done
    assert "the classes are unequal: 'intact' has 48 training images, 'broken' has 16" in told.stderr
    assert "data.batch_size: auto is 32 for epochs of 64 images" in told.stderr
    assert "train.epochs: auto is 300, 600 optimiser steps" in told.stderr


def test_the_recipe_of_the_run_holds_the_resolved_values(done):
    text = (done[1] / "recipe.yaml").read_text()
    assert "batch_size: 32" in text
    assert "epochs: 300" in text
    assert "lr: 0.00625" in text


def test_balanced_top1_decides(done):
    student = results(done[1])["student"]
    assert student["decides"] == "balanced_top1"
    line = json.loads((done[1] / "log.jsonl").read_text().splitlines()[-1])
    assert {"top1", "balanced_top1"} <= line["held_out"].keys()
    gates = [gate["gate"] for gate in json.loads((done[1] / "gates.json").read_text())["gates"]]
    assert "teacher_balanced_top1" in gates
    assert done[0].stdout.split("\n")[0].split()[:2] == ["balanced", "top-1"]


def test_a_run_without_a_gain_names_the_cause_everywhere(done):
    told, run = done
    gain = results(run)["gain"]
    assert gain["figure"] == "balanced_top1"
    assert gain["cause"]["key"] == "cut_short"
    sentence = "cut off after 3 steps (train.max_steps)"
    assert sentence in told.stdout
    assert sentence in (run / "report.html").read_text()
    assert "cut off after 3 steps" in (run / "README.md").read_text()


def test_statistics_are_re_estimated_for_student_teacher_and_baseline(done):
    for folder in (done[1], done[1] / "baseline"):
        facts = results(folder)["training"]["bn_statistics"]
        assert facts["images"] == 64
        assert set(facts["held_out"]) == {"running", "re-estimated"}


def test_a_resume_of_the_finished_run_says_the_same(done):
    _, run = done
    arguments = [
        "distill", "--recipe", run.parent / "recipe.yaml", "--data", run.parent / "images", "--out", run,
        "--baseline", "--resume",
    ]  # fmt: skip
    again = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert again.exit_code == 0, again.output
