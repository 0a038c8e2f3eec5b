from __future__ import annotations

import json
import math

import pytest
import torch
from small_training import CLASSES, Small, Watcher, assert_same, images
from torch import nn

from kdcompress.data.class_weights import scaled_class_weights
from kdcompress.errors import Interrupted, NonFiniteLoss, UserError
from kdcompress.methods import losses
from kdcompress.methods.base import ParameterSet, Phase
from kdcompress.recipe import OptimSection
from kdcompress.train import minimiser
from kdcompress.train.trainer import phase_ends


def lines(folder, name="log.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_two_batches_of_half_the_size_are_one_batch(tmp_path):
    """Batch norm is frozen, since it normalises each batch by itself."""
    common = {"train": {"freeze_bn": True}, "held_out": 0}
    whole = Small(tmp_path / "whole", batch_size=8, **common)
    common["train"] = {"freeze_bn": True, "accumulate": 2}
    halves = Small(tmp_path / "halves", batch_size=4, **common)
    whole.run()
    halves.run()
    assert halves.trainer.at.step == whole.trainer.at.step == 10
    expected = whole.tensors()
    for name, tensor in halves.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)


def test_the_last_step_of_an_epoch_is_the_mean_of_the_batches_it_has(tmp_path):
    common = {"count": 4, "batch_size": 4, "held_out": 0}
    alone = Small(tmp_path / "alone", **common, train={"epochs": 1, "freeze_bn": True})
    short = Small(tmp_path / "short", **common, train={"epochs": 1, "freeze_bn": True, "accumulate": 3})
    alone.run()
    short.run()
    assert_same(alone.tensors(), short.tensors())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_anything_moves_and_says_step_and_term(tmp_path, accumulate):
    small = Small(tmp_path, "kd", train={"accumulate": accumulate}, optim={"schedule": "constant"})
    terms, seen = small.method.losses, {}

    def losses_with_a_mishap(batch):
        step = small.trainer.at.step
        found = terms(batch)
        if step == 2:
            seen.update({n: p.detach().clone() for n, p in small.student.network.named_parameters()})
            found["kd"] = found["kd"] * float("inf")
        return found

    small.method.losses = losses_with_a_mishap
    with pytest.raises(NonFiniteLoss, match=r"student, step 3: the loss is not finite \(kd = (inf|nan)\)"):
        small.run()
    assert seen
    assert_same(seen, {n: p.detach() for n, p in small.student.network.named_parameters()})
    assert small.trainer.at.step == 2


def test_a_gradient_that_is_not_finite_stops_before_anything_moves_when_it_is_clipped(tmp_path):
    small = Small(tmp_path, train={"clip_norm": 1.0})
    before = {n: p.detach().clone() for n, p in small.student.network.named_parameters()}
    terms = small.method.losses
    # The square root of zero: a finite value with an infinite slope.
    small.method.losses = lambda batch: {"ce": terms(batch)["ce"] + (terms(batch)["ce"] * 0).sqrt()}
    with pytest.raises(NonFiniteLoss, match=r"step 1: the gradient is not finite \(norm of main = "):
        small.run()
    assert_same(before, {n: p.detach() for n, p in small.student.network.named_parameters()})


@pytest.mark.parametrize("optim", [{}, {"name": "adamw", "lr": 1e-3}], ids=["sgd", "adamw"])
def test_checks_that_are_read_late_change_no_bit(tmp_path, monkeypatch, optim):
    settings = {"optim": optim, "train": {"clip_norm": 1.0, "ema": 0.9}}
    at_once = Small(tmp_path / "at_once", "kd", **settings)
    at_once.run()
    monkeypatch.setattr(minimiser, "reads_late", lambda device: True)
    late = Small(tmp_path / "late", "kd", **settings)
    late.run()
    assert_same(at_once.tensors(), late.tensors())
    for expected, got in zip(lines(tmp_path / "at_once"), lines(tmp_path / "late"), strict=True):
        assert (got["losses"], got["held_out"]) == (expected["losses"], expected["held_out"])


