"""What is kept follows from recipe, data and networks; what does not fit is refused with what to change."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from kdcompress.errors import UserError
from kdcompress.methods.base import Needs
from kdcompress.networks.activations import LOGITS, POOLED, Activations
from kdcompress.recipe import load_recipe
from kdcompress.run.auto import keep_recorded
from kdcompress.run.cache_plan import check_space, plan_cache, size_text

BOTH = LOGITS | POOLED


def teacher(features=512, classes=1000, linear=True):
    shapes = Activations(
        logits=torch.empty(2, classes, device="meta"),
        pooled=torch.empty(2, features, device="meta") if linear else None,
    )
    return SimpleNamespace(
        model="cifar/resnet14", num_classes=classes, shapes=lambda: shapes, classify=lambda pooled: pooled
    )


def plan(cache="auto", *, needs=None, epochs=100, images=50_000, of=None, **settings):
    recipe = load_recipe("quickstart", (f"train.epochs={epochs}", f"teacher.cache={cache}"))
    return plan_cache(recipe, needs or Needs(teacher=True), of or teacher(), images, **settings)


def test_off_is_the_default_and_says_nothing():
    assert load_recipe("quickstart").teacher.cache == "off"
    assert plan("off") == (None, None)
    assert plan("false") == (None, None)


@pytest.mark.parametrize(("epochs", "views"), [(12, 8), (40, 10), (100, 25), (300, 50)])
def test_auto_takes_a_quarter_of_the_epochs(epochs, views):
    found, sentence = plan(epochs=epochs)
    assert sentence is None
    assert (found.section.views, found.section.keep) == (views, "pooled")
    assert found.bytes == views * 50_000 * (2 * 512 + 8)
    assert found.share_computed == views / epochs


def test_what_the_teacher_computes_beside_a_cache_is_said():
    needs = Needs(teacher=True, read_of_teacher=frozenset({"logits", "pre"}), cached=frozenset({"logits"}))
    found, sentence = plan(needs=needs)
    assert found.section.keep == "pooled"
    assert sentence.startswith("teacher.cache: has all of the teacher's outputs but the maps that kd reads, ")
    recipe = load_recipe("quickstart", ("teacher.cache={views: 2}", "export.int8={qat_epochs: 1}"))
    _, sentence = plan_cache(recipe, Needs(teacher=True), teacher(), 1000)
    assert sentence.endswith("but those of the training for int8, whose views are new")


def test_auto_is_off_where_no_view_comes_twice():
    found, sentence = plan(epochs=8)
    assert found is None
    assert "no view comes twice in 8 epochs" in sentence


def test_auto_takes_logits_or_nothing_where_features_are_too_large():
    wide = teacher(features=2048, classes=10)
    assert plan(of=wide, images=2_000_000)[0].section.keep == "logits"
    found, sentence = plan(of=teacher(features=2048), images=2_000_000)
    assert found is None
    assert "8 views of 2,000,000 images take more than 20 GB" in sentence
    assert plan("{limit_gb: 5}", of=teacher(features=2048), images=1_000_000)[0].section.views == 2


def test_a_teacher_without_a_linear_classifier_keeps_logits():
    assert plan(of=teacher(linear=False))[0].section.keep == "logits"
    with pytest.raises(UserError, match=r"keep: pooled, but no linear layer gives the logits of"):
        plan("{keep: pooled}", of=teacher(linear=False))


def test_a_method_that_reads_features_gets_features():
    needs = Needs(teacher=True, read_of_teacher=BOTH)
    assert plan(needs=needs)[0].section.keep == "pooled"
    with pytest.raises(UserError, match="reads the teacher's features too; choose pooled"):
        plan("{keep: logits}", needs=needs)


def test_maps_are_not_kept():
    found, sentence = plan(needs=Needs(teacher=True, read_of_teacher=LOGITS | {"stages"}))
    assert found is None
    assert "kd reads maps of the teacher's stages, which are too large to keep" in sentence
    two_calls = Needs(teacher=True, read_of_teacher=LOGITS | {"pre"}, cached=LOGITS)
    assert plan(needs=two_calls)[0] is not None


def test_the_largest_logits_alone_need_a_low_temperature():
    assert plan("{keep: top_k}", needs=Needs(teacher=True, top_k=True))[0].codec.width == 4 + 2 * 17 + 2 * 16
    with pytest.raises(UserError, match=r"temperature of at most 1\.5 .*; choose pooled or logits"):
        plan("{keep: top_k}")


def test_views_are_whole_batches_of_a_method_with_several():
    needs = Needs(teacher=True, read_of_teacher=BOTH, views=4)
    assert plan(needs=needs)[0].section.views == 100
    with pytest.raises(UserError, match=r"views: 6 is no multiple of the 4 views of a batch; choose 8"):
        plan("{views: 6}", needs=needs)


def test_what_the_user_names_must_fit():
    assert plan("{views: 3}", epochs=2)[0].section.views == 3
    with pytest.raises(UserError, match=r"limit_gb: 1, and 200 views of 50,000 images take 10\.3 GB"):
        plan("{views: 200, limit_gb: 1, keep: pooled}")


def test_a_disk_that_is_too_small_is_refused_before_the_training(monkeypatch, tmp_path):
    found, _ = plan(f"{{views: 4, folder: {tmp_path / 'new' / 'cache'}}}")
    check_space(found)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"take 206\.4 MB, and 1\.0 MB are free in .*set fewer"):
        check_space(found)


def test_sizes_are_written_in_a_readable_unit():
    assert [size_text(size) for size in (4e3, 12.34e6, 4.25e9)] == ["4 kB", "12.3 MB", "4.2 GB"]


def test_a_resume_takes_what_was_decided_and_leaves_another_wish_to_the_check():
    def asked(cache, method="kd"):
        return load_recipe("quickstart", (f"teacher.cache={cache}",), method=method)

    decided = asked("{views: 8, keep: pooled}")
    assert keep_recorded(asked("auto"), decided).teacher.cache == decided.teacher.cache
    assert keep_recorded(asked("{limit_gb: 20}"), decided).teacher.cache == decided.teacher.cache
    assert keep_recorded(asked("{views: 4}"), decided).teacher.cache.views == 4
    # A method that no cache serves has none; with another one, a run without is a run of another recipe.
    assert keep_recorded(asked("{views: 8}", "at"), asked("'off'", "at")).teacher.cache == "off"
    assert keep_recorded(asked("{views: 8}"), asked("'off'")).teacher.cache != "off"
