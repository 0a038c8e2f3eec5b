"""Batch size and epochs that a recipe leaves to the number of images."""

from __future__ import annotations

import pytest
import torch

from kdcompress.data.orders import PooledOrder
from kdcompress.data.pools import Pool
from kdcompress.recipe import load_recipe
from kdcompress.run.schedule import (
    STEPS,
    auto_batch_size,
    auto_epochs,
    images_of_an_epoch,
    resolve_schedule,
    with_recorded,
    with_schedule,
)


def recipe(*overrides):
    return load_recipe("resnet101-to-resnet18", overrides)


@pytest.mark.parametrize(
    ("images", "size"), [(400, 32), (2_000, 32), (3_200, 64), (10_000, 128), (12_800, 256), (1_281_167, 256)]
)
def test_the_batch_is_as_large_as_fifty_steps_an_epoch_allow(images, size):
    assert auto_batch_size(images) == size


@pytest.mark.parametrize(("steps", "epochs"), [(12, 250), (5, 300), (62, 100), (5_004, 100)])
def test_epochs_give_three_thousand_steps_within_bounds(steps, epochs):
    assert auto_epochs(steps) == epochs


def test_a_recipe_of_imagenet_is_as_published_on_imagenet():
    schedule = resolve_schedule(recipe(), images=1_281_167, labelled=1_281_167)
    assert (schedule.batch_size, schedule.lr, schedule.epochs, schedule.teacher_epochs) == (256, 0.1, 100, 10)


def test_on_a_small_folder_it_says_what_it_took_and_why():
    schedule = resolve_schedule(recipe(), images=1_800, labelled=1_800)
    assert (schedule.batch_size, schedule.lr, schedule.epochs, schedule.teacher_epochs) == (
        32,
        0.0125,
        100,
        18,
    )
    assert schedule.reasons == (
        "data.batch_size: auto is 32 for epochs of 1,800 images; optim.lr is 0.0125, 0.1 for batches of 256",
        "train.epochs: auto is 100, 5,600 optimiser steps",
        "teacher.epochs: auto is 18, 1,008 optimiser steps if the teacher needs fine-tuning",
    )
    assert schedule.warnings == ()
    complete = with_schedule(recipe(), schedule)
    assert (complete.batch_size, complete.epochs, complete.optim.lr) == (32, 100, 0.0125)


def test_a_users_own_number_stays_and_is_warned_of_when_far_too_low():
    own = recipe("train.epochs=10", "data.batch_size=64", "optim.lr=0.05")
    schedule = resolve_schedule(own, images=1_800, labelled=1_800)
    assert (schedule.batch_size, schedule.lr, schedule.epochs) == (64, 0.05, 10)
    assert "10 gives 280 optimiser steps" in schedule.warnings[0]
    assert "(108 epochs here)" in schedule.warnings[0]
    trial = recipe("train.epochs=10", "train.max_steps=2")
    assert resolve_schedule(trial, images=1_800, labelled=1_800).warnings == ()


def test_a_learning_rate_set_by_the_user_is_not_scaled():
    schedule = resolve_schedule(recipe("optim.lr=0.02"), images=1_800, labelled=1_800, own_lr=True)
    assert (schedule.batch_size, schedule.lr) == (32, 0.02)
    recorded = with_schedule(recipe("optim.lr=0.02"), schedule)
    assert with_recorded(recipe("optim.lr=0.03"), recorded, own_lr=True).optim.lr == 0.03


def test_accumulated_batches_count_as_one_step():
    schedule = resolve_schedule(
        recipe("train.accumulate=4", "data.batch_size=32"), images=3_200, labelled=3_200
    )
    assert schedule.epochs == 120


def test_a_teacher_from_random_weights_trains_as_long_as_a_student():
    schedule = resolve_schedule(recipe("teacher.weights=null"), images=1_800, labelled=900)
    assert schedule.teacher_epochs == 108


def test_a_resume_keeps_what_was_resolved():
    schedule = resolve_schedule(recipe(), images=1_800, labelled=1_800)
    recorded = with_schedule(recipe(), schedule)
    assert with_recorded(recipe(), recorded) == recorded
    own = with_recorded(recipe("train.epochs=7"), recorded)
    assert own.train.epochs == 7


def test_an_epoch_of_batches_with_fixed_shares_is_one_pass_of_the_first_kind():
    labelled = Pool("labelled", torch.arange(1_000), 0.5)
    unlabelled = Pool("unlabelled", torch.arange(1_000, 50_000), 0.5)
    assert images_of_an_epoch(50_000, ()) == 50_000
    assert images_of_an_epoch(50_000, (), generated=0.5) == 100_000
    images = images_of_an_epoch(50_000, (labelled, unlabelled))
    assert images == 2_000
    schedule = resolve_schedule(recipe(), images=images, labelled=1_000)
    steps = PooledOrder((labelled, unlabelled), batch_size=schedule.batch_size, seed=0).steps
    assert schedule.epochs * steps >= STEPS
    assert f"train.epochs: auto is {schedule.epochs}, {schedule.epochs * steps:,} optimiser steps" in (
        schedule.reasons
    )