@pytest.mark.parametrize("optim", [{}, {"name": "adamw", "lr": 1e-3}], ids=["sgd", "adamw"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_read_late_a_value_that_is_not_finite_moves_nothing_and_saves_nothing(
    tmp_path, monkeypatch, where, optim
):
    monkeypatch.setattr(minimiser, "reads_late", lambda device: True)
    optim = {"schedule": "constant", **optim}
    small = Small(tmp_path, train={"clip_norm": 1.0, "max_steps": 9}, optim=optim, count=80)
    terms, seen = small.method.losses, {}

    def losses_with_a_mishap(batch):
        ce = terms(batch)["ce"]
        if small.trainer.at.step == 2:
            seen.update({n: p.detach().clone() for n, p in small.student.network.named_parameters()})
            ce = ce * float("inf") if where == "loss" else ce + (ce * 0).sqrt()
        return {"ce": ce}

    small.method.losses = losses_with_a_mishap
    what = "the loss is not finite" if where == "loss" else "the gradient is not finite"
    with pytest.raises(NonFiniteLoss, match=f"student, step 3: {what}"):
        small.run()
    assert small.trainer.at.step == 9  # read at the end of the epoch
    assert_same(seen, {n: p.detach() for n, p in small.student.network.named_parameters()})
    assert not small.trainer.path.exists()


def test_clipping_bounds_the_gradient_of_a_set_as_a_whole(tmp_path):
    small = Small(tmp_path, train={"clip_norm": 0.01, "max_steps": 1})
    small.run()
    squares = [p.grad.square().sum() for p in small.student.network.parameters()]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_balanced_class_weights_have_mean_one_over_the_images_and_reach_the_loss(tmp_path):
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 8 + [3] * 2)
    weights = scaled_class_weights("balanced", labels, CLASSES)
    assert weights[labels].mean().item() == pytest.approx(1)
    assert (weights * torch.bincount(labels)).tolist() == pytest.approx([10.0] * 4)
    small = Small(tmp_path, data={"class_weights": weights})
    batch = next(small.loader.epoch(0))
    logits = small.student(batch.images).logits
    expected = losses.cross_entropy(logits, batch.labels, weights)
    assert small.method.cross_entropy(logits, batch.labels).item() == expected.item()
    assert expected.item() != losses.cross_entropy(logits, batch.labels).item()
    assert "class_weights" not in small.method.state_dict()


def test_label_smoothing_reaches_the_loss(tmp_path):
    small = Small(tmp_path, data={"label_smoothing": 0.3})
    logits, labels = torch.randn(4, CLASSES), torch.arange(4)
    expected = losses.cross_entropy(logits, labels, label_smoothing=0.3)
    assert small.method.cross_entropy(logits, labels).item() == expected.item()


@pytest.mark.parametrize(("max_steps", "epochs"), [(3, 1), (5, 1), (7, 2)])
def test_max_steps_ends_the_training_wherever_it_stands_and_the_schedule_with_it(tmp_path, max_steps, epochs):
    small = Small(tmp_path, train={"epochs": 4, "max_steps": max_steps})
    outcome = small.run()
    log = lines(tmp_path)
    assert [line["epoch"] for line in log] == list(range(1, epochs + 1))
    assert log[-1]["step"] == small.trainer.at.step == max_steps
    assert outcome.epoch <= epochs
    assert log[-1]["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi * (max_steps - 1) / max_steps)))


def test_losses_in_the_log_are_means_over_the_batches_of_the_epoch(tmp_path):
    small = Small(tmp_path, train={"epochs": 1}, held_out=0)
    terms, seen = small.method.losses, []

    def listening(batch):
        found = terms(batch)
        seen.append(found["ce"].item())
        return found

    small.method.losses = listening
    small.run()
    (line,) = lines(tmp_path)
    assert line["losses"]["ce"] == pytest.approx(sum(seen) / 5, rel=1e-6)
    assert line["held_out"] is None
    assert line["schema"] == "kdcompress.log/1"
    assert line["images_per_s"] > 0


def test_the_average_is_a_candidate_beside_the_student_with_the_students_statistics(tmp_path):
    small = Small(tmp_path, train={"ema": 0.5})
    small.run()
    assert set(lines(tmp_path)[0]["held_out"]["candidates"]) == {"student", "ema"}
    student, average = small.student.network.state_dict(), small.trainer.average.network.state_dict()
    same = {name for name in student if torch.equal(student[name], average[name])}
    buffers = {name for name, _ in small.student.network.named_buffers()}
    assert same == buffers


def test_the_average_is_that_of_its_formula(tmp_path):
    small = Small(tmp_path, train={"ema": 0.5, "epochs": 1}, held_out=0)
    weight = small.student.network.fc.weight
    expected, steps = weight.detach().clone(), []

    def after_step(batch):
        decay = min(0.5, (1 + len(steps)) / (10 + len(steps)))
        steps.append(decay)
        expected.mul_(decay).add_(weight.detach(), alpha=1 - decay)

    small.method.after_step = after_step
    outcome = small.run()
    assert steps[0] == 0.1
    torch.testing.assert_close(small.trainer.average.network.fc.weight, expected)
    assert outcome.candidate == "ema"
    assert torch.equal(outcome.state["fc.weight"], small.trainer.average.network.fc.weight)


def with_scores(small, scores):
    """Lets held-out data say what the test wants it to say, candidate by candidate."""
    choice = small.trainer.choice

    def broadcast(_):
        names = choice._candidates()
        return {name: {"top1": scores[name].pop(0), "loss": 1.0} for name in names}, dict.fromkeys(names)

    choice._processes = type("Scripted", (), {"first": False, "broadcast": staticmethod(broadcast)})()


def test_the_best_epoch_and_candidate_ships_and_of_equals_the_earliest(tmp_path):
    small = Small(tmp_path, train={"epochs": 4, "ema": 0.9})
    with_scores(small, {"student": [0.1, 0.7, 0.2, 0.1], "ema": [0.2, 0.6, 0.7, 0.3]})
    states = []
    share = small.trainer.choice._state_of
    small.trainer.choice._state_of = lambda name: states.append(share(name)) or states[-1]
    outcome = small.run()
    assert (outcome.candidate, outcome.epoch) == ("student", 2)
    assert outcome.best["top1"] == 0.7
    assert outcome.last["top1"] == 0.3  # the last epoch's default candidate, the average
    assert_same(outcome.state, states[1])
    now = small.student.network.state_dict()
    assert not torch.equal(outcome.state["fc.weight"], now["fc.weight"])


def test_last_ships_the_last_epochs_student_whatever_held_out_data_says(tmp_path):
    small = Small(tmp_path, train={"epochs": 3, "ship": "last"})
    with_scores(small, {"student": [0.9, 0.1, 0.2]})
    outcome = small.run()
    assert (outcome.candidate, outcome.epoch, outcome.best["epoch"]) == ("student", 3, 1)
    assert_same(outcome.state, small.student.network.state_dict())


def test_where_nothing_is_held_out_the_last_epoch_ships(tmp_path):
    small = Small(tmp_path, held_out=0)
    outcome = small.run()
    assert (outcome.best, outcome.last, outcome.epoch) == (None, None, 2)
    assert_same(outcome.state, small.student.network.state_dict())


def test_evaluation_leaves_no_trace_in_the_training(tmp_path):
    watched, alone = Small(tmp_path / "watched"), Small(tmp_path / "alone", held_out=0)
    watched.run()
    alone.run()
    assert_same(watched.tensors(), alone.tensors())


def test_the_log_has_one_line_an_epoch_after_a_crash_between_checkpoints(tmp_path):
    class Crash(Exception):
        pass

    def crash():
        raise Crash

    train = {"epochs": 3, "checkpoint_minutes": 1e-9}
    with pytest.raises(Crash):
        Small(tmp_path, train=train, watcher=Watcher(8, crash)).run()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"schema": "kdcompress.log/1", "epoch": 2, "half a li')
    Small(tmp_path, train=train).run()
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_stop_in_the_last_step_of_an_epoch_is_not_forgotten(tmp_path, epochs):
    with pytest.raises(Interrupted, match=f"stopped at step 5 of {5 * epochs}"):
        Small(tmp_path, train={"epochs": epochs}, watcher=Watcher(5)).run()
    outcome = Small(tmp_path, train={"epochs": epochs}).run()
    assert outcome.last is not None
    assert [line["epoch"] for line in lines(tmp_path)] == list(range(1, epochs + 1))


def test_a_finished_training_that_is_resumed_gives_its_result_again_and_trains_nothing(tmp_path):
    first = Small(tmp_path).run()
    watcher = Watcher()
    again = Small(tmp_path, watcher=watcher).run()
    assert watcher.seen == 10
    assert_same(first.state, again.state)
    assert (first.best, first.last, first.seconds) == (again.best, again.last, again.seconds)


def test_seconds_and_speed_of_an_epoch_count_what_came_before_an_interruption(tmp_path):
    with pytest.raises(Interrupted):
        Small(tmp_path, train={"epochs": 1}, watcher=Watcher(3)).run()
    small = Small(tmp_path, train={"epochs": 1})
    state = torch.load(tmp_path / "student.pt", weights_only=True)
    state["position"]["seconds"] = state["position"]["epoch_seconds"] = 1000.0
    torch.save(state, tmp_path / "student.pt")
    outcome = small.run()
    (line,) = lines(tmp_path)
    assert line["seconds"] > 1000
    assert outcome.seconds > 1000
    assert line["images_per_s"] < 1


def test_two_sets_are_moved_each_by_its_own_loss_and_rate(tmp_path):
    small = Small(
        tmp_path,
        "kd",
        train={"max_steps": 1},
        optim={"weight_decay": 0.0, "momentum": 0.0, "nesterov": False},
    )
    network, trainer = small.student.network, small.trainer
    head, stem = [network.fc.weight], [network.conv1.weight]
    trainer.sets = {"head": ParameterSet(tuple(head)), "stem": ParameterSet(tuple(stem), lr_scale=0.5)}
    trainer.phases = [type(trainer.phases[0])("main", 1.0, ("head", "stem"))]

    def step(batch, minimise):
        minimise({"first": head[0].sum() + 100 * stem[0].sum()}, "head")
        minimise({"second": 3 * stem[0].sum() + 100 * head[0].sum()}, "stem")

    small.method.step = step
    before = [p.detach().clone() for p in (*head, *stem)]
    small.run()
    torch.testing.assert_close(before[0] - head[0], torch.full_like(head[0], 0.02), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(before[1] - stem[0], torch.full_like(stem[0], 0.03), rtol=1e-3, atol=1e-7)
    assert set(lines(tmp_path)[0]["losses"]) == {"first", "second"}


def in_two_sets(small, **of_head):
    """Trains the classifier and the rest as two sets; options of the classifier's set are given."""
    network, trainer = small.student.network, small.trainer
    head = list(network.fc.parameters())
    rest = [p for p in network.parameters() if all(p is not h for h in head)]
    trainer.sets = {"head": ParameterSet(tuple(head), **of_head), "rest": ParameterSet(tuple(rest))}
    trainer.phases = [Phase("main", 1.0, ("head", "rest"))]
    return small


def test_a_set_has_an_optimiser_and_a_schedule_of_its_own(tmp_path):
    own = OptimSection(name="adamw", lr=0.003, schedule="constant", weight_decay=0.0)
    small = in_two_sets(Small(tmp_path, train={"epochs": 2}), optim=own)
    seen = {}
    step = small.method.step

    def listening(batch, minimise):
        step(batch, minimise)
        seen.update({name: (type(o), o.param_groups[0]["lr"]) for name, o in minimise.optimisers.items()})

    small.method.step = listening
    small.run()
    assert seen["head"] == (torch.optim.AdamW, 0.003)
    assert seen["rest"][0] is torch.optim.SGD
    assert seen["rest"][1] < 0.02 * 0.05  # the end of a cosine
    assert lines(tmp_path)[-1]["lr"] == seen["rest"][1]


@pytest.mark.parametrize("keep", [True, False])
def test_a_phase_keeps_or_renews_the_optimisers_and_so_does_a_resume_at_its_border(tmp_path, keep):
    def two_phases(folder, watcher=None):
        small = Small(folder, train={"epochs": 2}, held_out=0, watcher=watcher)
        small.trainer.phases = [
            Phase("one", 0.5, ("main",)), Phase("two", 0.5, ("main",), keep_optimiser=keep),
        ]  # fmt: skip
        return small

    first_momentum, step_of = [], {}
    small = two_phases(tmp_path / "whole")
    step = small.method.step

    def listening(batch, minimise):
        state = minimise.optimisers["main"].state
        if small.method.phase == "two" and "two" not in step_of:
            step_of["two"] = True
            first_momentum.append(any(bool(s["momentum_buffer"].any()) for s in state.values()))
        step(batch, minimise)

    small.method.step = listening
    small.run()
    assert first_momentum == [keep]
    with pytest.raises(Interrupted):
        two_phases(tmp_path / "stopped", Watcher(5)).run()
    resumed = two_phases(tmp_path / "stopped")
    resumed.run()
    assert_same(small.tensors(), resumed.tensors())


def in_phases(folder, *phases, watcher=None, **train):
    """A training of two epochs of five steps; the phases are given."""
    small = Small(folder, train={"epochs": 2, **train}, held_out=0, watcher=watcher)
    small.trainer.phases = list(phases)
    return small


def steps_of_phases(small):
    """Runs it and returns the phase and the learning rate of every step."""
    seen, step = [], small.method.step

    def listening(batch, minimise):
        step(batch, minimise)
        seen.append((small.method.phase, minimise.optimisers["main"].param_groups[0]["lr"], batch.indices))

    small.method.step = listening
    small.run()
    return seen


WITHIN = [
    Phase("one", 0.3, ("main",), whole_epochs=False, schedule="constant"),
    Phase("two", 0.7, ("main",), whole_epochs=False),
]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_phase_may_end_within_an_epoch_and_no_image_is_skipped_or_seen_twice(tmp_path, accumulate):
    seen = steps_of_phases(in_phases(tmp_path / "two", *WITHIN, accumulate=accumulate))
    steps = 6 if accumulate == 2 else 10
    first = round(0.3 * steps) * accumulate
    assert [name for name, _, _ in seen] == ["one"] * first + ["two"] * (10 - first)
    alone = steps_of_phases(in_phases(tmp_path / "one", Phase("main", 1.0, ("main",)), accumulate=accumulate))
    assert all(torch.equal(a[2], b[2]) for a, b in zip(seen, alone, strict=True))
    # Two epochs, so two lines; the first ended in the second phase.
    assert [line["phase"] for line in lines(tmp_path / "two")] == ["student/two"] * 2


def test_a_constant_phase_holds_the_rate_and_the_next_one_runs_the_whole_schedule(tmp_path):
    seen = steps_of_phases(in_phases(tmp_path, *WITHIN))
    rates = [rate for _, rate, _ in seen]
    assert rates[:4] == [0.02] * 4
    assert rates[3:] == [pytest.approx(0.01 * (1 + math.cos(math.pi * i / 7))) for i in range(7)]


@pytest.mark.parametrize("stop", [2, 3, 4, 7])
def test_a_resume_before_at_and_behind_the_border_within_an_epoch_equals_an_unbroken_run(tmp_path, stop):
    whole = in_phases(tmp_path / "whole", *WITHIN)
    whole.run()
    with pytest.raises(Interrupted):
        in_phases(tmp_path / "stopped", *WITHIN, watcher=Watcher(stop)).run()
    resumed = in_phases(tmp_path / "stopped", *WITHIN)
    resumed.run()
    assert_same(whole.tensors(), resumed.tensors())
    figures = [[(e["step"], e["losses"]) for e in lines(tmp_path / name)] for name in ("whole", "stopped")]
    assert figures[0] == figures[1]


def phase(share, *, whole=True):
    return Phase("x", share, ("main",), whole_epochs=whole)


@pytest.mark.parametrize(
    ("phases", "epochs", "steps", "cut", "ends"),
    [
        ([phase(30 / 270), phase(240 / 270)], 270, 10, None, [300, 2700]),
        ([phase(0.11), phase(0.89)], 5, 10, None, [10, 50]),  # at least an epoch
        ([phase(0.11, whole=False), phase(0.89, whole=False)], 5, 10, None, [6, 50]),
        ([phase(30 / 270, whole=False), phase(240 / 270, whole=False)], 270, 10, None, [300, 2700]),
        ([phase(0.11, whole=False), phase(0.89, whole=False)], 5, 10, 20, [2, 20]),  # train.max_steps
        ([phase(0.001, whole=False), phase(0.999, whole=False)], 1, 2, None, [1, 2]),
        ([phase(0.999, whole=False), phase(0.001, whole=False)], 1, 5, None, [4, 5]),
        ([phase(0.1, whole=False), phase(0.5), phase(0.4)], 3, 10, None, [3, 20, 30]),
    ],
)
def test_phases_end_after_their_share_of_epochs_or_of_steps(phases, epochs, steps, cut, ends):
    assert phase_ends(phases, epochs, steps, cut) == ends


def test_fewer_epochs_or_steps_than_phases_are_refused():
    with pytest.raises(UserError, match=r"train.epochs: 1, but the method has 2 phases \(x, x\): one each"):
        phase_ends([phase(0.5), phase(0.5)], 1, 10)
    with pytest.raises(UserError, match="2 phases"):
        phase_ends([phase(0.5, whole=False), phase(0.5, whole=False)], 1, 1)


def test_a_phase_says_whether_it_is_resumed(tmp_path):
    calls = []

    def listening(folder, watcher=None):
        small = Small(folder, watcher=watcher)
        start = small.method.on_phase_start
        small.method.on_phase_start = lambda name, resumed: (
            calls.append((name, resumed)) or start(name, resumed)
        )
        return small

    with pytest.raises(Interrupted):
        listening(tmp_path, Watcher(3)).run()
    listening(tmp_path).run()
    assert calls == [("main", False), ("main", True)]


def test_figures_that_are_not_minimised_are_logged_as_means_over_the_steps_that_have_them(tmp_path):
    small = Small(tmp_path, train={"epochs": 1}, held_out=0)
    step = small.method.step

    def with_figures(batch, minimise):
        step(batch, minimise)
        if small.trainer.at.step % 2 == 0:
            minimise.log({"meta_seconds": 0.5 + small.trainer.at.step, "share": torch.tensor(0.25)})

    small.method.step = with_figures
    small.run()
    (line,) = lines(tmp_path)
    share = line["logged"].pop("meta_time_share")  # of an epoch that took its own time
    assert line["logged"] == {"meta_seconds": pytest.approx(2.5), "share": 0.25}  # steps 0, 2 and 4
    assert share == pytest.approx(7.5 / small.trainer.at.epoch_seconds)
    assert "meta_seconds" not in line["losses"]


def test_a_frozen_phase_reaches_the_norms_of_the_method_itself(tmp_path):
    small = Small(tmp_path, "fitnet")
    norms = [m for m in small.method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    small.trainer._train_mode(Phase("x", 1.0, ("main",), freeze_bn=True))
    assert not any(norm.training for norm in norms)
    small.trainer._train_mode(Phase("x", 1.0, ("main",)))
    assert all(norm.training for norm in norms)


def test_fp16_skips_a_step_whose_loss_overflows_and_goes_on(tmp_path):
    small = Small(tmp_path, precision=torch.float16, train={"epochs": 1}, held_out=0)
    losses_of, before = small.method.losses, {}

    def overflows_once(batch):
        terms = losses_of(batch)
        if small.trainer.at.step == 2:
            before.update({n: p.detach().clone() for n, p in small.student.network.named_parameters()})
            return {name: term * float("inf") for name, term in terms.items()}
        if small.trainer.at.step == 3:
            assert_same(before, {n: p.detach() for n, p in small.student.network.named_parameters()})
        return terms

    small.method.losses = overflows_once
    small.run()
    assert before
    (line,) = lines(tmp_path)
    assert math.isfinite(line["losses"]["ce"])
    assert small.trainer.at.step == 5


def test_fp16_that_overflows_at_every_step_ends_with_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(minimiser, "FP16_SKIPS", 3)
    small = Small(tmp_path, precision=torch.float16)
    losses_of = small.method.losses
    small.method.losses = lambda batch: {n: t * float("nan") for n, t in losses_of(batch).items()}
    with pytest.raises(NonFiniteLoss, match=r"after 3 skipped steps the loss is not finite \(ce = nan"):
        small.run()


def test_fp16_that_overflows_in_one_of_several_updates_of_a_step_ends_too(tmp_path, monkeypatch):
    monkeypatch.setattr(minimiser, "FP16_SKIPS", 3)
    small = Small(tmp_path, "afd", precision=torch.float16)
    label_terms = small.method._label_terms
    monkeypatch.setattr(
        small.method,
        "_label_terms",
        lambda batch: {name: term * float("nan") for name, term in label_terms(batch).items()},
    )
    with pytest.raises(
        NonFiniteLoss, match=r"after 3 skipped steps the loss is not finite \(ce_student = nan"
    ):
        small.run()


def test_a_damaged_checkpoint_continues_from_the_one_before_to_the_same_bits(tmp_path):
    whole = Small(tmp_path / "whole", train={"epochs": 3})
    whole.run()
    with pytest.raises(Interrupted):
        Small(tmp_path / "cut", train={"epochs": 3}, watcher=Watcher(12)).run()
    newest = tmp_path / "cut" / "student.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    said = []
    again = Small(tmp_path / "cut", train={"epochs": 3})
    again.trainer.progress.warn = said.append
    again.run()
    assert len(said) == 1
    assert "continuing from the one before, at step 10" in said[0]
    assert_same(whole.tensors(), again.tensors())
    assert [line["epoch"] for line in lines(tmp_path / "cut")] == [1, 2, 3]


def test_every_fiftieth_step_is_sampled(tmp_path):
    Small(tmp_path, count=8, batch_size=2, train={"epochs": 26}, held_out=0, optim={"lr": 1e-4}).run()
    assert [line["step"] for line in lines(tmp_path, "steps.jsonl")] == [50, 100]


def test_a_set_smaller_than_a_batch_is_one_batch(tmp_path):
    small = Small(tmp_path, count=5, batch_size=64)
    small.run()
    assert small.trainer.at.step == 2


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_compiled_student_learns_what_it_would_learn_uncompiled(tmp_path):
    # batch norm frozen: the compiler orders sums otherwise, and batch norm of 8 small images magnifies it
    train = {"epochs": 1, "freeze_bn": True}
    plain, compiled = (
        Small(tmp_path / str(on), "kd", train={**train, "compile": on}) for on in (False, True)
    )
    expected, got = plain.run(), compiled.run()
    assert compiled.student.compiled is not None
    assert list(got.state) == list(expected.state)  # no prefix of the compiler's
    for name, tensor in got.state.items():
        torch.testing.assert_close(tensor, expected.state[name], rtol=1e-3, atol=1e-4, msg=name)


def on_cuda(**more):
    from kdcompress.train.processes import Processes

    return {"processes": Processes(0, 1, torch.device("cuda", 0)), **more}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_trains_on_cuda_and_fp16_through_a_scaler(tmp_path, precision):
    small = Small(tmp_path, "kd", **on_cuda(precision=precision, train={"epochs": 3, "clip_norm": 5.0}))
    small.run()
    state = torch.load(tmp_path / "student.pt", weights_only=True)
    assert bool(state["optimisers"]["scaler"]) == (precision == torch.float16)
    assert {p.dtype for p in small.student.network.parameters()} == {torch.float32}
    log = lines(tmp_path)
    assert log[-1]["losses"]["kd"] < log[0]["losses"]["kd"]


@pytest.mark.cuda
def test_images_and_weights_are_channels_last_on_cuda(tmp_path):
    small = Small(tmp_path, **on_cuda())
    batch = next(small.loader.epoch(0))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    small.run()
    weight = small.student.network.layer1[0].conv1.weight
    assert weight.device.type == "cuda"
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
def test_a_step_on_cuda_is_a_step_on_the_cpu(tmp_path):
    train = {"max_steps": 1, "epochs": 1}
    here, there = (
        Small(tmp_path / "cpu", "kd", train=train),
        Small(tmp_path / "cuda", "kd", **on_cuda(train=train)),
    )
    here.run()
    there.run()
    expected = here.tensors()
    for name, tensor in there.tensors().items():
        torch.testing.assert_close(tensor.cpu(), expected[name], rtol=1e-2, atol=1e-3, msg=name)


def test_the_images_of_these_tests_can_be_learnt(tmp_path):
    """Without this, nothing above would notice a loop that learns nothing."""
    assert len(images(4, 8)) == 4
    outcome = Small(tmp_path, train={"epochs": 12}, optim={"lr": 0.05}, count=80).run()
    assert outcome.best["top1"] >= 0.9
