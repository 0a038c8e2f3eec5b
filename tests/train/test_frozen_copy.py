"""A second phase that learns from a frozen copy of the student: stopped and resumed, it is the same copy."""

from __future__ import annotations

import copy

import pytest
import small_training
import torch
from small_training import Small, Watcher, assert_same

from kdcompress.errors import Interrupted
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Phase
from kdcompress.methods.frozen import Frozen

STEPS_PER_EPOCH = 5


class Imitation(Method):
    """Learns labels first, then also the outputs of the student as it was after that."""

    def __init__(self, config, networks, data):
        super().__init__(config, networks, data)
        self.past = Frozen(copy.deepcopy(networks.student.network))
        self.copies = 0

    def phases(self):
        return [Phase("labels", 0.5, ("main",)), Phase("past", 0.5, ("main",), keep_optimiser=True)]

    def on_phase_start(self, name, resumed):
        super().on_phase_start(name, resumed)
        if name == "past" and not resumed:
            self.past.load_state_dict(self.networks.student.network.state_dict())
            self.copies += 1

    def losses(self, batch):
        student = self.networks.student
        logits = student(batch.images).logits
        terms = {"ce": self.cross_entropy(logits, batch.labels)}
        if self.phase == "past":
            past = self.past(student.normalise(batch.images))
            terms["kd"] = losses.kl(logits, past, 4.0)
        return terms


@pytest.fixture(autouse=True)
def _method(monkeypatch):
    monkeypatch.setattr(small_training, "find_method", lambda name: Imitation)


def small(folder, **arguments):
    return Small(folder, "imitation", train={"epochs": 4, "ema": 0.9}, **arguments)


def test_the_copy_is_the_student_at_the_end_of_the_first_phase(tmp_path):
    whole = small(tmp_path / "whole")
    whole.run()
    first = small(tmp_path / "first", watcher=Watcher(2 * STEPS_PER_EPOCH))
    with pytest.raises(Interrupted):
        first.run()
    assert whole.method.copies == 1
    assert_same(first.student.network.state_dict(), whole.method.past.state_dict())
    assert not torch.equal(whole.student.network.fc.weight, whole.method.past.module.fc.weight)


# At the end of the first phase, within the second phase's first epoch, at its end, within its last epoch.
@pytest.mark.parametrize(("step", "copies"), [(10, 1), (12, 0), (15, 0), (18, 0)])
def test_a_resume_ends_in_the_bits_of_an_unbroken_training(step, copies, tmp_path):
    whole = small(tmp_path / "whole")
    whole.run()
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 20"):
        small(tmp_path / "cut", watcher=Watcher(step)).run()
    resumed = small(tmp_path / "cut")
    resumed.run()
    assert resumed.method.copies == copies
    assert_same(whole.tensors(), resumed.tensors())
