"""Further classifiers give a network's stages a share of their gradient, and learn at whole weights."""

from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress import discovery
from kdcompress.methods.base import find_method
from kdcompress.methods.stage_gradient import StageGradient, with_gradient_share

METHODS = [name for name in discovery.names("method") if issubclass(find_method(name).Config, StageGradient)]
HEADS = {"byot": "heads", "lmcl": "exits"}


def gradients(folder, name, share):
    """Returns the terms, and the gradients of the network's first layer and of a further classifier."""
    small = Small(folder, name, config={"stage_gradient": share}, float64=True)
    small.method.on_epoch_start(0, 2)
    terms = small.method.losses(next(small.loader.epoch(0)))
    sum(terms.values()).backward()
    head = next(getattr(small.method, HEADS[name]).parameters())
    return terms, small.student.network.conv1.weight.grad, head.grad


@pytest.mark.parametrize("name", METHODS)
def test_the_stages_get_a_share_and_the_classifiers_everything(name, tmp_path):
    whole, tenth, none = (gradients(tmp_path / str(share), name, share) for share in (1.0, 0.1, 0.0))
    for other in (tenth, none):
        assert {term: value.item() for term, value in other[0].items()} == pytest.approx(
            {term: value.item() for term, value in whole[0].items()}, rel=1e-12
        )
        torch.testing.assert_close(other[2], whole[2])
    from_others = whole[1] - none[1]
    assert from_others.abs().max() > 1e-3 * whole[1].abs().max()
    torch.testing.assert_close(tenth[1], none[1] + 0.1 * from_others)


def test_published_settings_have_the_whole_gradient():
    for name in METHODS:
        assert all(preset.method["stage_gradient"] == 1 for preset in find_method(name).PRESETS.values()), (
            name
        )


def test_the_values_stay_the_same_to_the_bit():
    values = torch.randn(100, dtype=torch.float32, requires_grad=True)
    shared = with_gradient_share(values, 0.3)
    assert torch.equal(shared, values)
    shared.sum().backward()
    torch.testing.assert_close(values.grad, torch.full((100,), 0.3))
