"""Two processes train methods that DistributedDataParallel cannot: parts of sets, inner gradients."""

from __future__ import annotations

import pytest
import torch
from several_sets import TOYS, train
from small_training import ALONE, Small, assert_same
from two_processes import TESTS, run_two

from kdcompress.train.minimiser import needs_no_more_than_ddp


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(TESTS / "train" / "several_sets.py", tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", TOYS)
def test_two_processes_equal_one_with_every_batch_norm_frozen(two, name, tmp_path):
    first, second = two
    assert_same(first[name], second[name])
    expected = train(tmp_path, name, ALONE)
    for key, tensor in first[name].items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", TOYS)
def test_with_live_batch_norm_both_end_with_the_same_weights_and_buffers(two, name):
    first, second = two
    assert_same(first[f"{name} live"], second[f"{name} live"])
    assert not torch.equal(first[f"{name} live"]["student.bn1.running_var"], torch.ones(16))


def test_a_resume_within_an_epoch_ends_in_the_same_bits(two):
    for each in two:
        assert each["stopped"]
        assert_same(each["unused live"], each["resumed"])


def test_the_ordinary_case_stays_with_distributed_data_parallel(tmp_path):
    assert needs_no_more_than_ddp(Small(tmp_path / "kd", "kd").method)
    assert not needs_no_more_than_ddp(Small(tmp_path / "ab", "ab").method)
