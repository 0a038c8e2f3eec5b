from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods.selfkd.byot import BYOT
from kdcompress.methods.stage_heads import attention_head, bottleneck_head
from kdcompress.networks.exits import Exit


def test_there_is_a_head_for_every_stage_but_the_last_and_no_hint_next_to_the_deepest(tmp_path):
    byot = Small(tmp_path, "byot", config={"hint_weight": 0.03}).method
    # resnet8 has three stages; heads are counted from the deepest.
    assert byot.stages == ["stage2", "stage1"]
    assert len(byot.heads) == 2
    assert len(byot.adapters) == 1


def test_a_head_halves_its_map_down_to_the_last_stage_and_gives_features_as_wide_as_the_student():
    for head in (attention_head(16, 64, 10, halvings=2), bottleneck_head(16, 64, 10, shrink=(4, 4))):
        read = head(torch.rand(2, 16, 8, 8))
        assert read.stages["map"].shape == (2, 64, 2, 2)
        assert read.pooled.shape == (2, 64)
        assert read.logits.shape == (2, 10)


def test_the_deepest_classifier_is_taught_by_labels_alone(tmp_path):
    byot = Small(tmp_path, "byot", config={"hint_weight": 0.03}).method
    rows = [torch.randn(4, 4, requires_grad=True) for _ in range(3)]
    features = [torch.randn(4, 64, requires_grad=True) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3])
    terms = byot.terms(rows, features, list(byot.adapters), labels)
    (terms["soft"] + terms["hint"] + terms["ce_heads"]).backward()
    assert rows[0].grad is None
    assert features[0].grad is None
    assert rows[1].grad is not None
    assert features[1].grad is None  # the head next to the deepest has no hint
    assert features[2].grad is not None


def test_terms_have_the_weights_of_the_config(tmp_path):
    terms = {}
    for alpha, hint_weight in ((0.25, 1.0), (0.75, 2.0)):
        config = {"alpha": alpha, "hint_weight": hint_weight}
        small = Small(tmp_path, "byot", config=config)
        terms[alpha] = small.method.losses(next(small.loader.epoch(0)))
    first, second = terms[0.25], terms[0.75]
    assert (first["ce_heads"] / second["ce_heads"]).item() == pytest.approx(3, rel=1e-5)
    assert (second["soft"] / first["soft"]).item() == pytest.approx(3, rel=1e-5)
    assert (second["hint"] / first["hint"]).item() == pytest.approx(2, rel=1e-5)
    assert first["ce"].item() == pytest.approx(second["ce"].item(), rel=1e-6)


def test_a_network_of_one_stage_is_refused_with_what_to_change(tmp_path):
    small = Small(tmp_path, "byot", config={"hint_weight": 0.03})
    networks = small.method.networks
    whole = networks.student.shapes()
    one = type(whole)(logits=whole.logits, pooled=whole.pooled, stages={"stage1": whole.stages["stage1"]})
    networks.student.shapes = lambda: one
    with pytest.raises(
        NetworkError, match=r"needs two stages or more, cifar/resnet8 has 1 at 8x8.*student.taps"
    ):
        BYOT(small.method.config, networks, small.method.data)


def terms_of(byot, classes=4, width=64):
    """The terms of three heads that see fixed logits and features."""
    generator = torch.Generator().manual_seed(0)
    logits, features = (
        [torch.randn(4, size, generator=generator) for _ in range(3)] for size in (classes, width)
    )
    return logits, features, byot.terms(logits, features, list(byot.adapters), torch.tensor([0, 1, 2, 3]))


def test_each_weight_of_the_labels_is_its_own(tmp_path):
    config = {"alpha": 1.0, "ce_weight": 0.5, "deepest_ce_weight": 0.9}
    byot = Small(tmp_path, "byot", config=config).method
    logits, _, terms = terms_of(byot)
    labels = torch.tensor([0, 1, 2, 3])
    each = [torch.nn.functional.cross_entropy(rows, labels).item() for rows in logits]
    assert terms["ce"].item() == pytest.approx(0.9 * each[0], rel=1e-5)
    assert terms["ce_heads"].item() == pytest.approx(0.5 * (each[1] + each[2]), rel=1e-5)


