from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
import torch
from pydantic import ValidationError
from small_training import ALONE, TEACHER, Small, Watcher, assert_same

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.offline.sskd import SSKD
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.train.job import Job
from kdcompress.train.journal import Journal
from kdcompress.train.trainer import Trainer


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_kth_view_is_turned_k_times_and_stands_image_by_image():
    views = torch.arange(2 * 4 * 4.0).reshape(4, 2, 1, 2, 2)
    got = losses.turned_views(views)
    assert torch.equal(got[0::4], views[0])
    for k in range(4):
        assert torch.equal(got[k::4], losses.four_rotations(views[k])[k::4])
    assert torch.equal(losses.turned_views([views[1]] * 4), losses.four_rotations(views[1]))


def test_cosines_are_of_turned_rows_with_upright_ones():
    table = rows(8, 3)
    expected = [
        [
            sum(a * b for a, b in zip(row, upright, strict=True)) / math.hypot(*row) / math.hypot(*upright)
            for upright in table.tolist()[0::4]
        ]
        for i, row in enumerate(table.tolist())
        if i % 4
    ]
    got = losses.turned_cosines(table)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert losses.own_images(got).tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(losses.rotation_rows(table), table[[1, 2, 3, 5, 6, 7]])


def test_the_pretext_loss_is_its_definition_written_out():
    table = rows(12, 5)
    total = 0.0
    for row, own in zip(losses.turned_cosines(table).tolist(), [0, 0, 0, 1, 1, 1, 2, 2, 2], strict=True):
        total -= math.log(math.exp(row[own]) / sum(math.exp(c) for c in row))
    assert losses.own_image_cross_entropy(table).item() == pytest.approx(total / 9)
    assert losses.own_image_cross_entropy(torch.ones(12, 5)).item() == pytest.approx(math.log(3))


def test_a_rank_counts_the_columns_before_the_right_one_in_a_stable_order():
    scores = torch.tensor([[3.0, 5.0, 5.0, 1.0]]).repeat(5, 1)
    assert losses.rank_of(scores, torch.tensor([0, 1, 2, 3, -1])).tolist() == [2, 0, 1, 3, 0]
    scores = torch.randint(4, (50, 6), generator=torch.Generator().manual_seed(0)).double()
    columns = torch.arange(50) % 6
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(losses.rank_of(scores, columns), (order == columns.unsqueeze(1)).nonzero()[:, 1])


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.5, 0.75, 1.0])
def test_all_right_rows_are_kept_and_the_least_wrong_share_of_the_others(ratio):
    dice = random.Random(0)
    for length in (1, 7, 40, 130):
        ranks = [dice.choice([0, 0, 1, 2, 5]) for _ in range(length)]
        wrong = sorted((rank, i) for i, rank in enumerate(ranks) if rank)
        expected = {i for i, rank in enumerate(ranks) if not rank}
        expected |= {i for _, i in wrong[: int(ratio * len(wrong))]}
        kept = losses.top_ratio_correct(torch.tensor(ranks), ratio)
        assert set(kept.nonzero().flatten().tolist()) == expected
    # 0.29 · 100 is 28.999... in a Python number.
    assert (
        losses.top_ratio_correct(torch.ones(100, dtype=torch.int64), 0.29).tolist()
        == [True] * 28 + [False] * 72
    )


