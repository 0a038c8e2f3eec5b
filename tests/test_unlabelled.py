"""Images without labels, from a folder to a deployable network, as the command line does it."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main
from kdcompress.networks.build import build

RECIPE = """
data: {dataset: imagefolder, image_size: 16, batch_size: 8, workers: 0}
teacher: {model: cifar/resnet8, weights: TEACHER}
student: {model: cifar/resnet8}
method: METHOD
train: {epochs: 2, threads: 1}
optim: {lr: 0.05}
bench: {rounds: 1}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        pixels = torch.randint(0, 256, (20, 20, 3), generator=generator, dtype=torch.uint8)
        pixels[:, : number % 20] //= 4
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{number}.png")
    torch.manual_seed(0)
    network = build("cifar/resnet8", num_classes=3, channels=3, image_size=(16, 16))
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    return tmp_path


def distill(work, method, *more, teacher="teacher.pth"):
    recipe = RECIPE.replace("TEACHER", json.dumps(str(work / teacher)) if teacher else "null")
    (work / "recipe.yaml").write_text(recipe.replace("METHOD", method))
    arguments = [
        "distill", "--recipe", str(work / "recipe.yaml"), "--data", str(work / "images"),
        "--out", str(work / "run"), *more,
    ]  # fmt: skip
    return CliRunner().invoke(main, arguments)


def test_a_classifier_learns_its_teachers_classes_and_is_scored_by_their_agreement(work):
    done = distill(work, "{name: kd, ce_weight: 0}")
    assert done.exit_code == 0, done.stderr
    results = json.loads((work / "run" / "results.json").read_text())
    student = results["student"]
    assert student["top1"] is None
    assert 0 <= student["agreement"] <= 1
    assert "agreement" in done.stdout
    lines = [json.loads(line) for line in (work / "run" / "log.jsonl").read_text().splitlines()]
    assert set(lines[-1]["losses"]) == {"kd"}
    assert set(lines[-1]["held_out"]) == {"agreement", "kl"}
    assert json.loads((work / "run" / "labels.json").read_text()) == ["0", "1", "2"]
    gates = {gate["gate"]: gate for gate in json.loads((work / "run" / "gates.json").read_text())["gates"]}
    assert gates["teacher_outputs_vary"]["passed"]
    page = (work / "run" / "report.html").read_text()
    assert not any(broken in page for broken in ("None %", ">None<", "nan %"))
    assert distill(work, "{name: kd, ce_weight: 0}", "--resume").exit_code == 0

    arguments = ["evaluate", work / "run", "--recipe", work / "recipe.yaml", "--data", work / "images"]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 2
    assert "none of its images has a label to score by" in done.stderr


def test_a_backbone_learns_without_any_label(work):
    done = distill(work, "{name: simreg}")
    assert done.exit_code == 0, done.stderr
    student = json.loads((work / "run" / "results.json").read_text())["student"]
    assert student["top1"] is None
    assert 0 <= student["agreement"] <= 1
    assert json.loads((work / "run" / "labels.json").read_text()) == []


@pytest.mark.exhaustive
def test_a_backbone_learns_without_a_teacher_and_says_which_colours_grey_images_skip(work):
    arguments = [
        "distill", "--recipe", "quickstart", "--method", "moco", "--set", "data.labels=none",
        "--set", "train.max_steps=3", "--set", "bench.rounds=1", "--out", str(work / "run"),
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    said = "the images have one channel, so saturation, hue and grey of the augmentation moco_v2 are skipped"
    assert done.stderr.count(said) == 1
    lines = [json.loads(line) for line in (work / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["losses"].keys() for line in lines] == [{"contrast"}]


@pytest.mark.parametrize(
    ("method", "more", "teacher", "message"),
    [
        ("{name: kd}", [], "teacher.pth", "or let it do without them (--set method.ce_weight=0)"),
        ("{name: at}", [], "teacher.pth", "(--set method.ce_weight=0)"),
        ("{name: dkd}", [], "teacher.pth", "or choose another method"),
        ("{name: crd}", [], "teacher.pth", "or choose another method"),
        ("{name: hsakd, ce_weight: 0}", [], "teacher.pth", "the preparation of its teacher needs labels"),
        ("{name: kd, ce_weight: 0}", [], None, "teacher.weights: required, since the images have no labels"),
        ("{name: kd, ce_weight: 0}", ["--baseline"], "teacher.pth", "--baseline: trains on labels"),
        ("{name: simreg}", ["--baseline"], "teacher.pth", "--baseline: trains on labels"),
        (
            "{name: kd, ce_weight: 0}", ["--set", "teacher.train=always"], "teacher.pth",
            "the teacher would have to be trained here",
        ),
        ("{name: kd}", ["--set", "data.labels=5"], "teacher.pth", "data.labels: 5, and no training"),
    ],
)  # fmt: skip
def test_what_needs_labels_is_refused_before_anything_is_written(work, method, more, teacher, message):
    done = distill(work, method, *more, teacher=teacher)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert not (work / "run").exists()


@pytest.mark.exhaustive
def test_a_few_labels_among_many_images_test_the_teacher(work):
    """Nothing is held out, and an even sample of the training images would mostly miss those with a label."""
    for number in range(40):
        folder = work / "classes" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (work / "images" / f"{number}.png").rename(folder / f"{number}.png")
    more = ("--set", "data.labels=4", "--set", "data.held_out=0", "--set", "teacher.min_top1=0")
    recipe = RECIPE.replace("TEACHER", "null").replace("METHOD", "{name: kd}")
    (work / "recipe.yaml").write_text(recipe.replace("weights: null", "weights: null, epochs: 1"))
    arguments = [
        "distill",
        "--recipe",
        work / "recipe.yaml",
        "--data",
        work / "classes",
        "--out",
        work / "run",
        *more,
    ]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    gates = json.loads((work / "run" / "gates.json").read_text())["gates"]
    tested = next(gate for gate in gates if gate["gate"] == "teacher_top1")
    assert "on 4 training images" in tested["detail"]
