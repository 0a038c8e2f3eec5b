"""`data.extra` through a whole run: what the teacher leaves out, who is taught by the rest, what is told."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from click.testing import CliRunner

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.data.batch import Batch, View
from kdcompress.data.dataset import open_data
from kdcompress.errors import RecipeError
from kdcompress.networks.activations import Activations
from kdcompress.recipe import DataSection, ExtraSection, load_recipe
from kdcompress.report import documents
from kdcompress.run import extra_images as step
from kdcompress.run import opening
from kdcompress.run.extra_images import judge_images, least_of_each_class
from kdcompress.train import result_store

ENVIRONMENT = {"listing_sha256": "0", "weights_sha256": None, "environment": {}}


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def recorded(run):
    return json.loads((run / "manifest.json").read_text())


# ---- the filter


def test_of_each_class_the_share_with_the_least_loss_is_kept():
    losses = torch.tensor([0.5, 0.1, 0.9, 0.3, 7.0, 2.0, 5.0])
    classes = torch.tensor([0, 0, 0, 0, 2, 2, 2])
    # Of class 0 the third least of four is 0.5; of class 2 the second least of three... 0.6 of 3 rounds up.
    assert least_of_each_class(losses, classes, 0.75).tolist() == [0, 1, 3, 4, 5, 6]
    assert least_of_each_class(losses, classes, 0.6).tolist() == [0, 1, 3, 5, 6]
    assert least_of_each_class(losses, classes, 0.01).tolist() == [1, 5]
    assert least_of_each_class(losses, classes, 1.0).tolist() == list(range(7))


def test_the_share_is_exact_and_what_equals_the_last_is_kept_too():
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    kept = least_of_each_class(order.float(), torch.zeros(100, dtype=torch.int64), 0.55)
    assert sorted(order[kept].tolist()) == list(range(55))
    alike = torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert least_of_each_class(alike, torch.zeros(4, dtype=torch.int64), 0.25).tolist() == [0, 1, 2]


def test_a_loss_that_is_not_finite_is_the_worst():
    losses = torch.tensor([math.nan, 3.0, math.inf, 2.0])
    assert least_of_each_class(losses, torch.zeros(4, dtype=torch.int64), 0.5).tolist() == [1, 3]
    assert len(least_of_each_class(losses, torch.zeros(4, dtype=torch.int64), 1.0)) == 4


def test_an_image_without_a_label_is_judged_by_the_class_that_the_teacher_gives_it():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 5.0, 1.0], [0.0, 0.0, 3.0]])
    labels = torch.tensor([1, 1, -1])

    def teacher(images):
        return Activations(logits=logits[images[:, 0, 0, 0].long()])

    def batch(*rows):
        images = torch.tensor(rows, dtype=torch.float32).view(-1, 1, 1, 1)
        return Batch((View(images, torch.tensor(rows), -1),), labels[list(rows)], torch.tensor(rows))

    judged = judge_images(teacher, [batch(0, 1), batch(2)])
    assert judged.classes.tolist() == [0, 1, 2]
    assert torch.allclose(judged.losses, F.cross_entropy(logits, torch.tensor([1, 1, 2]), reduction="none"))


# ---- the recipe


def test_a_bare_text_is_the_place_and_set_reaches_into_it(tmp_path):
    file = tmp_path / "mine.yaml"
    document = yaml.safe_load(kdcompress("show", "quickstart").stdout)
    assert document["data"]["extra"] is None
    document["data"]["extra"] = "made.npz"
    file.write_text(yaml.safe_dump(document))
    extra = load_recipe(str(file), ["data.extra.share=0.25"]).data.extra
    assert extra == ExtraSection(root="made.npz", share=0.25, keep=1.0, relabel=False, license=None)
    shown = kdcompress("show", "quickstart", "--set", "data.extra=made.npz")
    assert yaml.safe_load(shown.stdout)["data"]["extra"] == {
        "root": "made.npz", "share": 0.5, "keep": 1.0, "relabel": False, "license": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.extra.root=3", "data.extra.root: expected text, got 3"),
        ("data.extra={share: 0.5}", "data.extra.root: required"),
        ("data.extra={root: a, share: 1}", "data.extra.share: expected less than 1, got 1"),
        ("data.extra={root: a, keep: 0}", "data.extra.keep: expected more than 0, got 0"),
        (
            "data.extra={root: a, ratio: 0}",
            "data.extra.ratio: unknown key; choices: keep, license, relabel, root, share",
        ),
    ],
)
def test_what_is_wrong_with_the_section_is_named(override, problem):
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", [override])
    assert caught.value.problems == (problem,)


def test_filter_and_relabelling_need_a_teacher():
    without = ["method={name: none}", "teacher=null", "data.extra.root=a"]
    assert load_recipe("quickstart", without).data.extra is not None
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", [*without, "data.extra.keep=0.9", "data.extra.relabel=true"])
    assert caught.value.problems == tuple(
        f"data.extra.{key}: asks a teacher, and there is none; leave it out, or choose a method with one"
        for key in ("keep", "relabel")
    )


def test_a_teacher_is_the_same_whatever_is_generated():
    plain = load_recipe("quickstart")
    more = load_recipe("quickstart", ["data.extra={root: a, share: 0.1, relabel: true}"])
    assert result_store.teacher_key(plain, **ENVIRONMENT) == result_store.teacher_key(more, **ENVIRONMENT)


def test_a_longer_recipe_keeps_its_schedule():
    recipe = load_recipe("quickstart", ["optim.milestones=[0.5, 30]", "optim.warmup=3"])
    twice = recipe.lengthened(2.02)
    assert (twice.train.epochs, recipe.train.epochs) == (121, 60)
    assert twice.optim.milestones == [0.5, pytest.approx(60.5)]
    assert twice.optim.warmup == pytest.approx(6.05)
    assert recipe.lengthened(1.0) == recipe


# ---- whole runs


def real_digits():
    data = open_data(DataSection(dataset="digits"))
    return data.train.images[:, 0].numpy(), data.train.labels.numpy()


PER_CLASS, WRONG = 20, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """200 digits moved by a pixel, of which two of twenty in each class bear the next class's number."""
    images, digits = real_digits()
    picked = np.concatenate([np.flatnonzero(digits == c)[:PER_CLASS] for c in range(10)])
    moved, true = np.roll(images[picked], 1, axis=2), digits[picked]
    number = np.arange(len(true)) % PER_CLASS
    wrong = number < WRONG
    labels = np.where(wrong, (true + 1) % 10, true)
    file = tmp_path_factory.mktemp("made") / "moved.npz"
    np.savez(file, images=moved, labels=labels)
    return file, true, labels


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        done = kdcompress(
            "distill", "--recipe", "quickstart", "--baseline", "--out", folder / "run", "--json",
            "--set", "teacher.model=cifar/resnet8", "--set", "teacher.epochs=8", "--set", "train.epochs=1",
            "--set", f"data.extra={{root: {made[0]}, keep: 0.9, relabel: true}}", "--set", "bench.rounds=1",
            "--set", "export.formats=[safetensors]",
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        yield folder / "run"


def chosen(run):
    tensors = safetensors.torch.load_file(run / "checkpoints" / f"{step.STEM}.safetensors")
    return tensors["indices"].numpy(), tensors["labels"].numpy()


def test_the_teacher_leaves_out_what_is_labelled_wrong_and_mends_the_rest(finished, made):
    _, true, labels = made
    kept, given = chosen(finished)
    assert len(kept) == 180
    assert np.isin(np.flatnonzero(labels != true), kept, invert=True).sum() >= 18
    assert (given == true[kept]).mean() > 0.97
    counts = recorded(finished)["data"]["extra"]["counts"]
    assert counts == {
        "images": 200, "labelled": 200, "broken": 0, "kept": 180,
        "relabelled": int((given != labels[kept]).sum()),
    }  # fmt: skip


def test_the_run_says_what_it_was_taught_by(finished):
    data, plain = recorded(finished)["data"], open_data(DataSection(dataset="digits"))
    assert data["extra"]["name"] == "moved.npz"
    assert data["counts"] == plain.counts
    assert data["listing_sha256"] == plain.listing_sha256
    page = (finished / "report.html").read_text()
    assert "moved.npz: images 200, labelled 200, broken 0, kept 180" in page
    assert "on the real images alone and for as many steps" in page
    # An epoch is a pass through 1437 real images, 32 of a batch of 64.
    last = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])
    assert (last["phase"], last["step"]) == ("student", 1437 // 32)


def test_the_baseline_has_the_real_images_alone_and_as_many_steps(finished):
    baseline = finished / "baseline"
    recipe = yaml.safe_load((baseline / "recipe.yaml").read_text())
    assert recipe["data"]["extra"] is None
    assert recipe["train"]["epochs"] == 2
    assert recorded(baseline)["data"]["extra"] is None
    last = json.loads((baseline / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 * (1437 // 64)
    assert not (baseline / "checkpoints" / f"{step.STEM}.safetensors").exists()


def test_no_folder_of_the_machine_goes_into_a_file(made):
    recipe = load_recipe("quickstart", [f"data.extra.root={made[0]}"])
    told = documents.file_metadata(recipe, None)["recipe"]
    assert json.loads(told)["data"]["extra"]["root"] == "moved.npz"
    assert str(made[0].parent) not in told


class Enough(Exception):
    """The run has come as far as the test wants."""


def stopped_at(name, monkeypatch, cache):
    """Ends every run at that step of the pipeline; what the step was given stands in the list."""
    given = []

    def stop(*arguments):
        given.extend(arguments)
        raise Enough

    monkeypatch.setenv("KDCOMPRESS_CACHE", str(cache))
    monkeypatch.setattr(pipeline, name, stop)
    return given


def distil(out, *settings):
    """A run with the teacher of the finished one."""
    pairs = [part for setting in settings for part in ("--set", setting)]
    return kdcompress(
        "distill", "--recipe", "quickstart", "--out", out, "--set", "teacher.model=cifar/resnet8",
        "--set", "teacher.epochs=8", "--set", "train.epochs=1", *pairs,
    )  # fmt: skip


def test_a_resume_keeps_the_choice_that_was_made(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "manifest.json").unlink()

    def again(*arguments):
        raise AssertionError("judged again")

    monkeypatch.setattr(step, "_select", again)
    given = stopped_at("build_method", monkeypatch, tmp_path / "empty cache")
    monkeypatch.setattr(opening, "_check_buildable", lambda run, policy: run)
    done = kdcompress("distill", "--recipe", run / "recipe.yaml", "--out", run, "--resume")
    assert isinstance(done.exception, Enough), done.stderr
    extra = given[0].data.extra
    assert torch.equal(extra.source.labels, torch.from_numpy(chosen(finished)[1]))
    assert extra.to_json() == recorded(finished)["data"]["extra"]


def test_unlabelled_images_teach_who_needs_labels_once_the_teacher_has_given_them(
    finished, made, tmp_path, monkeypatch
):
    given = stopped_at("deliver", monkeypatch, finished.parent / "cache")
    np.savez(tmp_path / "alone.npz", images=np.load(made[0])["images"])
    settings = [
        "method={name: crd, negatives: 16}",
        f"data.extra={{root: {tmp_path / 'alone.npz'}, share: 0.1}}",
    ]
    refused = distil(tmp_path / "run", *settings)
    assert refused.exit_code == 2
    assert "data.extra.root: this training needs labels, and no generated image has one" in refused.stderr
    assert not (tmp_path / "run").exists()
    # With a teacher cache, which is planned before the images have their labels.
    done = distil(tmp_path / "run", *settings, "data.extra.relabel=true", "teacher.cache.views=2")
    assert isinstance(done.exception, Enough), done.stderr
    run, _, method, *_ = given
    kept, labels = chosen(tmp_path / "run")
    assert len(kept) == 200
    assert (labels == made[1]).mean() > 0.9
    assert run.data.extra.counts["relabelled"] == 200
    # Its banks have a row for every image, real ones first.
    assert len(method.bank_student) == len(run.data.train) + 200
    assert torch.equal(method.draws.labels, torch.cat([run.data.train.labels, torch.from_numpy(labels)]))
    # From the cache: generated images are no part of what a teacher depends on.
    teachers = [
        (folder / "checkpoints" / "teacher.safetensors").read_bytes()
        for folder in (finished, tmp_path / "run")
    ]
    assert teachers[0] == teachers[1]


def test_the_teacher_and_what_is_prepared_beside_it_see_real_images_alone(
    finished, made, tmp_path, monkeypatch
):
    given = stopped_at("prepare", monkeypatch, finished.parent / "cache")
    assert isinstance(distil(tmp_path / "run", f"data.extra.root={made[0]}").exception, Enough)
    run, method, _ = given
    assert run.data.extra is None
    assert len(method.data.labels) == len(run.data.train) + 200


def test_labels_in_another_order_are_warned_of(finished, made, tmp_path, monkeypatch):
    stopped_at("prepare", monkeypatch, finished.parent / "cache")
    np.savez(tmp_path / "turned.npz", images=np.load(made[0])["images"], labels=(made[1] + 3) % 10)
    done = distil(tmp_path / "run", f"data.extra={{root: {tmp_path / 'turned.npz'}, keep: 0.9}}")
    assert isinstance(done.exception, Enough), done.stderr
    assert (
        "of the labelled generated images the class of their label; are the classes numbered" in done.stderr
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.extra.root=nowhere.npz"], "nowhere.npz: no such folder or file"),
        (["data.extra={root: FILE, share: 0.01}", "data.batch_size=16"],
         "data.batch_size: 16 is too small to hold one generated image per batch"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_written(made, tmp_path, settings, message):
    arguments = [argument for item in settings for argument in ("--set", item.replace("FILE", str(made[0])))]
    done = kdcompress("distill", "--recipe", "quickstart", "--out", tmp_path / "run", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
