from __future__ import annotations

import copy

import torch
from torch import nn

from kdcompress.methods.frozen import Frozen


class Owner(nn.Module):
    """A method with one trained and one frozen module."""

    def __init__(self):
        super().__init__()
        self.trained = head()
        self.copy = Frozen(head())


def head():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_train_does_not_reach_a_frozen_module_and_its_statistics_stay():
    owner = Owner()
    before = copy.deepcopy(owner.copy.state_dict())
    owner.train()
    assert owner.trained[1].training
    assert not any(module.training for module in owner.copy.module.modules())
    owner.copy(torch.randn(4, 3))
    after = owner.copy.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_parameters_get_no_gradient_and_inputs_do():
    owner, rows = Owner(), torch.randn(4, 3, requires_grad=True)
    owner.copy(rows).sum().backward()
    assert rows.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in owner.copy.parameters())


def test_the_state_has_the_keys_of_the_module_and_comes_back():
    owner, other = Owner(), Owner()
    assert [key for key in owner.state_dict() if key.startswith("copy.")] == [
        f"copy.{key}" for key in owner.copy.module.state_dict()
    ]
    other.load_state_dict(owner.state_dict(), strict=True)
    assert torch.equal(other.copy.module[0].weight, owner.copy.module[0].weight)
    plain = head()
    other.copy.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(other.copy.module[0].weight, plain[0].weight)
    state = dict(plain.state_dict())
    state["more"] = state.pop("0.weight")
    missing, unexpected = other.copy.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["module.0.weight"], ["module.more"])
