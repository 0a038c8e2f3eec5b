from __future__ import annotations

import copy

import pytest
import torch
from several_families import images_for, tapped

from kdcompress.errors import NetworkError, Uncuttable
from kdcompress.networks.build import build
from kdcompress.networks.cohort import Cohort, CohortCopy
from kdcompress.networks.tapped import ALL

CUTTABLE = {
    "cifar/resnet8x4": "stage2",
    "cifar/wrn-16-1": "stage2",
    "cifar/vgg8": "stage2",
    "cifar/mobilenet-v2": "stage2",
    "cifar/shufflenet-v2": "stage2",
    "torchvision/resnet18": "stage2",
    "torchvision/mobilenet_v3_small": "stage3",
    "torchvision/densenet121": "stage1",
}


@pytest.mark.parametrize("model", CUTTABLE)
def test_branch_zero_is_the_student_and_the_others_are_fresh(model):
    student = tapped(model)
    cohort = Cohort(student, 3, CUTTABLE[model])
    student.train_mode(False)
    cohort.eval()
    images = images_for(student)
    with torch.no_grad():
        shared, branches = cohort(images, frozenset({"logits", "pooled", "stages"}))
        alone = student(images, ALL)
    assert len(cohort) == len(branches) == 3
    torch.testing.assert_close(shared, alone.stages[CUTTABLE[model]])
    torch.testing.assert_close(branches[0].logits, alone.logits)
    torch.testing.assert_close(branches[0].pooled, alone.pooled)
    assert not torch.allclose(branches[1].logits, branches[2].logits)
    assert branches[1].pooled.shape == alone.pooled.shape
    last = list(alone.stages.values())[-1]
    torch.testing.assert_close(branches[0].stages["map"], last)
    assert branches[1].stages["map"].shape == last.shape
    assert not torch.allclose(branches[1].stages["map"], last)


def test_only_what_is_wanted_of_the_branches_is_given():
    student = tapped("cifar/resnet8x4")
    cohort = Cohort(student, 2, "stage2")
    images = images_for(student)
    _, (own, fresh) = cohort(images, frozenset({"logits"}))
    for read in (own, fresh):
        assert (read.logits.shape, read.pooled, read.stages) == ((3, 5), None, {})


def test_each_branch_may_read_a_view_of_its_own():
    student = tapped("cifar/resnet8x4")
    cohort = Cohort(student, 3, "stage2")
    student.train_mode(False)
    cohort.eval()
    images = images_for(student, 6)
    with torch.no_grad():
        shared, branches = cohort(images, views=2)
        _, first = cohort(images[:3])
        _, second = cohort(images[3:])
    assert len(shared) == 6
    for got, expected in zip(branches, [first[0], second[1], first[2]], strict=True):
        torch.testing.assert_close(got.logits, expected.logits)


def test_batch_norm_of_the_branches_can_be_frozen():
    student = tapped("cifar/resnet8x4")
    cohort = Cohort(student, 2, "stage2")
    cohort.train_mode(True, freeze_bn=True)
    before = {name: buffer.clone() for name, buffer in cohort.named_buffers()}
    cohort(images_for(student))
    assert cohort.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in cohort.named_buffers())
    cohort.train_mode(True)
    cohort(images_for(student))
    assert not torch.equal(
        cohort.tails[0].stage3[0].bn1.running_mean, before["tails.0.stage3.0.bn1.running_mean"]
    )


def test_the_state_of_a_branch_is_that_of_its_plain_network_and_builds_none(monkeypatch):
    student = tapped("torchvision/mobilenet_v3_small")
    cohort = Cohort(student, 2, "stage3")
    expected = cohort.plain(1).state_dict()

    def refused(*_):
        raise AssertionError("a network was built")

    monkeypatch.setattr("kdcompress.networks.build.build", refused)
    state = cohort.plain_state(1)
    assert list(state) == list(student.network.state_dict())
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    own = student.network.state_dict()
    differs = {key for key in own if not torch.equal(own[key], state[key])}
    assert differs
    assert differs < set(own)
    with torch.no_grad():
        cohort.tails[0].head[-1][-1].bias.add_(1)  # the tensors themselves, as they are now
    assert torch.equal(state["classifier.3.bias"], expected["classifier.3.bias"] + 1)
    assert all(torch.equal(cohort.plain_state(0)[key], own[key]) for key in own)
    with pytest.raises(IndexError):
        cohort.plain_state(2)


