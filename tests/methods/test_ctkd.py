from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from small_training import Small

from kdcompress.methods import losses
from kdcompress.methods.offline.ctkd import CTKD


def test_the_temperature_begins_at_t_start_plus_the_range_times_sigmoid_of_1(tmp_path):
    ctkd = Small(tmp_path, "ctkd").method
    assert ctkd.temperature().item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    assert [name for name, _ in ctkd.named_parameters()] == ["raw_temperature"]


@pytest.mark.parametrize("factor", [-1.0, -0.3, 0.0, 1.0])
def test_the_factor_scales_the_gradient_and_never_the_value(factor):
    raw = torch.tensor(0.4, requires_grad=True)
    plain = losses.learnt_temperature(raw, 2.0, 5.0, 1.0)
    got = losses.learnt_temperature(raw, 2.0, 5.0, factor)
    assert got.item() == plain.item()
    expected = torch.autograd.grad(plain, raw)[0].item()
    assert torch.autograd.grad(got, raw)[0].item() == pytest.approx(factor * expected)


def test_a_step_down_the_loss_moves_the_temperature_up_the_loss(tmp_path):
    ctkd = Small(tmp_path, "ctkd", config={"ramp_epochs": 1, "ce_weight": 0.0}).method
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4), 4 * torch.randn(6, 4)
    labels = torch.zeros(6, dtype=torch.int64)
    before = ctkd.terms(student, teacher, labels)["kd"]
    before.backward()
    with torch.no_grad():
        ctkd.raw_temperature -= 0.1 * ctkd.raw_temperature.grad.sign()
    assert ctkd.terms(student, teacher, labels)["kd"] > before


@pytest.mark.parametrize(
    ("curriculum", "expected"),
    [
        ("cosine", [0.0, -0.5, -1.0, -1.0]),
        ("linear", [0.0, -0.5, -1.0, -1.0]),
        ("linear_reference", [0.0, -0.5, -0.75, -0.75]),
    ],
)
def test_a_curriculum_goes_from_its_start_to_its_end_and_stays(curriculum, expected):
    got = [losses.reversal(epoch, 4, curriculum, start=0.0, end=-1.0) for epoch in (0, 2, 4, 9)]
    assert got == pytest.approx(expected)


def test_the_reversal_grows_with_the_epochs_counted_from_1(tmp_path):
    ctkd = Small(tmp_path, "ctkd", config={"curriculum": "linear", "ramp_epochs": 4}).method
    got = []
    for epoch in range(5):
        ctkd.on_epoch_start(epoch, 5)
        got.append(ctkd.reversal())
    assert got == pytest.approx([-0.25, -0.5, -0.75, -1.0, -1.0])
    gentle = Small(tmp_path / "b", "ctkd", config={"reversal_start": -0.1, "reversal_end": -0.3}).method
    gentle.on_epoch_start(40, 50)
    assert gentle.reversal() == pytest.approx(-0.3)


@pytest.mark.parametrize(("epochs", "ramp"), [(240, 10), (48, 2), (5, 1)])
def test_the_default_ramp_is_the_published_share_of_the_run(tmp_path, epochs, ramp):
    silent = Small(tmp_path / "silent", "ctkd").method
    told = Small(tmp_path / "told", "ctkd", config={"ramp_epochs": ramp}).method
    for epoch in range(epochs):
        silent.on_epoch_start(epoch, epochs)
        told.on_epoch_start(epoch, epochs)
        assert silent.reversal() == told.reversal()
    assert silent.reversal() == -1


def test_a_temperature_of_its_own_for_every_row_is_the_mean_of_the_rows():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    each = [
        losses.kl(student[i : i + 1], teacher[i : i + 1], t).item() for i, t in enumerate((1.0, 2.0, 4.0))
    ]
    got = losses.kl(student, teacher, torch.tensor([[1.0], [2.0], [4.0]]))
    assert got.item() == pytest.approx(sum(each) / 3)


def test_with_dkd_it_is_dkd_at_the_learnt_temperature(tmp_path):
    config = {"loss": "dkd", "alpha": 2.0, "beta": 3.0, "kd_weight": 0.5}
    ctkd = Small(tmp_path, "ctkd", config=config).method
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6) % 4
    terms = ctkd.terms(student, teacher, labels)
    temperature = ctkd.temperature()
    assert set(terms) == {"tckd", "nckd", "ce"}
    assert terms["tckd"].item() == pytest.approx(losses.tckd(student, teacher, labels, temperature).item())
    nckd = losses.nckd(student, teacher, labels, temperature).item()
    assert terms["nckd"].item() == pytest.approx(1.5 * nckd)


def test_silent_weights_are_those_of_the_loss_it_wraps():
    weights = [(c.ce_weight, c.kd_weight) for c in (CTKD.Config(), CTKD.Config(loss="dkd"))]
    assert weights == [(0.1, 0.9), (1.0, 1.0)]
    said = CTKD.Config(loss="dkd", kd_weight=0.3)
    assert (said.ce_weight, said.kd_weight) == (1.0, 0.3)
    assert CTKD.Config.model_validate(said.model_dump(mode="json")) == said


def test_weights_that_nothing_reads_are_refused():
    with pytest.raises(ValidationError, match="alpha and beta go with loss: dkd"):
        CTKD.Config(beta=2.0)


def test_labels_are_needed_by_the_cross_entropy_and_by_dkd():
    assert not CTKD.needs(CTKD.Config(ce_weight=0.0)).labels
    assert CTKD.needs(CTKD.Config()).labels
    assert CTKD.needs(CTKD.Config(loss="dkd", ce_weight=0.0)).labels


def test_only_the_student_ships(tmp_path):
    small = Small(tmp_path, "ctkd", train={"epochs": 1})
    outcome = small.run()
    assert not [key for key in outcome.state if "temperature" in key]
    assert small.method.raw_temperature.item() != 1
