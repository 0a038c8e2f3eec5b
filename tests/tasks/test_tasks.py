"""A task scores outputs batch by batch, compares a file with its network, and knows its figures."""

from __future__ import annotations

import math

import pytest
import torch

from kdcompress.metrics.neighbours import knn_top1, overlap
from kdcompress.networks.activations import Activations
from kdcompress.tasks import CLASSIFICATION, CLUSTERS, EMBEDDING, TASKS, task_of, task_with_output
from kdcompress.tasks.figures import DECIDING, FIGURES, comparable, selection_metric


def outputs(width, seed=0):
    return torch.randn(30, width, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(30) % 3


def test_a_network_with_classes_is_a_classifier():
    assert task_of(10) is CLASSIFICATION
    assert task_of(0) is EMBEDDING
    assert [task_with_output(task.output) for task in TASKS] == list(TASKS)
    assert task_with_output("output_0") is CLASSIFICATION  # a file of another tool


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_its_output_is_a_field_of_the_activations_and_its_figures_are_in_the_table(task):
    assert task.activation in Activations.__dataclass_fields__
    assert set(task.metrics) <= set(DECIDING)
    scored = task.score(outputs(3), LABELS, outputs(3, seed=1))
    assert set(scored) <= FIGURES.keys()
    # A training on clusters must not be judged by labels.
    assert selection_metric(scored) == (None if task is CLUSTERS else task.metrics[0])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("size", [1, 7, 30])
def test_batches_of_any_size_give_the_same_figures(task, size):
    whole, parts = task.scorer(3), task.scorer(3)
    whole.update(outputs(3), LABELS)
    for rows, labels in zip(outputs(3).split(size), LABELS.split(size), strict=True):
        parts.update(rows, labels)
    expected, got = whole.result(), parts.result()
    assert got.pop("loss") == (None if expected["loss"] is None else pytest.approx(expected["loss"]))
    expected.pop("loss")
    assert got == expected
    assert torch.equal(parts.labels, LABELS)
    teacher = outputs(3, seed=1)
    assert parts.agreement(teacher) == whole.agreement(teacher)


def test_the_figures_are_those_of_their_definitions():
    scorer = CLASSIFICATION.scorer(3)
    scorer.update(outputs(3), LABELS)
    assert scorer.result()["top1"] == pytest.approx((outputs(3).argmax(1) == LABELS).double().mean().item())
    scorer = EMBEDDING.scorer(0)
    scorer.update(outputs(5), LABELS)
    assert scorer.result()["knn_top1"] == knn_top1(outputs(5), LABELS)
    assert scorer.result()["top1"] is None
    assert scorer.agreement(outputs(4, seed=1)) == overlap(outputs(5), outputs(4, seed=1))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize(
    "given", [torch.zeros(2, 3, 4, 4), torch.zeros(1, 3), (torch.zeros(2, 3),)], ids=["map", "rows", "tuple"]
)
def test_other_outputs_than_the_tasks_are_named(task, given):
    assert task.output_problem(torch.zeros(2, 3), 2) is None
    assert "this one gives a t" in task.output_problem(given, 2)  # a tensor of ..., or a tuple


def test_classes_that_differ_count_unless_they_are_a_tie():
    reference = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.500, 0.499], [0.0, 1.0]])
    swapped = reference.clone()
    swapped[2] = torch.tensor([0.499, 0.500])
    deviation = CLASSIFICATION.deviation(limit=0.01, spread=1.0)
    for rows, others in zip(reference.split(3), swapped.split(3), strict=True):
        deviation.update(rows, others)
    assert (deviation.figure, deviation.ties, deviation.passed) == (1.0, 1, True)
    swapped[0] = torch.tensor([0.0, 1.0])
    deviation = CLASSIFICATION.deviation(limit=0.01, spread=1.0)
    deviation.update(reference, swapped)
    assert (deviation.figure, deviation.passed) == (0.75, False)
    lenient = CLASSIFICATION.deviation(limit=0.01, spread=1.0, least=0.75)
    lenient.update(reference, swapped)
    assert lenient.passed


def test_a_single_class_never_differs():
    deviation = CLASSIFICATION.deviation(limit=0.01, spread=1.0)
    deviation.update(torch.randn(4, 1), torch.randn(4, 1))
    assert deviation.figure == 1.0


def test_the_largest_turn_of_an_embedding_counts_and_nan_never_passes():
    reference, other = torch.eye(2), torch.eye(2)
    angle = 0.1
    other[1] = torch.tensor([math.sin(angle), math.cos(angle)])
    deviation = EMBEDDING.deviation(limit=0.2, spread=1.0)
    deviation.update(reference, other)
    assert deviation.figure == pytest.approx(1 - math.cos(angle), rel=1e-4)
    assert deviation.limit == pytest.approx(0.02)
    assert deviation.passed
    deviation.update(reference, torch.full((2, 2), math.nan))
    assert not deviation.passed


def test_networks_are_compared_by_what_is_known_of_the_student():
    assert [figure.key for figure in comparable({"top1": 0.5})] == ["top1", "balanced_top1"]
    student = {"top1": None, "knn_top1": 0.4, "agreement": 0.3}
    assert [figure.key for figure in comparable(student)] == ["knn_top1", "agreement"]
    assert comparable({"top1": None}) == []
    assert selection_metric({"top1": None, "agreement": 0.2}) == "agreement"
    assert selection_metric({}) is None


def test_only_a_classifier_ships_class_names():
    assert CLASSIFICATION.class_names(["a", "b"]) == ("a", "b")
    assert EMBEDDING.class_names(["a", "b"]) == ()


def test_a_nearly_constant_classifier_is_described_beside_its_teacher():
    scorer = CLASSIFICATION.scorer(3)
    scorer.update(torch.eye(3)[[0] * 19 + [1]], torch.full((20,), -1))
    teacher = torch.eye(3)[[0] * 15 + [2] * 5]
    assert scorer.constant(teacher) == {"class": 0, "share": 0.95, "teacher_share": 0.75}
    varied = CLASSIFICATION.scorer(3)
    varied.update(torch.eye(3)[[0] * 17 + [1] * 3], torch.full((20,), -1))
    assert varied.constant(teacher) is None
    assert torch.equal(varied.logits, torch.eye(3)[[0] * 17 + [1] * 3])


def test_logits_that_nobody_asks_for_take_no_memory_and_change_no_figure():
    outputs, labels = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
    kept, left = (CLASSIFICATION.scorer(10, keep_outputs=keep) for keep in (True, False))
    for scorer in (kept, left):
        for part in range(0, 64, 16):
            scorer.update(outputs[part : part + 16], labels[part : part + 16])
    assert left.result() == kept.result()
    assert torch.equal(kept.logits, outputs)
    assert left.logits.numel() == 0