@pytest.mark.parametrize("model", CUTTABLE)
def test_every_branch_becomes_a_plain_network_that_gives_the_same(model):
    student = tapped(model)
    cohort = Cohort(student, 2, CUTTABLE[model])
    student.train_mode(True)
    images = images_for(student, 4)
    _, branches = cohort(images)  # moves every batch norm's statistics, those of the fresh branch too
    sum(branch.logits.square().mean() for branch in branches).backward()
    student.train_mode(False)
    cohort.eval()
    state = torch.get_rng_state()
    plains = [cohort.plain(k) for k in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        _, branches = cohort(images)
        for branch, network in zip(branches, plains, strict=True):
            torch.testing.assert_close(network(student.normalise(images)), branch.logits)
    expected = student.network.state_dict()
    assert list(plains[0].state_dict()) == list(expected)
    for name, tensor in plains[0].state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    fresh = build(model, num_classes=5, channels=3, image_size=student.image_size)
    fresh.load_state_dict(plains[1].state_dict(), strict=True)
    shared = {id(p) for p in [*student.network.parameters(), *cohort.parameters()]}
    assert not any(id(p) in shared for network in plains for p in network.parameters())


def test_a_cohort_owns_its_further_branches_and_nothing_of_the_student():
    student = tapped("cifar/resnet8x4")
    cohort = Cohort(student, 3, "stage1")
    own = {id(p) for p in student.network.parameters()}
    assert not any(id(p) in own for p in cohort.parameters())
    assert all(name.startswith("tails.") for name in cohort.state_dict())
    cohort.eval()
    assert student.network.training


def test_gradients_of_all_branches_meet_in_the_shared_part():
    student = tapped("cifar/resnet8x4")
    cohort = Cohort(student, 2, "stage2")
    _, branches = cohort(images_for(student))
    branches[1].logits.square().sum().backward()
    assert student.network.conv1.weight.grad is not None
    assert student.network.fc.weight.grad is None
    assert all(p.grad is not None for p in cohort.parameters())


def test_a_cohort_runs_in_the_students_precision_and_reads_float32():
    student = tapped("cifar/resnet8x4")
    cohort = Cohort(student, 2, "stage2")
    student.precision = torch.bfloat16
    shared, branches = cohort(images_for(student))
    assert shared.dtype == branches[1].logits.dtype == branches[1].pooled.dtype == torch.float32


def test_no_hook_outlives_a_pass():
    student = tapped("cifar/resnet8x4")
    cohort = Cohort(student, 2, "stage2")
    cohort(images_for(student))
    for module in [*student.network.modules(), *cohort.modules()]:
        assert not module._forward_pre_hooks
    copy.deepcopy(cohort)


def test_what_is_no_cohort_says_so():
    student = tapped("cifar/resnet8x4")
    with pytest.raises(NetworkError, match="at least 2 branches, got 1"):
        Cohort(student, 1, "stage1")
    with pytest.raises(NetworkError, match="no stage 'stage7'"):
        Cohort(student, 2, "stage7")
    with pytest.raises(Uncuttable, match="cannot be cut behind"):
        Cohort(tapped("cifar/resnet8x4", stage1="layer1.0.conv1"), 2, "stage1")


@pytest.mark.parametrize("model", ["cifar/resnet8x4", "cifar/vgg8", "torchvision/mobilenet_v3_small"])
def test_a_copy_gives_the_same_as_its_cohort_and_keeps_its_values(model):
    student = tapped(model)
    cohort = Cohort(student, 3, CUTTABLE[model])
    copied = CohortCopy(cohort)
    student.train_mode(False)
    cohort.eval()
    copied.eval()
    images = images_for(student, 4)
    with torch.no_grad():
        expected = cohort(images, views=2)
        got = copied(images, views=2)
        torch.testing.assert_close(got[0], expected[0])
        for one, other in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close((one.logits, one.pooled), (other.logits, other.pooled))
        states = [copied.plain_state(k) for k in range(3)]
        for k, state in enumerate(states):
            plain = cohort.plain_state(k)
            assert list(state) == list(plain)
            assert all(torch.equal(state[key], plain[key]) for key in plain)
        before = {key: tensor.clone() for key, tensor in copied.state_dict().items()}
        for part in cohort.parts():
            for parameter in part.parameters():
                parameter.add_(1)
        assert all(torch.equal(tensor, before[key]) for key, tensor in copied.state_dict().items())
    network = build(model, num_classes=5, channels=3, image_size=student.image_size)
    network.load_state_dict(states[2], strict=True)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(student.normalise(images[:2])), expected[1][2].logits[:2])


def test_the_parts_of_a_copy_have_the_tensors_of_the_cohorts_parts_in_their_order():
    cohort = Cohort(tapped("cifar/resnet8x4"), 2, "stage2")
    pairs = list(zip(cohort.parts(), CohortCopy(cohort).parts(), strict=True))
    assert len(pairs) == 3
    for own, other in pairs:
        assert [name for name, _ in own.named_parameters()] == [name for name, _ in other.named_parameters()]
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))
