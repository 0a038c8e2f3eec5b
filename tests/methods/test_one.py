from __future__ import annotations

import math

import pytest
import torch
from gate_of_two import results
from small_training import Small
from two_processes import TESTS, run_two

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.online.one import ONE, Gate


def one(tmp_path, **config):
    return Small(tmp_path, "one", config={"full_weight_epochs": 0, **config}).method


def some_logits(count=3):
    torch.manual_seed(0)
    return [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def test_the_ensemble_is_the_sum_of_the_logits_with_each_images_own_weights(tmp_path):
    logits = [torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 4.0], [3.0, -2.0]])]
    gate = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    got = one(tmp_path, branches=2).ensemble(logits, gate)
    assert torch.equal(got, torch.tensor([[0.25, 3.0], [1.0, 2.0]]))


def test_the_gate_normalises_over_the_batch_and_its_weights_add_up_to_1():
    gate = Gate(2, 2).double()
    gate.linear.weight.data = torch.eye(2).double()
    got = gate(torch.tensor([[3.0, -1.0], [1.0, 3.0]], dtype=torch.float64))
    # Two rows become +1 and -1 (less the eps of the norm); the ReLU makes 0 of -1.
    first, second = (v / math.sqrt(v * v + 1e-5) for v in (1.0, 2.0))
    expected = torch.tensor([[first, 0.0], [0.0, second]], dtype=torch.float64).softmax(1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_batch_of_one_row_is_normalised_by_the_running_statistics_and_leaves_them():
    gate = Gate(4, 3)
    gate(torch.randn(8, 4))
    before = {name: buffer.clone() for name, buffer in gate.named_buffers()}
    row = torch.randn(1, 4)
    got = gate(row)
    assert all(torch.equal(buffer, before[name]) for name, buffer in gate.named_buffers())
    gate.eval()
    assert torch.equal(got, gate(row))
    got.max().backward()
    assert gate.linear.weight.grad.abs().max() > 0


def test_the_ensemble_is_a_constant_target_unless_the_config_says_otherwise(tmp_path):
    for detach in (True, False):
        logits = some_logits()
        method = one(tmp_path / str(detach), detach=detach)
        weights = torch.full((5, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
        method.mimicry(logits[0], method.ensemble(logits, weights)).backward()
        assert logits[0].grad is not None
        assert (logits[1].grad is None) == detach
        assert (weights.grad is None) == detach


def test_the_gate_learns_from_the_cross_entropy_of_the_ensemble(tmp_path):
    method, logits = one(tmp_path), some_logits()
    weights = torch.full((5, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(5) % 4
    sum(method.terms(logits, weights, labels).values()).backward()
    got = weights.grad
    weights.grad = None
    method.cross_entropy(method.ensemble(logits, weights), labels).backward()
    torch.testing.assert_close(got, weights.grad)


def test_every_branch_has_its_two_terms_and_the_ensemble_one(tmp_path):
    small = Small(tmp_path, "one")
    terms = small.method.losses(next(small.loader.epoch(0)))
    names = [f"{term}_{who}" for who in ("student", "branch1", "branch2") for term in ("ce", "mimicry")]
    assert list(terms) == ["ce_ensemble", *names]


def test_the_divergence_grows_over_80_of_300_epochs_or_the_same_share_of_a_run(tmp_path):
    method = one(tmp_path)
    method.on_epoch_start(0, 300)
    assert method.ramp() == pytest.approx(math.exp(-5))
    method.on_epoch_start(40, 300)
    assert method.ramp() == pytest.approx(math.exp(-1.25))
    method.on_epoch_start(80, 300)
    assert method.ramp() == 1
    method.on_epoch_start(4, 30)
    assert method.ramp() == pytest.approx(math.exp(-1.25))
    method.on_epoch_start(0, 3)  # a ramp of less than an epoch
    assert method.ramp() == 1
    method = one(tmp_path / "none", ramp_epochs=0.0)
    method.on_epoch_start(0, 300)
    assert method.ramp() == 1


def test_weight_and_ramp_scale_the_divergence(tmp_path):
    logits = some_logits(2)
    method = one(tmp_path, weight=0.5, temperature=2.0, shift=0.0, ramp_epochs=10.0)
    method.on_epoch_start(5, 20)
    expected = 0.5 * math.exp(-1.25) * losses.kl(logits[0], logits[1], 2.0).item()
    assert method.mimicry(*logits).item() == pytest.approx(expected, rel=1e-12)


def test_every_branch_may_ship_and_the_gates_statistics_are_in_the_checkpoint(tmp_path):
    small = Small(tmp_path, "one")
    assert list(small.method.candidates()) == ["student", "branch1", "branch2"]
    before = small.method.gate.norm.running_mean.clone()
    small.run()
    saved = torch.load(tmp_path / "student.pt", weights_only=False)["modules"]["method"]
    assert torch.equal(saved["gate.norm.running_mean"], small.method.gate.norm.running_mean)
    assert not torch.equal(saved["gate.norm.running_mean"], before)


@pytest.mark.exhaustive
def test_two_processes_have_the_gate_of_one_with_all_rows(tmp_path):
    two = run_two(TESTS / "methods" / "gate_of_two.py", tmp_path)
    whole = results(slice(None))
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([half["weights"] for half in two]), whole["weights"], **close)
    # Each process's loss is a mean over half of the rows: the gradients of the rows are twice as large.
    torch.testing.assert_close(torch.cat([half["rows"] for half in two]) / 2, whole["rows"], **close)
    for name, gradient in whole["parameters"].items():
        mean = (two[0]["parameters"][name] + two[1]["parameters"][name]) / 2
        torch.testing.assert_close(mean, gradient, **close)
    for half in two:
        torch.testing.assert_close(half["buffers"], whole["buffers"], **close)


def test_a_student_whose_stages_leave_none_to_share_is_refused(tmp_path):
    with pytest.raises(NetworkError, match=r"would share none; .* can be cut: every cifar/ network; timm/"):
        one(tmp_path, own_stages=3)
    assert ONE.needs(ONE.Config()).cut
