from __future__ import annotations

import json

import pytest
import torch
from small_training import Small, assert_same, widen

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.offline.ab import AB
from kdcompress.networks.activations import Activations

HALVES = {"initial_share": 0.5}
OTHER_CHANNELS = "torchvision/mobilenet_v3_small"


def test_where_the_deepest_stages_pair_all_but_the_classifier_are_features(tmp_path):
    small = Small(tmp_path, "ab")
    before = {key: tensor.clone() for key, tensor in small.tensors().items()}
    rest = small.method.parameter_sets()["rest"].parameters
    assert [id(p) for p in rest] == [id(p) for p in small.student.classifier.parameters()]
    # Looking for them leaves no trace.
    assert_same(before, small.tensors())
    assert small.student.network.training
    assert all(p.requires_grad and p.grad is None for p in small.student.network.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "cost"),
    [
        (1, 2, 0),
        (3, 2, 0),
        (0, 2, 1),
        (-1, 2, 4),
        (-1, -2, 0),
        (-3, -2, 0),
        (0, -2, 1),
        (1, -2, 4),
        (0, 0, 1),
    ],
)
def test_a_pre_activation_costs_what_it_lacks_to_the_margin_on_the_teachers_side(student, teacher, cost):
    student, teacher = torch.tensor([[float(student)]]), torch.tensor([[float(teacher)]])
    assert losses.activation_boundaries(student, teacher).item() == cost


def test_costs_are_summed_over_the_map_and_meant_over_rows():
    student, teacher = torch.zeros(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    assert losses.activation_boundaries(student, teacher).item() == 2 * 4 * 4
    assert losses.activation_boundaries(student, teacher, 2.0).item() == 4 * 2 * 4 * 4


def test_a_stage_counts_half_of_the_one_behind_it(tmp_path):
    ab = Small(tmp_path, "ab", config={"weight": 0.003}).method
    zeros = [torch.zeros(2, 1, 2, 2)] * 3
    assert [loss.item() for loss in ab.boundaries(zeros, zeros)] == pytest.approx(
        [0.003 * 4 * weight for weight in (0.25, 0.5, 1)]
    )


def test_by_default_the_loss_is_a_mean_over_the_elements_of_the_deepest_map(tmp_path):
    ab = Small(tmp_path, "ab").method
    large, small = ([torch.zeros(2, c, side, side)] for c, side in ((128, 8), (16, 4)))
    # Every element costs 1.
    assert [ab.boundaries(m, m)[0].item() for m in (large, small)] == pytest.approx([1.0, 1.0])


def test_five_epochs_spend_a_ninth_of_their_steps_on_the_boundaries_at_a_constant_rate(tmp_path):
    small = Small(tmp_path, "ab", train={"epochs": 5}, held_out=0)  # five steps each
    seen, step = [], small.method.step

    def listening(batch, minimise):
        step(batch, minimise)
        rates = {group["lr"] for o in minimise.optimisers.values() for group in o.param_groups}
        seen.append((small.method.phase, *rates))

    small.method.step = listening
    small.run()
    assert [name for name, _ in seen] == ["boundaries"] * 3 + ["labels"] * 22
    assert [rate for _, rate in seen[:4]] == [0.02] * 4
    assert seen[-1][1] < 0.001
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert set(first["losses"]) == {"boundaries", "ce", "kd"}


def test_connectors_stand_where_channels_differ_without_a_bias_or_an_activation(tmp_path):
    assert not Small(tmp_path, "ab").method.connectors
    connectors = Small(tmp_path, "ab", student=OTHER_CHANNELS).method.connectors
    assert connectors
    for connector in connectors.values():
        convolution, norm = connector
        assert convolution.bias is None
        assert isinstance(norm, torch.nn.BatchNorm2d)


def test_the_first_phase_trains_features_and_connectors_on_the_boundaries_alone(tmp_path):
    small = Small(tmp_path, "ab", student=OTHER_CHANNELS, config=HALVES, optim={"weight_decay": 0.0})
    sets, phases = small.method.parameter_sets(), small.method.phases()
    assert [phase.sets for phase in phases] == [("features", "connectors"), ("features", "rest")]
    rest = {id(p) for p in sets["rest"].parameters}
    assert {id(p) for p in small.student.classifier.parameters()} < rest
    # One epoch of each; the classifier is looked at where the first one ends.
    classifier = small.student.classifier
    before, seen = classifier.weight.detach().clone(), []
    small.trainer._close_epoch = closing(small.trainer._close_epoch, lambda: seen.append(snapshot(small)))
    small.run()
    first, last = seen
    assert torch.equal(first["classifier"], before)
    assert not torch.equal(last["classifier"], before)
    assert torch.equal(first["connector"], last["connector"])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["phase"], list(line["losses"])) for line in lines] == [
        ("student/boundaries", ["boundaries"]), ("student/labels", ["ce", "kd"]),
    ]  # fmt: skip


def closing(close, look):
    def looked(*args):
        close(*args)
        look()

    return looked


def snapshot(small):
    connector = next(small.method.connectors.parameters())
    return {
        "classifier": small.student.classifier.weight.detach().clone(),
        "connector": connector.detach().clone(),
    }


def test_the_second_phase_has_soft_labels_if_asked_for(tmp_path):
    small = Small(tmp_path, "ab", config={**HALVES, "kd_weight": 0.5})
    batch = next(small.loader.epoch(0))
    small.method.on_phase_start("boundaries", resumed=False)
    assert list(small.method.losses(batch)) == ["boundaries"]
    small.method.on_phase_start("labels", resumed=False)
    terms = small.method.losses(batch)
    student, teacher = small.student(batch.images).logits, small.frozen(batch.images).logits
    assert terms["kd"].item() == pytest.approx(0.5 * losses.kl(student, teacher, 3.0).item(), rel=1e-5)


def test_the_boundaries_are_those_of_the_frozen_teacher_before_its_activations(tmp_path):
    small = Small(tmp_path, "ab", config=HALVES, float64=True)
    batch = next(small.loader.epoch(0))
    small.method.on_phase_start("boundaries", resumed=False)
    widen(small.teacher)
    small.teacher.network.eval()
    with torch.no_grad():
        ours = small.student(batch.images, frozenset({"pre"})).pre
        theirs = small.teacher(batch.images, frozenset({"pre"})).pre
    assert all((theirs[stage] < 0).any() for stage in theirs)
    expected = sum(small.method.boundaries(list(ours.values()), list(theirs.values()))).item()
    assert small.method.losses(batch)["boundaries"].item() == pytest.approx(
        expected, rel=1e-5
    )  # folded in float32


def test_networks_without_a_stage_of_one_size_are_refused(tmp_path):
    small = Small(tmp_path, "ab")
    networks = small.method.networks
    odd = Activations(stages={"stage1": torch.empty(2, 64, 3, 3, device="meta")})
    networks.student.shapes = lambda: odd
    with pytest.raises(
        NetworkError,
        match=r"cifar/resnet8 \(stage1 64×3×3\) is exactly as large.*cifar/resnet14 \(.*student.taps",
    ):
        AB(small.method.config, networks, small.method.data)
