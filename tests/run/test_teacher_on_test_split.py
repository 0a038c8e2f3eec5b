from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdcompress.networks.activations import Activations
from kdcompress.run.teacher import read_test_split
from kdcompress.tasks import CLASSIFICATION, EMBEDDING

BATCHES = [(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1])), (torch.rand(2, 1, 4, 4), torch.tensor([1, 0]))]


@pytest.mark.parametrize(
    ("task", "pooled", "kept"),
    [
        (CLASSIFICATION, False, ["logits"]),
        (CLASSIFICATION, True, ["logits", "pooled"]),
        (EMBEDDING, False, ["pooled"]),  # of a student with a classifier, whose method compares features
    ],
    ids=["classifier", "both", "backbone"],
)
def test_all_that_a_teacher_gives_is_kept_in_the_splits_order(task, pooled, kept):
    def teacher(images, want):
        pixels = images.flatten(1)
        return Activations(
            pixels[:, :2] if "logits" in want else None, pixels if "pooled" in want else None, {}
        )

    teacher.task, teacher.precision = task, "bf16"
    run = SimpleNamespace(device=torch.device("cpu"))
    found = read_test_split(run, SimpleNamespace(teacher=teacher), lambda: BATCHES, pooled=pooled)
    every = torch.cat([images for images, _ in BATCHES]).flatten(1)
    assert [name for name in ("logits", "pooled") if getattr(found, name) is not None] == kept
    assert found.logits is None or torch.equal(found.logits, every[:, :2])
    assert found.pooled is None or torch.equal(found.pooled, every)
    assert found.labels.tolist() == [0, 1, 1, 1, 0]
    assert teacher.precision is None
