"""`report` of several runs: the page, what counts as a difference, and what cannot be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from click.testing import CliRunner
from run_folders import write_run

from kdcompress.cli import main
from kdcompress.report.verdict import gain, image_error
from kdcompress.tools.compare_grid import _rows
from kdcompress.tools.grid_plan import Cell

IMAGES = 400


def report(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def change(path, **values):
    document = yaml.safe_load(path.read_text())
    for key, value in values.items():
        section = document
        *outer, last = key.split("__")
        for name in outer:
            section = section[name]
        section[last] = value
    path.write_text(json.dumps(document) if path.suffix == ".json" else yaml.safe_dump(document))


@pytest.fixture
def run(tmp_path):
    """Makes run folders that got so many of the test images right."""

    def make(name, right, **values):
        folder = write_run(tmp_path / name, epochs=3)
        labels = torch.arange(IMAGES) % 10
        classes = labels.clone()
        classes[right:] = (classes[right:] + 1) % 10
        (folder / "checkpoints").mkdir()
        kept = {"classes": classes, "labels": labels}
        safetensors.torch.save_file(kept, folder / "checkpoints" / "test_predictions.safetensors")
        change(folder / "results.json", student__top1=right / IMAGES, student__n=IMAGES)
        change(folder / "recipe.yaml", **{"name": name, **values})
        return folder

    return make


def test_runs_are_compared_with_the_first_on_the_same_images(run, tmp_path):
    folders = [run("plain", 300, method__name="none"), run("kd", 360), run("nearly", 301)]
    done = report(*folders, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["schema"], told["figure"], told["reference"]) == ("kdcompress.comparison/1", "top1", "plain")
    assert [entry["name"] for entry in told["runs"]] == ["plain", "kd", "nearly"]
    plain, kd, nearly = told["runs"]
    assert plain["difference"] is None
    assert plain["why_not"] is None
    assert kd["difference"]["points"] == 15
    assert kd["difference"]["verdict"] == "better"
    assert nearly["difference"]["verdict"] == "no difference shown"
    assert told["differing"] == {"method.name": ["none", "kd", "kd"]}
    assert told["file"] == str(tmp_path / "comparison.html")


def test_the_page_names_every_run_and_what_differs(run, tmp_path):
    out = tmp_path / "page.html"
    done = report(run("a", 300), run("b", 310, optim__lr=0.1), "--out", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["top-1", "%", "against", "a"]
    assert str(out) in done.stdout
    page = out.read_text()
    assert "+2.50 points" in page
    assert "<code>optim.lr</code>" in page
    assert "25.00 %" in page  # the error of a
    assert "http" not in page.replace("http://www.w3.org", "")


def test_several_seeds_are_one_row_paired_by_seed(run, tmp_path):
    for name, rights in (("kd", (350, 354, 358)), ("plain", (340, 341, 342))):
        for seed, right in enumerate(rights):
            run(f"{name}/seeds/{seed}", right)
    told = json.loads(report(tmp_path / "plain", tmp_path / "kd", "--json").stdout)
    kd = told["runs"][1]
    assert kd["top1"] == [0.875, 0.885, 0.895]
    assert kd["mean"] == pytest.approx(0.885)
    assert kd["sd"] == pytest.approx(0.01)
    # The runs differ on 10, 13 and 16 of 400 images, which says less than the spread of the seeds.
    errors = [image_error(gain(np.arange(400) < n, np.zeros(400))) for n in (10, 13, 16)]
    half = 4.3027 * (np.square(errors).mean() / 3) ** 0.5
    assert half > 4.3027 * 0.75 / 3**0.5
    assert kd["difference"] == {
        "points": pytest.approx(3.25), "sd": pytest.approx(0.75), "n": 3, "verdict": "better",
        "ci95": pytest.approx([3.25 - half, 3.25 + half], abs=1e-3),
    }  # fmt: skip


def test_the_seeds_of_one_run_are_compared_with_each_other(run, tmp_path):
    for seed, right in enumerate((350, 354)):
        run(f"kd/seeds/{seed}", right)
    done = report(tmp_path / "kd")
    assert done.exit_code == 0, done.stderr
    assert "+1.00 points" in done.stdout


def test_the_seeds_of_a_run_with_baseline_are_compared_with_the_baselines(run, tmp_path):
    cause = {"sentence": "the teacher is weak", "advice": "--set teacher.epochs=60"}
    for seed, (plain, right) in enumerate(((350, 348), (352, 353))):
        folder = run(f"kd/seeds/{seed}", right)
        unclear = {"points": -0.5, "ci95": [-1, 1], "verdict": "no difference shown", "cause": cause}
        change(folder / "results.json", gain=unclear)
        run(f"kd/seeds/{seed}/baseline", plain, method__name="none")
    told = json.loads(report(tmp_path / "kd", "--json").stdout)
    assert [entry["name"] for entry in told["runs"]] == ["baseline", "student"]
    difference = told["runs"][1]["difference"]
    assert difference["points"] == pytest.approx(-0.125)
    assert difference["n"] == 2
    assert difference["verdict"] == "no difference shown"
    assert told["file"] == str(tmp_path / "kd" / "comparison.html")
    (advice,) = told["advice"]
    assert "the teacher is weak" in advice
    assert "--set teacher.epochs=60" in (tmp_path / "kd" / "comparison.html").read_text()
    assert advice in report(tmp_path / "kd").stdout


def test_unequal_classes_are_compared_by_balanced_top1_with_an_interval(run, tmp_path):
    folders = run("a", 300), run("b", 340)
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        change(folder / "results.json", student={**results["student"], "decides": "balanced_top1"})
    told = json.loads(report(*folders, "--json").stdout)
    assert told["figure"] == "balanced_top1"
    difference = told["runs"][1]["difference"]
    assert difference["figure"] == "balanced_top1"
    assert difference["verdict"] == "better"
    assert "better, with this seed" in report(*folders).stdout


def test_runs_of_other_data_are_not_said_to_differ(run):
    other = run("other", 350)
    change(other / "manifest.json", data__listing_sha256="0" * 64)
    told = json.loads(report(run("a", 300), other, "--json").stdout)
    assert told["runs"][1]["difference"] is None
    assert told["runs"][1]["why_not"] == "other data: not comparable"


def test_other_test_images_and_lost_predictions_are_told(run):
    changed, lost = run("changed", 350), run("lost", 350)
    file = changed / "checkpoints" / "test_predictions.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**tensors, "labels": tensors["labels"].flip(0)}, file)
    (lost / "checkpoints" / "test_predictions.safetensors").unlink()
    told = json.loads(report(run("a", 300), changed, lost, "--json").stdout)
    assert told["runs"][1]["why_not"] == "other test images: not comparable"
    assert told["runs"][2]["why_not"] == "its predictions are gone"


def test_names_that_are_alike_get_their_folders(run):
    told = json.loads(report(run("one/kd", 300), run("two/kd", 310), "--json").stdout)
    assert [entry["name"] for entry in told["runs"]] == ["one/kd", "two/kd"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "a"], "a run is given twice; give each once"),
        (["a", "missing"], "missing: no such run folder"),
        (["a", "b", "--out", "."], "--out .: is a folder; name a file"),
        (["a", "b", "--out", "no/page.html"], "there is no folder no"),
        (["a", "--out", "page.html"], "--out: belongs to the comparison of several runs"),
        (["a", "backbone"], "the runs have no figure in common"),
        (["alone"], "alone: is of one seed and has no baseline, so there is nothing"),
    ],
)
def test_what_cannot_be_compared_is_one_message(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    run("a", 300), run("b", 310), run("alone/seeds/0", 300)
    write_run(tmp_path / "backbone", backbone=True, epochs=3)
    done = report(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not list(tmp_path.glob("*.html"))


def test_a_row_that_lost_a_run_has_no_difference(tmp_path):
    cells = [Cell(m, "cifar/resnet8", f"cells/{m}/seeds/{n}", m, ()) for n in (0, 1) for m in ("none", "kd")]
    for cell in cells:
        write_run(tmp_path / cell.folder, epochs=1)
    whole = _rows(cells, tmp_path, {})
    assert [row.difference is None for row in whole] == [True, False]
    _, kd = _rows(cells, tmp_path, {"cells/kd/seeds/1": "a gate failed"})
    assert len(kd.records) == 1
    assert kd.difference is None
    assert kd.why_not == "a run of it did not ship"
