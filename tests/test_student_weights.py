"""`student.weights` from the command line to the run folder: auto, random, and weights by name."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from published_weights import MODEL, NAME, publisher
from two_processes import TESTS, run_two

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.errors import WorldError
from kdcompress.recipe import load_recipe
from kdcompress.run.auto import keep_recorded

RECIPE = f"""
data: {{dataset: imagefolder, image_size: 32, batch_size: 4, workers: 0}}
teacher: {{model: cifar/resnet8, epochs: 1, min_top1: 0}}
student: {{model: {MODEL}}}
method: {{name: kd}}
train: {{epochs: 1, max_steps: 1, threads: 1}}
optim: {{lr: 0.05}}
export: {{formats: [safetensors]}}
bench: {{rounds: 1}}
"""


def write_folder(folder):
    """Writes a recipe and a folder of 24 images of two classes."""
    generator = torch.Generator().manual_seed(0)
    for number in range(24):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        place = folder / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
    (folder / "small.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def work(tmp_path, downloads):
    return write_folder(tmp_path)


def distill(work, *more):
    arguments = ("--recipe", work / "small.yaml", "--data", work / "images", "--out", work / "run", *more)
    return CliRunner().invoke(main, ["distill", *map(str, arguments)])


def recorded(work, *below):
    student = load_recipe(str(work.joinpath("run", *below, "recipe.yaml"))).student
    return student.weights, student.sha256


@pytest.mark.exhaustive
def test_student_and_baseline_start_from_published_weights_and_the_run_folder_says_so(work, monkeypatch):
    with publisher(monkeypatch) as published:
        done = distill(work, "--baseline")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("Note: student.weights: auto: the student starts from IMAGENET1K_V1") == 1
    assert recorded(work) == recorded(work, "baseline") == (NAME, published.sha256)
    for folder in (work / "run", work / "run" / "baseline"):
        entry = json.loads((folder / "manifest.json").read_text())["student"]
        assert entry["license"].startswith("Trained on ImageNet-1K")
        assert entry == {
            "model": MODEL, "weights": NAME, "sha256": published.sha256, "license": entry["license"]
        }  # fmt: skip
    page, card = ((work / "run" / name).read_text() for name in ("report.html", "README.md"))
    assert published.sha256 in page
    assert entry["license"] in page
    assert "Student: started from IMAGENET1K\\_V1: Trained on ImageNet-1K" in card


def test_a_resume_keeps_random_weights_when_the_download_works_again(work, monkeypatch):
    def fail(*_):
        raise WorldError("stopped by the test")

    with monkeypatch.context() as patch:
        patch.setenv("KDCOMPRESS_OFFLINE", "1")
        patch.setattr(pipeline, "run_training", fail)
        done = distill(work)
    assert (done.exit_code, recorded(work)) == (5, ("random", None))
    assert "the student starts from random weights. Pass a file with --set student.weights=" in done.stderr
    with publisher(monkeypatch) as published:
        done = distill(work, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "student.weights: auto" not in done.stderr
    assert (published.requests, recorded(work)) == (0, ("random", None))
    manifest = json.loads((work / "run" / "manifest.json").read_text())
    assert manifest["student"] == {"model": MODEL, "weights": "random", "sha256": None, "license": None}
    assert "started from" not in (work / "run" / "README.md").read_text()


@pytest.fixture
def checked(monkeypatch):
    """Ends a run after its checks; the list holds the run's recipe."""
    recipes = []
    monkeypatch.setattr(pipeline, "_run_to_end", lambda run, **_: recipes.append(run.recipe))
    return recipes


@pytest.mark.parametrize("text", ["random", "null"])
def test_random_weights_download_nothing(work, monkeypatch, checked, text):
    with publisher(monkeypatch) as published:
        distill(work, "--set", f"student.weights={text}")
    assert published.requests == 0
    assert checked[0].student.initial_weights is None


def test_weights_by_name_are_an_error_without_network(work, monkeypatch, checked):
    with publisher(monkeypatch):
        pass  # its address remains
    done = distill(work, "--set", f"student.weights={NAME}")
    assert (done.exit_code, checked) == (5, [])
    assert "cannot be reached (Connection refused)" in done.stderr
    assert not (work / "run").exists()


def test_another_file_than_recorded_is_refused(work, monkeypatch, checked):
    with publisher(monkeypatch) as published:
        settings = ("--set", f"student.weights={NAME}", "--set")
        distill(work, *settings, f"student.sha256={published.sha256}")
        assert len(checked) == 1
        done = distill(work, *settings, f"student.sha256={'0' * 64}")
    assert (done.exit_code, len(checked)) == (2, 1)
    assert f"student.sha256: {'0' * 64} is expected, but IMAGENET1K_V1 is another file" in done.stderr
    assert published.sha256 in done.stderr


def test_an_added_peer_starts_from_the_students_weights_with_a_classifier_of_its_own(
    work, monkeypatch, checked
):
    with publisher(monkeypatch) as published:
        done = distill(work, "--method", "dml", "--set", "student.weights=auto")
    assert len(checked) == 1, done.stderr
    assert (checked[0].student.sha256, checked[0].peers[0].weights) == (published.sha256, NAME)
    assert "Note: student.weights: auto: student and peers start from IMAGENET1K_V1" in done.stderr


def test_a_resumed_run_keeps_the_weights_that_its_peers_were_given(work, monkeypatch, checked):
    with publisher(monkeypatch) as published:
        distill(work, "--method", "dml", "--set", "student.weights=auto")
        (begun,) = checked
        requested = begun.replace(
            student=begun.student.model_copy(update={"weights": "auto", "sha256": None}),
            peers=[begun.peers[0].model_copy(update={"weights": None, "sha256": None})],
        )
    assert begun.peers[0].sha256 == published.sha256
    assert keep_recorded(requested, begun) == begun


@pytest.mark.parametrize("first_is_offline", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_two_processes_start_from_the_first_ones_choice(tmp_path, first_is_offline):
    write_folder(tmp_path)
    (tmp_path / "offline").write_text("0" if first_is_offline else "1")
    first, second = run_two(TESTS / "two_students.py", tmp_path)
    assert first == second
    assert (first["weights"] == NAME) is not first_is_offline
