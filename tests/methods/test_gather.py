"""Rows of all processes: differentiable once, and never wrongly twice."""

from __future__ import annotations

import pytest
import torch
from gathering import ROWS, loss_of
from two_processes import TESTS, run_two

from kdcompress.methods.gather import gather_rows


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(TESTS / "methods" / "gathering.py", tmp_path_factory.mktemp("two"))


def whole():
    """The rows of both processes in one, with the first derivative of the loss."""
    rows = ROWS.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss_of(rows), rows, create_graph=True)
    return rows, first


def parts(two, name):
    # Every process's loss counts in the sum; the trainer's mean over the processes divides it again.
    return torch.cat([seen[name] for seen in two]) / 2


def test_rows_come_by_rank_with_the_gradients_of_one_process(two):
    _, first = whole()
    assert all(torch.equal(seen["gathered"], ROWS) for seen in two)
    torch.testing.assert_close(parts(two, "first"), first.detach(), rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_an_error_in_every_process_and_leaves_no_gradient(two):
    for seen in two:
        assert seen["second"].startswith("RuntimeError: trying to differentiate twice a function")
        assert seen["left_behind"] is None


def test_an_inner_gradient_of_gathered_rows_is_that_of_one_process(two):
    rows, first = whole()
    first.square().sum().backward()
    together = torch.cat([seen["of_gathered"] for seen in two])
    torch.testing.assert_close(together, rows.grad, rtol=1e-12, atol=1e-12)


def test_in_one_process_the_rows_are_themselves():
    rows = torch.rand(2, 3)
    assert gather_rows(rows) is rows
