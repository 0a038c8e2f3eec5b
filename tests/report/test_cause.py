"""The most likely cause of a distillation without a gain, each provoked once."""

from __future__ import annotations

import pytest

from kdcompress.report.cause import find_cause

WORSE = {"verdict": "worse", "points": -2.0, "ci95": [-3.0, -1.0]}
UNCLEAR = {"verdict": "no difference shown", "points": 0.5, "ci95": [-2.5, 3.5]}
NARROW = {"verdict": "no difference shown", "points": 0.1, "ci95": [-0.4, 0.6]}


def cause(gain, *, student=None, teacher=0.95, baseline=0.90, **more):
    settings = {"figure": "top1", "steps": 5_000, "epochs": 10, "cut_short": False, **more}
    student = {"top1": 0.9, "n": 180, **(student or {})}
    teacher = None if teacher is None else {"top1": teacher}
    return find_cause(gain, student, teacher, {"top1": baseline}, **settings)


@pytest.mark.parametrize(
    ("changes", "key", "advice"),
    [
        ({"cut_short": True, "steps": 20}, "cut_short", "max_steps=null"),
        ({"student": {"single_class": 0}}, "single_class", "train.epochs=20"),
        ({"teacher": 0.905}, "weak_teacher", "teacher.epochs"),
        ({"teacher": 0.85}, "weak_teacher", "teacher.weights"),
        ({"steps": 500}, "few_steps", "train.epochs=40"),
        ({}, "few_test_images", "--seeds 3"),
    ],
)
def test_each_cause_is_found_and_says_what_to_try(changes, key, advice):
    found = cause(UNCLEAR, **changes)
    assert found.key == key
    assert advice in found.advice


def test_a_gain_has_no_cause():
    assert cause({"verdict": "better", "points": 2.0, "ci95": [1.0, 3.0]}) is None


def test_enough_images_are_not_called_few_and_worse_is_not_for_want_of_images():
    assert cause(NARROW).key == "unknown"
    assert cause(WORSE).key == "unknown"
    assert cause(NARROW, teacher=None).key == "unknown"


def test_the_balanced_figure_says_how_good_the_teacher_is():
    found = find_cause(
        NARROW, {"balanced_top1": 0.7}, {"top1": 0.9, "balanced_top1": 0.6},
        {"top1": 0.8, "balanced_top1": 0.65},
        figure="balanced_top1", steps=5_000, epochs=10, cut_short=False,
    )  # fmt: skip
    assert found.key == "weak_teacher"
    assert "-5.0 points" in found.sentence
