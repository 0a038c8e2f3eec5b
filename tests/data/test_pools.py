from __future__ import annotations

import pytest
import torch

from kdcompress.data.orders import PooledOrder
from kdcompress.data.pools import Pool, rows_of_pools
from kdcompress.errors import UserError

FEW, MANY = Pool("labelled", torch.arange(10), 0.25), Pool("unlabelled", torch.arange(10, 50), 0.75)


def order(pools=(FEW, MANY), batch_size=8, seed=0):
    return PooledOrder(pools, batch_size=batch_size, seed=seed)


def test_every_batch_has_the_composition_asked_for_and_so_has_every_half_of_it():
    for epoch in range(3):
        batches = order()(epoch).reshape(5, 8)
        assert ((batches < 10).sum(1) == 2).all()
        assert ((batches[:, :4] < 10).sum(1) == 1).all()


def test_an_epoch_is_a_pass_through_the_first_pool_and_the_other_goes_on_where_it_was():
    assert order().steps == 5
    drawn = torch.cat([order()(epoch) for epoch in range(4)])
    few, many = drawn[drawn < 10], drawn[drawn >= 10]
    assert len(few) == 40
    assert all(sorted(part.tolist()) == list(range(10)) for part in few.split(10))
    assert len(many) == 120
    assert all(sorted(part.tolist()) == list(range(10, 50)) for part in many.split(40))
    assert not torch.equal(few[:10], few[10:20])


def test_the_order_is_a_function_of_seed_and_epoch():
    assert torch.equal(order()(2), order()(2))
    assert not torch.equal(order()(2), order(seed=1)(2))
    assert not torch.equal(order()(2), order()(1))


def test_rows_add_up_to_the_batch():
    assert rows_of_pools([1 / 3, 1 / 3, 1 / 3], 64) == [22, 21, 21]
    assert rows_of_pools([0.5, 0.5], 7) == [4, 3]


def test_a_batch_that_holds_none_of_a_pool_is_refused():
    pools = [Pool("labelled", torch.arange(3), 0.01), Pool("unlabelled", torch.arange(3, 9), 0.99)]
    with pytest.raises(UserError, match=r"data\.batch_size: 8 is too small to hold one labelled image"):
        order(pools)
