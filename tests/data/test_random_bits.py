from __future__ import annotations

import torch

from kdcompress.data.random_bits import _hash, integers, permutation, uniform, uniform_of_one


def test_a_draw_depends_on_its_own_sample_alone():
    together = uniform(3, 7, torch.arange(100), 2)
    shuffled = torch.randperm(100)
    assert torch.equal(uniform(3, 7, shuffled, 2), together[shuffled])
    assert torch.equal(uniform(3, 7, torch.tensor([41]), 2), together[41:42])


def test_values_are_the_same_for_ever():
    # Written down once: a change here changes every run that is resumed or repeated.
    assert [uniform_of_one(0, 0, i, 0) for i in range(3)] == [
        0.12964558601379395,
        0.04992002248764038,
        0.6703283190727234,
    ]
    assert permutation(0, 0, 8).tolist() == [4, 0, 3, 2, 5, 1, 6, 7]


def test_the_hash_is_splitmix64():
    # The first outputs of the published C code for the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [bits % 2**64 for bits in _hash(1234567, torch.arange(3)).tolist()] == expected


def test_the_scalar_and_the_vector_form_have_the_same_bits():
    indices = torch.tensor([0, 1, 2, 12345, 2**31, 2**40])
    for seed, view, draw in ((0, 0, 0), (2**31, 99999, 47), (12, -2, 3)):
        scalars = [uniform_of_one(seed, view, i, draw) for i in indices.tolist()]
        assert uniform(seed, view, indices, draw).tolist() == scalars


def test_uniform_is_uniform_and_streams_are_unrelated():
    streams = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    values = torch.stack([uniform(s, v, torch.arange(50_000), d) for s, v, d in streams])
    assert values.dtype == torch.float32
    assert values.min() >= 0
    assert values.max() < 1
    # The standard error of a mean of 50,000 is 0.0013, of a correlation 0.0045.
    assert (values.mean(1) - 0.5).abs().max() < 0.006
    assert (values.var(1) - 1 / 12).abs().max() < 0.002
    assert (torch.corrcoef(values) - torch.eye(4)).abs().max() < 0.02


def test_integers_reach_every_value_and_never_their_bound():
    values = integers(0, 0, torch.arange(20_000), 0, 9)
    assert sorted(values.unique().tolist()) == list(range(9))
    largest = torch.tensor([1 - 2.0**-24])
    assert all(int((largest * count).to(torch.int64)) == count - 1 for count in range(1, 5000))


def test_a_permutation_holds_every_sample_once_and_differs_by_epoch_and_seed():
    orders = [permutation(seed, epoch, 1000) for seed in range(3) for epoch in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    assert torch.equal(permutation(1, 1, 1000), orders[4])


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    permutation(0, 0, 10)
    uniform(0, 0, torch.arange(3), 0)
    assert torch.equal(torch.get_rng_state(), before)
