from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdcompress.methods.base import ParameterSet
from kdcompress.recipe import OptimSection
from kdcompress.train import optimisers


def factors(total=100, per_epoch=10, **section):
    optim = OptimSection(lr=1.0, **section)
    return [optimisers.factor(optim, step, total, per_epoch) for step in range(total)]


def test_constant_is_constant():
    assert set(factors(schedule="constant")) == {1.0}


def test_cosine_falls_from_one_to_nearly_nothing_in_half_a_wave():
    got = factors(schedule="cosine")
    assert got[0] == 1
    assert got[50] == pytest.approx(0.5)
    assert got[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert got[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


@pytest.mark.parametrize("milestones", [[0.5, 0.75], [5, 7.5], [0.5, 7.5]], ids=["shares", "epochs", "mixed"])
def test_multistep_divides_by_ten_at_each_milestone(milestones):
    got = factors(schedule="multistep", milestones=milestones)
    assert got[:50] == [1.0] * 50
    assert got[50:75] == [0.1] * 25
    assert got[75:] == pytest.approx([0.01] * 25)


def test_the_default_milestones_are_those_of_240_epochs_in_the_crd_set_up():
    got = factors(total=240, per_epoch=1, schedule="multistep")
    drops = [step for step in range(1, 240) if got[step] < got[step - 1]]
    assert drops == [150, 180, 210]


def test_one_cycle_is_that_of_torch_at_its_corners():
    total = 1000
    got = factors(total=total, schedule="one_cycle")
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, total_steps=total, cycle_momentum=False)
    expected = []
    for _ in range(total):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    assert got[0] == pytest.approx(1 / 25)
    assert max(got) == pytest.approx(1)
    # torch places its corners one step earlier; the shape is the same.
    assert got == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("warmup", [0.2, 2], ids=["share", "epochs"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_rises_evenly_from_nothing_and_the_schedule_follows(warmup, schedule):
    got = factors(schedule=schedule, warmup=warmup)
    assert got[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert got[20] == 1
    if schedule == "cosine":
        assert got[60] == pytest.approx(0.5)


def test_milestones_count_from_the_start_of_the_run_not_from_the_end_of_the_warm_up():
    got = factors(schedule="multistep", milestones=[0.5], warmup=0.2)
    assert got[49] == 1
    assert got[50] == 0.1


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "multistep", "one_cycle"])
def test_the_shortest_runs_have_rates_within_bounds(schedule, total):
    for warmup in (0.0, 0.5, 5.0):
        got = factors(total=total, per_epoch=1, schedule=schedule, warmup=warmup)
        assert all(0 < factor <= 1 for factor in got)


def test_sections_become_the_optimisers_they_name():
    weights = ParameterSet((nn.Parameter(torch.ones(3)),), lr_scale=0.5)
    sgd = optimisers.build(OptimSection(lr=0.2, momentum=0.8, nesterov=True, weight_decay=1e-3), weights)
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.1,
        0.8,
        True,
        1e-3,
    )
    adamw = optimisers.build(OptimSection(name="adamw", lr=0.2), weights)
    assert isinstance(adamw, torch.optim.AdamW)
    plain = optimisers.build(OptimSection(lr=0.2, momentum=0.0), weights)
    assert not plain.param_groups[0]["nesterov"]


def two_weights():
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optim = OptimSection(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    return weights, optimisers.build(optim, ParameterSet(tuple(weights)))


def test_a_parameter_may_get_its_first_gradient_after_others_did():
    (first, second), sgd = two_weights()
    first.grad = torch.ones(3)
    sgd.step()
    second.grad = torch.ones(3)
    sgd.step()
    torch.testing.assert_close(first.detach(), torch.full((3,), 1 - 0.1 - 0.1 * 1.9))
    torch.testing.assert_close(second.detach(), torch.full((3,), 1 - 0.1))


def test_a_first_step_that_overflows_leaves_no_momentum():
    (first, _), sgd = two_weights()
    first.grad = torch.full((3,), math.inf)
    sgd.grad_scale, sgd.found_inf = torch.tensor(1.0), torch.tensor(1.0)  # set by torch's GradScaler
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        sgd.step()
    finally:
        torch.use_deterministic_algorithms(False)
    sgd.grad_scale, sgd.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    first.grad = torch.ones(3)
    sgd.step()
    torch.testing.assert_close(first.detach(), torch.full((3,), 0.9))
