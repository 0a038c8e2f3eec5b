"""`--qat-epochs` as scripts use it: what it ships, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from kdcompress.cli import main
from kdcompress.deploy import qat_int8
from kdcompress.recipe import load_recipe

TINY = (
    "distill", "--recipe", "quickstart", "--threads", 1, "--set", "train.max_steps=3", "--set",
    "teacher.model=cifar/resnet8", "--set",  # quicker to export than the recipe's
    "train.epochs=2", "--set", "bench.rounds=1", "--set", "teacher.min_top1=0", "--set",
    "export.int8.max_drop=100",
)  # fmt: skip
INT8 = "student.int8.onnx"


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same run with and without tuning, and what the first printed; never changed by a test."""
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        tuned = kdcompress(*TINY, "--qat-epochs", 2, "--out", folder / "tuned")
        assert tuned.exit_code == 0, tuned.stderr
        plain = kdcompress(*TINY, "--out", folder / "plain")
        assert plain.exit_code == 0, plain.stderr
    return folder / "tuned", folder / "plain", tuned.stdout


def initialisers(path):
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer}


def test_the_float_files_are_those_of_a_run_without_tuning(pair):
    tuned, plain, _ = pair
    name = "student.safetensors"
    assert (tuned / name).read_bytes() == (plain / name).read_bytes()
    graphs = [onnx.load(folder / "student.onnx").graph.SerializeToString() for folder in (tuned, plain)]
    assert graphs[0] == graphs[1]
    assert read(tuned, "results.json")["student"] == read(plain, "results.json")["student"]


def test_the_tuning_is_logged_kept_and_told(pair):
    tuned, _, printed = pair
    lines = [json.loads(line) for line in (tuned / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines if line["phase"] != "teacher"] == ["student", "qat"]
    assert 0 < lines[-1]["lr"] < 0.01 * 0.1
    kept = safetensors.torch.load_file(tuned / "checkpoints" / "quantised.safetensors")
    shipped = safetensors.torch.load_file(tuned / "student.safetensors")
    assert kept.keys() == shipped.keys()
    assert not torch.equal(kept["conv1.weight"], shipped["conv1.weight"])
    told = read(tuned, "results.json")["variants"]["int8"]["qat"]
    assert told["epochs"] == 2
    assert told["held_out"]["n"] == 180
    assert {"top1", "drop"} <= told["test"]["ptq"].keys() & told["test"]["qat"].keys()
    assert told["sentence"] in printed
    page = (tuned / "report.html").read_text()
    assert "2 epochs of quantisation-aware tuning" in page


def test_the_better_file_on_held_out_images_ships_and_its_figures_are_told(pair):
    tuned = pair[0]
    entry = read(tuned, "results.json")["variants"]["int8"]
    told = entry["qat"]
    assert told["kept"] == (told["held_out"]["qat"] >= told["held_out"]["ptq"])
    assert entry["top1"] == told["test"]["qat" if told["kept"] else "ptq"]["top1"]
    made = json.loads({p.key: p.value for p in onnx.load(tuned / INT8).metadata_props}["kdcompress.int8"])
    assert ("qat" in made) == told["kept"]


@pytest.fixture(scope="module")
def untuned(pair, tmp_path_factory):
    """The weights of the int8 file of the run without tuning."""
    run = shutil.copytree(pair[1], tmp_path_factory.mktemp("untuned") / "run")
    done = kdcompress("export", run, "--int8", "--max-drop", 100)
    assert done.exit_code == 0, done.stderr
    assert "tuning" not in done.stdout
    return initialisers(run / INT8)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("qat", "kept"), [(0.5, True), (0.4, False)])
def test_of_equals_the_tuned_one_ships_and_an_export_elsewhere_takes_the_same(
    pair, untuned, tmp_path, monkeypatch, qat, kept
):
    run = shutil.copytree(pair[0], tmp_path / "run")
    figures = {"figure": "top1", "n": 180, "fp32": 0.6, "ptq": 0.5, "qat": qat}
    monkeypatch.setattr(qat_int8, "_on_held_out", lambda *_: figures)
    done = kdcompress("export", run, "--int8", "--max-drop", 100)
    assert done.exit_code == 0, done.stderr
    which = "tuned" if kept else "untuned"
    assert f"the file is the {which} one, chosen on 180 held-out images" in done.stdout
    assert (initialisers(run / INT8) == untuned) is not kept
    monkeypatch.setattr(qat_int8, "_on_held_out", lambda *_: None)
    done = kdcompress("export", run, "--int8", "--max-drop", 100, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert initialisers(tmp_path / "out" / INT8) == initialisers(run / INT8)


def test_the_resolved_recipe_repeats_it(pair):
    recipe = load_recipe(str(pair[0] / "recipe.yaml"))
    assert recipe.export.int8.qat_epochs == 2
    assert load_recipe(str(pair[1] / "recipe.yaml")).export.int8.qat_epochs == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("--set", "method.name=byot", "--set", "teacher=null"),
            "export.int8.qat_epochs: learns from the teacher, and the method 'byot' has none",
        ),
        (
            ("--set", "export.int8.ranges=percentile"),
            "qat_epochs tunes for ranges: minmax, and not for percentile",
        ),
        (("--set", "export.formats=[safetensors]"), "export.int8: is made from student.onnx"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(tmp_path, arguments, told):
    done = kdcompress(*TINY, "--qat-epochs", 1, *arguments, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "run").exists()


OF_ITS_OWN = '''
import torch
from torch import nn


class Attending(nn.Module):
    """Its products are computed inside one function, where nothing can be rounded."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 1, batch_first=True)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.fc(x.mean(1))


def attending(num_classes, channels=3, **_):
    return Attending(num_classes, channels)
'''


def test_a_network_that_is_not_seen_through_is_refused_with_the_counts(tmp_path, monkeypatch):
    (tmp_path / "of_its_own.py").write_text(OF_ITS_OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = kdcompress(
        *TINY, "--qat-epochs", 1, "--out", tmp_path / "run", "--allow-code",
        "--set", "student.model=python:of_its_own:attending",
    )  # fmt: skip
    assert done.exit_code == 2, done.stderr
    assert "convolutions, linear layers and matrix products, and of its module" in done.stderr
    assert "--set export.int8.qat_epochs=0" in done.stderr
    assert not (tmp_path / "run").exists()