@pytest.mark.parametrize(("squared", "factor"), [(False, 1.0), (True, 16.0)])
def test_kl_and_cross_entropy_differ_by_the_entropy_of_the_target_whatever_the_factor(
    tmp_path, squared, factor
):
    values = {}
    for soft in ("kl", "cross_entropy"):
        config = {"temperature": 4.0, "alpha": 1.0, "soft": soft, "squared_factor": squared}
        logits, _, terms = terms_of(Small(tmp_path, "byot", config=config).method)
        values[soft] = terms["soft"].item()
    target = (logits[0] / 4).softmax(1)
    entropy = -(target * target.log()).sum(1).mean().item()
    assert values["cross_entropy"] - values["kl"] == pytest.approx(2 * factor * entropy, rel=1e-4)


@pytest.mark.parametrize("hinted", ["all_but_next", "all"])
@pytest.mark.parametrize("hint", ["norm", "mean_squared", "active_sum"])
def test_hints_are_the_written_distances_of_the_named_heads(tmp_path, hint, hinted):
    config = {"hint": hint, "hint_weight": 2.0, "hinted": hinted, "adapters": False}
    _, (deepest, *others), terms = terms_of(Small(tmp_path, "byot", config=config).method)
    total = 0.0
    for features in others[1:] if hinted == "all_but_next" else others:
        difference = features - deepest
        active = (features > 0) | (deepest > 0)
        total += {
            "norm": difference.norm(),
            "mean_squared": difference.square().sum() / difference.numel(),
            "active_sum": difference[active].square().sum(),
        }[hint].item()
    assert terms["hint"].item() == pytest.approx(2 * total, rel=1e-5)


def test_the_largest_number_of_heads_keeps_those_on_the_deepest_stages(tmp_path):
    byot = Small(tmp_path, "byot", config={"heads": 1, "head": "stages"}).method
    assert byot.stages == ["stage2"]
    assert [type(head) for head in byot.heads] == [Exit]


def test_maps_of_other_shapes_are_refused_with_what_to_change(tmp_path):
    # At 10x10 pixels the maps are 10, 5 and 3 high: no whole number shrinks 5 to 3.
    config = {"hint_weight": 1.0, "hint_reads": "map", "hinted": "all", "head": "attention"}
    Small(tmp_path, "byot", config=config, side=10)
    with pytest.raises(NetworkError, match=r"64x5x5 and 64x3x3; choose hint_reads: pooled"):
        Small(tmp_path, "byot", config={**config, "head": "bottleneck"}, side=10)


@pytest.mark.parametrize("form", ["attention", "stages", "bottleneck"])
def test_early_exits_are_the_logits_of_the_heads_shallowest_first(tmp_path, form):
    small = Small(tmp_path, "byot", config={"head": form})
    byot, student = small.method, small.student
    byot.eval()
    student.train_mode(False)
    maps = student(torch.rand(3, 3, 8, 8), frozenset({"stages"})).stages
    exits = byot.early_exits()
    assert list(exits) == ["stage1", "stage2"]
    for stage, head in zip(byot.stages, byot.heads, strict=True):
        torch.testing.assert_close(exits[stage](maps[stage]), head(maps[stage]).logits)
    own = {id(p) for p in student.network.parameters()}
    assert not own & {id(p) for exit_ in exits.values() for p in exit_.parameters()}


def test_a_hint_that_no_head_would_have_is_refused(tmp_path):
    with pytest.raises(NetworkError, match=r"the only head has no hint; set method.hinted: all, or"):
        Small(tmp_path, "byot", config={"heads": 1, "hint_weight": 0.03})
    Small(tmp_path / "all", "byot", config={"heads": 1, "hint_weight": 0.03, "hinted": "all"})