def test_the_loss_is_a_mean_over_the_kept_rows_alone():
    student, teacher = rows(5, 3).requires_grad_(), rows(5, 3, seed=1)
    kept = torch.tensor([True, False, True, True, False])
    got = losses.masked_kl(student, teacher, kept, 4.0)
    assert got.item() == pytest.approx(losses.kl(student[kept], teacher[kept], 4.0).item())
    assert torch.equal(torch.autograd.grad(got, student)[0].any(1), kept)
    none = losses.masked_kl(student, teacher, torch.zeros_like(kept), 4.0)
    assert none.item() == 0
    assert not torch.autograd.grad(none, student)[0].any()
    assert losses.masked_kl(teacher, teacher, kept, 4.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        losses.own_image_cross_entropy,
        lambda table: losses.turned_cosines(table).square().mean(),
        lambda table: losses.masked_kl(table, table.flip(0), torch.tensor([True, False] * 4), 0.5),
    ],
    ids=["pretext", "cosines", "kept"],
)
def test_half_precision_is_widened(function):
    table = rows(8, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = function(table)
    assert got.dtype == torch.float32
    assert torch.equal(got, function(table.float()))


def test_both_networks_see_four_views_of_every_image_each_turned_once_more(tmp_path, monkeypatch):
    small, seen = Small(tmp_path, "sskd"), []
    read = Tapped.__call__
    monkeypatch.setattr(Tapped, "__call__", lambda *given: seen.append(given[1]) or read(*given))
    batch = next(small.loader.epoch(0))
    assert set(small.method.losses(batch)) == {"ss", "tf", "ce", "kd"}
    assert len(seen) == 2
    assert torch.equal(*seen)
    for k, view in enumerate(batch.views):
        back = torch.rot90(seen[0][k::4], -k, dims=(2, 3))
        assert torch.equal(back, view.images)
        assert k == 0 or not torch.equal(view.images, batch.images)


def test_each_term_reaches_its_rows_alone(tmp_path):
    method = Small(tmp_path, "sskd", config={"ss_ratio": 1.0}).method
    logits, projected = rows(8, 4).requires_grad_(), rows(8, 6).requires_grad_()
    given = (logits, rows(8, 4, seed=1), projected, rows(8, 9, seed=1), torch.tensor([0, 1]))
    for name, term in method.terms(*given).items():
        of_logits, of_projected = torch.autograd.grad(
            term, [logits, projected], allow_unused=True, retain_graph=True
        )
        if name == "ss":
            assert of_logits is None
            assert of_projected.any(1).all()
            continue
        assert of_projected is None
        upright = torch.tensor([True, False, False, False] * 2)
        assert torch.equal(of_logits.any(1), ~upright if name == "tf" else upright)


def test_the_teacher_decides_by_the_label_which_turned_images_are_kept(tmp_path):
    method = Small(tmp_path, "sskd", config={"tf_ratio": 0.5}).method
    teacher = torch.zeros(12, 4, dtype=torch.float64)
    # Of the turned rows of an image of class 3 the first is right, the others are wrong by 1, 2 and more.
    for row, rank in {1: 0, 2: 1, 3: 2, 5: 3, 6: 1, 7: 0}.items():
        teacher[row, :rank], teacher[row, 3] = 2, 1
    teacher[9:, 0] = 5
    logits = rows(12, 4).requires_grad_()
    projected = rows(12, 6)
    given = (logits, teacher, projected, projected)

    def taught(labels):
        term = method.terms(*given, torch.tensor(labels))["tf"]
        return torch.autograd.grad(term, logits)[0].any(1).nonzero().flatten().tolist()

    # Two of four wrong ones; nobody knows of an error in the last image, which has no label.
    assert taught([3, 3, -1]) == [1, 2, 6, 7, 9, 10, 11]
    # Three of seven, once it is known to be wrong: earlier ones of equal rank.
    assert taught([3, 3, 1]) == [1, 2, 6, 7, 9]


def test_labels_are_needed_for_the_cross_entropy_and_to_rank(tmp_path):
    def needs(**config):
        return SSKD.needs(SSKD.Config(**config))

    assert needs().labels
    assert not needs(ce_weight=0.0).labels
    assert needs(ce_weight=0.0, tf_ratio=0.5).labels
    assert not needs(ce_weight=0.0, tf_ratio=0.5, tf_weight=0.0).labels
    assert needs().unlabelled
    assert needs().views == 4
    assert needs(kd_weight=0.0, tf_weight=0.0).read_of_teacher == {"pooled"}
    small = Small(tmp_path, "sskd", config={"kd_weight": 0.0, "tf_weight": 0.0})
    assert set(small.method.losses(next(small.loader.epoch(0)))) == {"ss", "ce"}
    unlabelled = Small(tmp_path, "sskd", config={"ce_weight": 0.0})
    batch = next(unlabelled.loader.epoch(0))
    nothing_said = type(batch)(batch.views, torch.full_like(batch.labels, -1), batch.indices)
    expected = unlabelled.method.losses(batch)
    assert {k: v.item() for k, v in unlabelled.method.losses(nothing_said).items()} == {
        k: v.item() for k, v in expected.items()
    }


def test_weights_that_leave_the_classifier_untrained_are_refused():
    with pytest.raises(ValidationError, match="nothing trains the classifier where ce_weight, kd_weight and"):
        SSKD.Config(ce_weight=0.0, kd_weight=0.0, tf_weight=0.0)


def test_the_teachers_head_is_kept_but_not_trained_and_the_students_is(tmp_path):
    small = Small(tmp_path, "sskd", train={"epochs": 1})
    before = {name: t.clone() for name, t in small.method.state_dict().items()}
    small.run()
    moved = {name for name, t in small.method.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {f"head_student.{layer}" for layer in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert {name.split(".")[0] for name in before} == {"head_student", "head_teacher"}
    assert small.method.head_student.training
    assert not small.method.head_teacher.training
    assert small.method.head_student[0].weight.shape == (64, 64)


def prepared(small, folder, epochs=None):
    """The preparation of a small training's method and the Trainer that runs it, as a run does."""
    (asked,) = SSKD.preparations(small.method.config)
    networks = Networks(small.teacher, small.frozen)
    small.teacher.network.requires_grad_(False)
    torch.manual_seed(3)
    method = asked.method(asked.config, networks, small.method.data)
    epochs = epochs or asked.epochs
    train = TrainSection(epochs=epochs, precision="fp32")
    optim = OptimSection(lr=asked.lr, schedule="multistep", milestones=list(asked.milestones))
    job = Job("preparation", folder, train, optim, epochs, False, "kdcompress distill --resume")
    return method, Trainer(method, small.loader, None, job, ALONE, Journal(folder), Watcher())


def test_the_preparation_is_the_published_one_unless_the_recipe_says_otherwise():
    (asked,) = SSKD.preparations(SSKD.Config())
    assert (asked.epochs, asked.lr, asked.milestones) == (60, 0.05, (0.5, 0.75))
    assert asked.config == asked.method.Config()
    (asked,) = SSKD.preparations(SSKD.Config(head_epochs=7, head_lr=0.1, head_milestones=[0.9]))
    assert (asked.epochs, asked.lr, asked.milestones) == (7, 0.1, (0.9,))
    needs = asked.method.needs(asked.config)
    assert (needs.teacher, needs.views, needs.labels, needs.unlabelled) == (True, 4, False, True)
    assert needs.read_of_teacher == {"pooled"}


def test_the_preparation_trains_the_head_alone_and_hands_it_over(tmp_path):
    small = Small(tmp_path, "sskd")
    method, trainer = prepared(small, tmp_path, epochs=12)
    held = {id(p) for group in method.parameter_sets().values() for p in group.parameters}
    assert held == {id(p) for p in method.parameters()}
    teacher = {name: t.clone() for name, t in small.teacher.network.state_dict().items()}
    before = {name: t.clone() for name, t in method.state_dict().items()}
    outcome = trainer.run()
    lines = [json.loads(line)["losses"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"pretext"}] * 12
    assert lines[0]["pretext"] < math.log(8) + 0.1
    assert lines[-1]["pretext"] < 0.9 * lines[0]["pretext"]
    small.frozen.assert_unchanged()
    assert_same(teacher, small.teacher.network.state_dict())
    assert all(not torch.equal(t, before[name]) for name, t in method.state_dict().items())

    assert (outcome.candidate, outcome.model) == ("head", TEACHER)
    small.method.take_prepared("preparation", outcome.state)
    assert_same(outcome.state, small.method.head_teacher.state_dict())
    assert not any(p.requires_grad for p in small.method.head_teacher.parameters())
    assert_same(outcome.state, method.head.state_dict())


def test_a_state_that_is_not_that_head_is_not_taken(tmp_path):
    method = Small(tmp_path, "sskd").method
    state = method.head_teacher.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        method.take_prepared("preparation", {name: t for name, t in state.items() if name != "0.bias"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        method.take_prepared("preparation", {name: t[:5] for name, t in state.items()})


def test_images_that_are_not_square_are_refused_by_both_trainings(tmp_path):
    method = Small(tmp_path, "sskd").method
    oblong = dataclasses.replace(method.data, image_size=(8, 12))
    for cls, config in ((SSKD, method.config), (SSKD.Pretext, SSKD.Pretext.Config())):
        with pytest.raises(
            NetworkError, match=r"must be square, not 8x12; set data.image_size to one number"
        ):
            cls(config, method.networks, oblong)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_pooled_features_is_refused_with_what_to_name(role, tmp_path):
    method = Small(tmp_path, "sskd").method
    network = getattr(method.networks, role)
    without = type(network.shapes())(logits=network.shapes().logits)
    network.shapes = lambda: without
    said = rf"method sskd: .*the {role} {network.model} has none.*{role}.taps: \{{classifier: MODULE.PATH\}}"
    with pytest.raises(NetworkError, match=said):
        SSKD(method.config, method.networks, method.data)
    if role == "teacher":
        with pytest.raises(NetworkError, match=said):
            SSKD.Pretext(SSKD.Pretext.Config(), method.networks, method.data)
