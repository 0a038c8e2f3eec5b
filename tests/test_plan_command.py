"""`plan` measures a few steps of the run that it is asked about, and keeps nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.tools.plan import SCHEMA, _advice, _shares
from kdcompress.tools.stopwatch import Measured

SMALL = ("--set", "train.epochs=40", "--set", "data.batch_size=200")
TEACHER = ("--set", "teacher.model=cifar/resnet14", "--set", "teacher.epochs=3")


def planned(*arguments, code=0, teacher=TEACHER):
    done = CliRunner().invoke(main, ["plan", "quickstart", *SMALL, *teacher, *arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def forecast(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(tmp_path_factory.mktemp("here"))
        document = json.loads(planned("--steps", "4", "--json", "-q").stdout)
        assert not list(Path().iterdir())
    return document


def test_it_says_how_fast_how_long_and_how_large(forecast):
    assert forecast["schema"] == SCHEMA
    assert (forecast["images"], forecast["batch_size"]) == (1437, 200)
    assert (forecast["steps_per_epoch"], forecast["epochs"]) == (7, 40)
    assert forecast["images_per_s"] == pytest.approx(200 / forecast["step_ms"] * 1000)
    assert forecast["peak_memory_bytes"] > 100e6
    seconds = forecast["seconds"]
    assert seconds["student"] > 280 * forecast["step_ms"] / 1000
    assert seconds["teacher"] > 0
    assert seconds["preparations"] == 0
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"))


def test_the_parts_of_a_step_add_up(forecast):
    shares = forecast["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["teacher"] > 0.05
    assert shares["student"] > 0.05


def test_batches_that_are_made_in_the_training_itself_cost_their_time():
    measured = Measured(step=1.0, epoch_end=0.0, training_end=0.0)
    assert _shares(measured, 0.5, 0.1, 0.3, beside=False)["data"] == pytest.approx(0.3)
    assert _shares(measured, 0.5, 0.1, 0.3, beside=True)["data"] == 0
    assert _shares(measured, 0.5, 0.1, 0.8, beside=True)["data"] == pytest.approx(0.2)


@pytest.mark.parametrize(("decodes", "settings"), [(True, ["data.pixel_cache=auto"]), (False, [])])
def test_a_pixel_cache_is_advised_where_pictures_are_decoded(decodes, settings):
    plan = {"seconds": {"student": 10.0}, "teacher_cache": None, "shares": {"data": 0.5}}
    measured = Measured(step=1.0, epoch_end=0.0, training_end=0.0)
    advice = _advice(plan, measured, 1.0, 5, 10, 1, decodes=decodes)
    assert [entry["setting"] for entry in advice] == settings


def test_it_says_what_a_cache_would_take_and_save(forecast):
    cache = forecast["teacher_cache"]
    assert (cache["on"], cache["views"], cache["keep"]) == (False, 10, "pooled")
    assert cache["bytes"] == 10 * 1437 * (2 * 64 + 8)
    speedup = {entry["setting"]: entry["speedup"] for entry in forecast["advice"]}["teacher.cache=auto"]
    assert 1 < speedup < 1 / (1 - forecast["shares"]["teacher"])


def test_a_method_without_a_teacher_has_a_forecast_too():
    done = planned("--method", "byot", "--steps", "2", "-q", teacher=())
    assert "Teacher cache" not in done.stdout
    assert "training the student" in done.stdout
    assert "A step: teacher 0 %" in done.stdout


def test_epochs_of_a_single_step_are_measured_too():
    done = planned("--set", "data.batch_size=1000", "--steps", "1", "--json", "-q")
    assert json.loads(done.stdout)["steps_per_epoch"] == 1  # of the teacher there are three in all


def test_the_heads_on_a_teacher_are_part_of_the_time():
    document = json.loads(planned("--method", "sskd", "--steps", "2", "--json", "-q").stdout)
    assert document["seconds"]["preparations"] > 0


def test_what_a_run_would_refuse_is_refused():
    done = planned("--set", "train.epochs=0", code=2)
    assert "train.epochs" in done.output


def test_a_training_without_labels_is_part_of_the_time(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "data: {dataset: digits, labels: none, held_out: 0, batch_size: 64}\n"
        "student: {model: cifar/resnet8}\n"
        "pseudo_labels: {clusters: 6, method: {name: simsiam, width: 32}, epochs: 50}\n"
        "method: {name: none}\ntrain: {epochs: 1, threads: 1}\noptim: {lr: 0.05}\n"
    )
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "mine.yaml"), "--steps", "2", "--json", "-q"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["seconds"]["pretraining"] > found["seconds"]["student"] > 0
    assert found["not_counted"] == ["clustering the features"]
