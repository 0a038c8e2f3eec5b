from __future__ import annotations

import math

import pytest
import torch
from small_training import Small

from kdcompress.errors import UserError
from kdcompress.methods import losses
from kdcompress.methods.moving_average import MovingAverage
from kdcompress.methods.online.pcl import PCL
from kdcompress.train.choice import check_ship, offered

BRANCHES = ("student", "branch1", "branch2")


def pcl(tmp_path, **config):
    return Small(tmp_path, "pcl", config={"full_weight_epochs": 0, **config}).method


def some_logits(count):
    torch.manual_seed(0)
    return [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def averaged_parameters(method):
    return [p.clone() for part in method.averaged.parts() for p in part.parameters()]


def trained_parameters(method):
    return [p.detach().clone() for part in method.cohort.parts() for p in part.parameters()]


def test_every_branch_and_every_averaged_branch_reads_its_own_view(tmp_path):
    small = Small(tmp_path, "pcl", float64=True)
    method, batch = small.method, next(small.loader.epoch(0))
    with torch.no_grad():
        for parameter in method.averaged.parameters():
            parameter.mul_(1.1)
    small.student.train_mode(False)
    method.eval()  # so that no batch norm mixes the views
    views = [view.images for view in batch.views]
    assert len(views) == 3
    assert not torch.equal(views[0], views[1])
    own, averages = [], []
    for k, images in enumerate(views):
        pixels = small.student.normalise(images)
        own.append(method.cohort.plain(k)(pixels))
        network = method.cohort.plain(0)
        network.load_state_dict(method.averaged.plain_state(k))
        averages.append(network(pixels).detach())
    pooled = [method.cohort(images)[1][k].pooled for k, images in enumerate(views)]
    ensemble = method.classifier(torch.cat(pooled, 1))
    expected = method.terms(own, ensemble, averages, batch.labels)
    got = method.losses(batch)
    assert list(got) == [
        "ce_ensemble", *(f"{term}_{who}" for who in BRANCHES for term in ("ce", "ensemble", "average"))
    ]  # fmt: skip
    for name, term in expected.items():
        torch.testing.assert_close(got[name], term, rtol=1e-9, atol=1e-12, msg=name)


def test_a_branch_learns_from_the_mean_of_the_other_averages_and_not_from_its_own(tmp_path):
    method = pcl(tmp_path, temperature=2.0, average_weight=0.5)
    logits, averages = some_logits(3), [z.detach() + 1 for z in reversed(some_logits(3))]
    terms = method.terms(logits, logits[0], averages, torch.arange(5) % 4)
    each = [losses.kl(logits[1], averages[j], 2.0).item() for j in (0, 2)]
    assert terms["average_branch1"].item() == pytest.approx(0.5 * sum(each) / 2, rel=1e-12)
    total = pcl(tmp_path / "sum", temperature=2.0, average_weight=0.5, over_peers="sum")
    assert total.from_averages(logits[1], averages[::2]).item() == pytest.approx(0.5 * sum(each), rel=1e-12)


def test_the_ensemble_is_a_constant_target_unless_the_config_says_otherwise(tmp_path):
    for detach in (True, False):
        own, ensemble = some_logits(2)
        pcl(tmp_path / str(detach), detach=detach).from_ensemble(own, ensemble).backward()
        assert own.grad is not None
        assert (ensemble.grad is None) == detach


def test_the_average_copies_at_the_first_step_and_takes_the_mean_of_all_as_published(tmp_path):
    small = Small(tmp_path, "pcl", config={"window_share": 1.0}, float64=True)
    method, batch = small.method, next(small.loader.epoch(0))
    history = []
    for _ in range(3):
        with torch.no_grad():
            for part in method.cohort.parts():
                for parameter in part.parameters():
                    parameter.add_(torch.randn_like(parameter))
        history.append(trained_parameters(method))
        method.after_step(batch)
        means = [torch.stack(tensors).mean(0) for tensors in zip(*history, strict=True)]
        torch.testing.assert_close(averaged_parameters(method), means, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("share", "steps", "decay"), [
    (1.0, 0, 0.0), (1.0, 1, 0.5), (1.0, 9, 0.9), (1.0, 5000, 0.999), (0.1, 0, 0.0), (0.1, 90, 0.9),
    (0.1, 5000, 1 - 1 / 501), (0.1, 10_000, 0.999),
])  # fmt: skip
def test_the_decay_grows_with_the_steps_up_to_its_largest(share, steps, decay):
    moving, value = MovingAverage(0.999, share), torch.ones(1, dtype=torch.float64)
    moving.steps.fill_(steps)
    moving.update([value], [torch.zeros(1, dtype=torch.float64)])
    assert value.item() == pytest.approx(decay, rel=1e-9)
    assert moving.steps.item() == steps + 1


def test_the_averaged_network_has_no_gradient_and_its_statistics_come_from_its_own_passes(tmp_path):
    small = Small(tmp_path, "pcl")
    method = small.method
    assert not any(p.requires_grad for p in method.averaged.parameters())
    small.trainer._train_mode(method.phases()[0])
    with torch.no_grad():
        for parameter in method.averaged.stem.parameters():
            parameter.mul_(2)
    sum(method.losses(next(small.loader.epoch(0))).values()).backward()
    assert all(p.grad is None for p in method.averaged.parameters())
    state, trained = method.averaged.plain_state(0), small.student.network.state_dict()
    # Twice the weights of the first convolution: twice the mean of its outputs.
    torch.testing.assert_close(state["bn1.running_mean"], 2 * trained["bn1.running_mean"])


def test_frozen_batch_norm_leaves_the_averaged_statistics_as_they_are(tmp_path):
    small = Small(tmp_path, "pcl", train={"freeze_bn": True, "epochs": 1})
    before = {name: buffer.clone() for name, buffer in small.method.averaged.named_buffers()}
    small.run()
    assert before
    assert all(torch.equal(b, before[name]) for name, b in small.method.averaged.named_buffers())


def test_the_averaged_branches_ship_first_and_the_trained_ones_may(tmp_path):
    small = Small(tmp_path, "pcl", train={"ship": "last"})
    names = [f"ema_{name}" for name in BRANCHES]
    assert list(small.method.candidates()) == [*names, *BRANCHES]
    assert list(small.method.members()) == names
    assert offered(small.method, ema=False)[-1] == "ensemble"
    with pytest.raises(UserError, match="'ema'; did you mean 'ema_student'"):
        check_ship(small.method, "ema", ema=False)
    outcome = small.run()
    assert outcome.candidate == "ema_student"
    state = small.method.averaged.plain_state(0)
    assert torch.equal(outcome.state["conv1.weight"], state["conv1.weight"])
    assert not torch.equal(outcome.state["conv1.weight"], small.student.network.conv1.weight)
    named = Small(tmp_path / "named", "pcl", train={"ship": "ema_branch2"}).run()
    assert named.candidate == "ema_branch2"


def test_the_average_and_its_step_are_in_the_checkpoint(tmp_path):
    small = Small(tmp_path, "pcl")
    small.run()
    saved = torch.load(tmp_path / "student.pt", weights_only=False)["modules"]["method"]
    assert saved["average.steps"].item() == 10
    averaged = small.method.averaged.state_dict()
    assert averaged
    assert all(torch.equal(saved[f"averaged.{key}"], tensor) for key, tensor in averaged.items())


def test_divergences_grow_over_80_of_300_epochs_and_the_reproductions_error_is_not_repeated(tmp_path):
    method = pcl(tmp_path)
    for epoch, epochs, exponent in ((0, 300, -5), (40, 300, -1.25), (80, 300, 0), (4, 30, -1.25)):
        method.on_epoch_start(epoch, epochs)
        assert method.ramp() == pytest.approx(math.exp(exponent))
    own, ensemble = some_logits(2)
    method.on_epoch_start(40, 300)
    expected = math.exp(-1.25) * losses.kl(own, ensemble, 3.0).item()
    assert method.from_ensemble(own, ensemble).item() == pytest.approx(expected, rel=1e-9)
    assert method.from_averages(own, [ensemble]).item() == pytest.approx(expected, rel=1e-9)


def test_there_are_as_many_views_as_branches():
    assert PCL.needs(PCL.Config(branches=4)).views == 4
