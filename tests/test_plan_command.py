"""`plan` measures a few steps of the run that it is asked about, and keeps nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main
from kdcompress.tools import plan
from kdcompress.tools.plan import SCHEMA
from kdcompress.tools.plan_advice import Length, StepTimes, advice
from kdcompress.tools.stopwatch import Measured, Stopwatch, TimedTeacher

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


def divided(batch, *, overlap):
    return StepTimes.of(1.0, teacher=0.1, student=0.5, batch=batch, overlap=overlap)


def test_batches_that_are_made_in_the_training_itself_cost_their_time():
    assert divided(0.3, overlap=False).data == pytest.approx(0.3)
    assert divided(0.3, overlap=True).data == 0
    assert divided(0.8, overlap=True).data == pytest.approx(0.2)
    for times in (divided(0.3, overlap=False), divided(0.8, overlap=True), divided(9.0, overlap=False)):
        assert times.whole == pytest.approx(1)


def test_a_step_without_the_teacher_may_wait_for_its_batch():
    times = divided(0.55, overlap=True)
    assert times.data == 0
    assert times.with_teacher(0.02, 0.55).whole == pytest.approx(0.92)
    slow = StepTimes.of(1.0, teacher=0.4, student=0.5, batch=0.95, overlap=True)
    assert slow.data == pytest.approx(0.05)
    assert slow.with_teacher(0.0, 0.95).whole == pytest.approx(0.95)
    assert slow.with_batch(0.1).whole == pytest.approx(0.95)


def test_a_setting_is_advised_by_what_it_saves_of_the_whole_training():
    measured = Measured(step=1.0, epoch_end=1.0, evaluation=4.0, first_evaluation=2.0, training_end=3.0)
    length = Length.of(steps=100, epochs=10, evaluate_every=1)
    now = StepTimes(0.5, 0.3, 0.1, 0.1, overlap=False)
    found = advice(now, {"a": now.with_teacher(0.0, 0.1), "b": now}, measured, length, 1)
    whole = 100 + 10 + 40 + 2 + 3
    assert found == [
        {"setting": "a", "speedup": pytest.approx(whole / (whole - 50))},
        {"setting": "train.evaluate_every=5", "speedup": pytest.approx(whole / (whole - 32))},
    ]
    assert Length.of(100, 10, 5).evaluations == 2
    assert Length.of(100, 11, 5).evaluations == 3


def test_an_evaluation_is_told_from_what_else_ends_an_epoch():
    watch = Stopwatch()
    watch.steps = [(9.0, True), (9.0, False), (9.0, False), (1.0, False), (3.0, True), (1.0, False)]
    watch.epoch_ends = [0.5, 6.0, 2.5]
    found = watch.result()
    assert (found.step, found.epoch_end) == (1.0, 2.5)
    assert (found.evaluation, found.first_evaluation) == (2.0, 3.5)


def test_the_time_of_a_teacher_is_that_of_a_steps_passes():
    timed = TimedTeacher(None)
    timed.passes = [9.0, 9.0] * 3 + [1.0, 2.0] * 4
    assert timed.seconds(7) == pytest.approx(3.0)
    assert TimedTeacher(None).seconds(5) == 0


@pytest.mark.parametrize("settings", [{}, {"pixel_cache": "raw"}, {"pixel_cache": "jpeg"}])
def test_pictures_in_files_have_a_forecast_with_and_without_a_pixel_cache(tmp_path, settings, monkeypatch):
    for split, count in (("train", 24), ("test", 8)):
        for number in range(count):
            place = tmp_path / "images" / split / f"class{number % 2}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (300, 400, 3), generator=torch.Generator().manual_seed(number))
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(place)
    keys = "".join(f", {key}: {value}" for key, value in settings.items())
    (tmp_path / "mine.yaml").write_text(
        f"data: {{root: {tmp_path / 'images'}, image_size: 16, batch_size: 8, held_out: 0{keys}}}\n"
        "student: {model: cifar/resnet8, weights: random}\n"
        "method: {name: none}\ntrain: {epochs: 12, threads: 1}\noptim: {lr: 0.05}\n"
    )
    measured = {}
    monkeypatch.setattr(plan, "advice", lambda now, others, *rest: measured.update(others) or [])
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "mine.yaml"), "--steps", "2", "--json", "-q"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["seconds"]["pixel_cache"] > 0) == bool(settings)
    assert ("data.pixel_cache=auto" in measured) == (not settings)


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
    assert "Of the student's training: teacher 0 %" in done.stdout


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
