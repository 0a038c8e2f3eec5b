from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from refining import FORMS, train
from small_training import ALONE, Small, assert_same
from torch import nn
from two_processes import TESTS, run_two

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.mixup import Mixup, beta, interpolate
from kdcompress.methods.selfkd.mixskd import MixSKD, SelfTeacher


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(TESTS / "methods" / "refining.py", tmp_path_factory.mktemp("two"))


def outputs(heads=3, rows=3):
    torch.manual_seed(0)
    logits = [torch.randn(2 * rows, 4, requires_grad=True) for _ in range(heads)]
    maps = [tuple(torch.randn(rows, 64, 2, 2, requires_grad=True) for _ in range(2)) for _ in range(heads)]
    taught = tuple(torch.randn(rows, 4, requires_grad=True) for _ in range(2))
    return logits, maps, taught


def terms_of(method, logits, maps, taught, share=0.25):
    labels, order = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    scores = method.scores(maps, method.discriminators)
    return method.terms(logits, maps, taught, scores, (labels, labels[order]), share, order)


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0])
def test_shares_have_the_mean_and_variance_of_the_beta_distribution(alpha):
    drawn = torch.stack([beta(alpha, torch.tensor(1000 * k)) for k in range(4000)]).double()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_a_small_alpha_gives_numbers_at_the_ends_and_nothing_undefined():
    drawn = torch.stack([beta(1e-5, torch.tensor(1000 * k)) for k in range(200)])
    assert ((drawn < 1e-3) | (drawn > 0.999)).all()


def test_every_batch_has_its_own_share_and_order_and_a_saved_state_repeats_them():
    torch.manual_seed(0)
    mixup = Mixup(0.4)
    drawn = [mixup.draw(16) for _ in range(3)]
    assert len({share.item() for share, _ in drawn}) == 3
    assert not torch.equal(drawn[0][1], drawn[1][1])
    assert sorted(drawn[0][1].tolist()) == list(range(16))
    state = {name: tensor.clone() for name, tensor in mixup.state_dict().items()}
    expected = mixup.draw(16)
    other = Mixup(0.4)
    other.load_state_dict(state)
    got = other.draw(16)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert not torch.equal(Mixup(0.4).draw(16)[1], drawn[0][1])  # another seed


def test_accumulated_batches_are_mixed_differently(tmp_path):
    small = Small(tmp_path, "mixskd", train={"accumulate": 2, "max_steps": 2})
    small.run()
    assert small.method.mixup.batches.item() == 4


def test_a_row_is_mixed_with_the_one_that_the_order_names():
    rows = torch.tensor([[1.0], [10.0], [100.0]])
    assert interpolate(rows, 0.75, torch.tensor([1, 2, 0])).flatten().tolist() == [3.25, 32.5, 75.25]


def test_networks_see_plain_and_mixed_images_in_one_pass(tmp_path):
    small = Small(tmp_path, "mixskd")
    seen = []
    student = small.student
    handle = student.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = next(small.loader.epoch(0))
    small.method.losses(batch)
    handle.remove()
    assert len(seen) == 1
    small.method.mixup.batches.zero_()
    share, order = small.method.mixup.draw(8)
    plain = student.normalise(batch.images)
    torch.testing.assert_close(seen[0][:8], plain)
    torch.testing.assert_close(seen[0][8:], share * plain + (1 - share) * plain[order])


def test_there_is_a_branch_for_every_stage_but_the_last_and_a_discriminator_for_each_map(tmp_path):
    method = Small(tmp_path, "mixskd").method
    assert method.stages == ["stage1", "stage2"]
    assert len(method.branches) == 2
    assert len(method.discriminators) == 3
    assert method.self_teacher.mix.in_channels == 3 * 64


def test_labels_of_mixed_images_count_by_their_shares_for_every_head_and_the_self_teacher(tmp_path):
    method = Small(tmp_path, "mixskd").method
    logits, maps, taught = outputs()
    terms = terms_of(method, logits, maps, taught, share=0.25)
    one, other = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    expected = sum(
        0.25 * F.cross_entropy(z, one) + 0.75 * F.cross_entropy(z, other)
        for z in (*(z[3:] for z in logits), *taught)
    )
    assert terms["ce_mixed"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(logits[2][:3], one).item(), rel=1e-6)


def test_targets_are_constants_and_the_self_teacher_learns_from_labels_alone(tmp_path):
    method = Small(tmp_path, "mixskd").method
    logits, maps, taught = outputs()
    terms = terms_of(method, logits, maps, taught)
    (terms["mutual"] + terms["self_teacher"] + terms["maps"]).backward()
    assert taught[0].grad is None
    assert taught[1].grad is None
    assert all(z.grad[:3].any() and z.grad[3:].any() for z in logits)
    # Interpolated and mixed maps come towards each other.
    for one, other in maps:
        torch.testing.assert_close(one.grad, -other.grad)


def test_a_discriminator_descends_its_loss_and_the_maps_ascend_it_unless_published(tmp_path):
    gradients = {}
    for kind in ("adversarial", "published"):
        method = Small(tmp_path / kind, "mixskd", config={"discriminator": kind}).method
        torch.manual_seed(4)
        method.discriminators = nn.ModuleList(nn.Linear(64, 2) for _ in range(3))
        method.discriminators.requires_grad_(kind == "adversarial")
        logits, maps, taught = outputs()
        term = terms_of(method, logits, maps, taught)["discriminator"]
        term.backward()
        gradients[kind] = [m.grad for pair in maps for m in pair]
        if kind == "adversarial":
            before, judges = term.item(), method.discriminators
            with torch.no_grad():
                for p in judges.parameters():
                    p -= 0.01 * p.grad
            assert terms_of(method, logits, maps, taught)["discriminator"].item() < before
    for one, other in zip(gradients["adversarial"], gradients["published"], strict=True):
        assert one.any()
        torch.testing.assert_close(one, -other)


def test_a_reversed_gradient_leaves_the_values_as_they_are():
    features = torch.tensor([0.1, 1e-30, -3e7], requires_grad=True)
    turned = losses.reverse_gradient(features)
    assert torch.equal(turned, features)
    (turned * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert features.grad.tolist() == [-1, -2, -3]


def test_telling_sides_apart_is_a_binary_cross_entropy_with_the_targets_10_and_01():
    first, second = torch.randn(3, 2), torch.randn(3, 2)
    targets = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    expected = F.binary_cross_entropy_with_logits(torch.cat([first, second]), targets)
    assert losses.side_cross_entropy(first, second).item() == pytest.approx(expected.item(), rel=1e-6)


def test_published_discriminators_are_not_trained_and_none_is_built_without_a_weight(tmp_path):
    method = Small(tmp_path / "published", "mixskd", config={"discriminator": "published"}).method
    assert "discriminators.0.0.weight" in method.state_dict()
    assert not any(p.requires_grad for p in method.discriminators.parameters())
    method = Small(tmp_path / "none", "mixskd", config={"discriminator_weight": 0.0}).method
    assert len(method.discriminators) == 0


def test_the_self_teacher_averages_larger_maps_to_the_smallest():
    teacher = SelfTeacher([3, 5], 7)
    assert teacher.mix.out_channels == 5
    assert teacher([torch.rand(2, 3, 4, 6), torch.rand(2, 5, 2, 3)]).shape == (2, 7)


def test_a_network_without_a_stage_before_the_last_is_refused_with_what_to_change(tmp_path):
    small = Small(tmp_path, "mixskd")
    networks = small.method.networks
    whole = networks.student.shapes()
    one = type(whole)(logits=whole.logits, pooled=whole.pooled, stages={"stage3": whole.stages["stage3"]})
    networks.student.shapes = lambda: one
    with pytest.raises(NetworkError, match=r"cifar/resnet8 has none .* at 8x8 pixels; name stages"):
        MixSKD(small.method.config, networks, small.method.data)


@pytest.mark.parametrize("name", [name for name, (method, _) in FORMS.items() if method == "mixskd"])
def test_two_processes_train_what_one_trains_since_images_are_mixed_across_them(two, name, tmp_path):
    first, second = (seen[name] for seen in two)
    assert_same(first, second)
    expected = train(tmp_path, name, ALONE)
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-8, atol=1e-8, msg=key)


def test_a_stop_and_resume_on_two_processes_ends_in_the_same_bits(two):
    for each in two:
        assert each["stopped"]
        assert_same(each["unbroken"], each["resumed"])
