from __future__ import annotations

import math

import pytest
import torch
from small_training import Small

from kdcompress.errors import UserError
from kdcompress.methods import losses
from kdcompress.methods.offline.seed import SEED


def made(folder, data=None, **config):
    data = {"batch_size": 0, **(data or {})}  # not known
    return Small(folder, "seed", config={"ce_weight": 1.0, "queue": 24, **config}, data=data).method


def rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_term_is_the_cross_entropy_of_two_softmaxed_lists_of_similarities(tmp_path):
    method = made(tmp_path, queue=3, weight=2.0, teacher_temperature=0.3, student_temperature=0.5)
    ours, theirs = rows(2, 64), rows(2, 64, 1)
    method.queue = losses.unit_rows(rows(3, 64, 2)).T

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def unit(row):
        return [x / math.sqrt(dot(row, row)) for x in row]

    def softmax(values, temperature):
        powers = [math.exp(v / temperature) for v in values]
        return [p / sum(powers) for p in powers]

    expected = 0.0
    for our, their in zip(ours.tolist(), theirs.tolist(), strict=True):
        our, their = unit(our), unit(their)
        compared = [their, *method.queue.T.tolist()]
        target = softmax([dot(their, other) for other in compared], 0.3)
        got = softmax([dot(our, other) for other in compared], 0.5)
        expected -= sum(t * math.log(g) for t, g in zip(target, got, strict=True))
    assert method.similarities(ours, theirs).item() == pytest.approx(2 * expected / 2)


def test_a_student_that_embeds_as_the_teacher_does_has_nothing_to_learn(tmp_path):
    method = made(tmp_path, teacher_temperature=0.2, student_temperature=0.2)
    theirs = rows(8, 64)
    ours = (3 * theirs).requires_grad_()
    method.double().similarities(ours, theirs).backward()
    assert ours.grad.abs().max() < 1e-15
    away = rows(8, 64, 1).requires_grad_()
    method.similarities(away, theirs).backward()
    assert away.grad.abs().max() > 1e-4


def test_at_the_codes_temperature_only_the_images_own_column_is_taught_and_at_0_01_the_queue_is_too(tmp_path):
    method = made(tmp_path)
    theirs = losses.unit_rows(rows(4, 64))
    # One embedding in the queue is nearly that of the first image.
    method.queue[:, 5] = losses.unit_rows(theirs[:1] + 0.02 * rows(1, 64, 1))[0]
    sharp, soft = (
        losses.queue_logits(theirs, theirs, method.queue.double(), t).softmax(1) for t in (1e-4, 0.01)
    )
    assert sharp[:, 0] == pytest.approx(1)
    assert soft[0, 6] > 0.05
    assert soft[1:, 0] == pytest.approx(1)


def test_the_queue_starts_as_unit_columns_of_all_directions(tmp_path):
    method = made(tmp_path, queue=4096)
    assert method.queue.shape == (64, 4096)
    assert method.queue.dtype == torch.float32
    torch.testing.assert_close(method.queue.norm(dim=0), torch.ones(4096))
    # Their mean is as short as that of independent ones.
    assert method.queue.mean(1).norm() < 2 / 64
    assert method.pointer == 0


def test_a_steps_batches_replace_the_oldest_once_the_step_is_done_and_go_round(tmp_path):
    method = made(tmp_path).double()
    start = method.queue.clone()
    batches = [rows(8, 64, seed) for seed in range(4)]
    units = [losses.unit_rows(batch).T for batch in batches]
    for theirs in batches[:2]:
        method.similarities(rows(8, 64, 9), theirs)
    assert torch.equal(method.queue, start)
    method.after_step(None)
    assert torch.equal(method.queue, torch.cat([*units[:2], start[:, 16:]], 1))
    assert method.pointer == 16
    method.after_step(None)  # nothing is queued twice
    assert method.pointer == 16
    for theirs in batches[2:]:
        method.similarities(rows(8, 64, 9), theirs)
        method.after_step(None)
    assert torch.equal(method.queue, torch.cat([units[3], units[1], units[2]], 1))
    assert method.pointer == 8


def test_queue_and_pointer_are_part_of_the_checkpoint(tmp_path):
    method = made(tmp_path).double()
    assert {key for key in method.state_dict() if not key.startswith("head.")} == {"queue", "pointer"}
    method.similarities(rows(8, 64), rows(8, 64, 1))
    method.after_step(None)
    again = made(tmp_path).double()
    assert not torch.equal(again.queue, method.queue)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.queue, method.queue)
    assert again.pointer == 8


def test_a_training_queues_what_the_teacher_said_of_the_last_images(tmp_path):
    # Two epochs of five batches: the last of ten went to the first of the three places.
    small = Small(tmp_path, "seed", config={"ce_weight": 1.0, "queue": 24}, data={"batch_size": 8})
    small.run()
    assert small.method.pointer == 80 % 24
    batches = [batch for epoch in range(2) for batch in small.loader.epoch(epoch)]
    for place, number in ((0, 9), (8, 7), (16, 8)):
        pooled = small.frozen(batches[number].views[0], frozenset({"pooled"})).pooled
        got = small.method.queue[:, place : place + 8]
        torch.testing.assert_close(got, losses.unit_rows(pooled).T)


def test_a_queue_that_is_not_made_of_whole_batches_is_refused_before_training(tmp_path):
    with pytest.raises(UserError) as caught:
        made(tmp_path, {"batch_size": 8}, queue=20)
    assert str(caught.value) == (
        "method seed: a queue of 20 is not made of whole batches, which have 8 images; set method.queue to a "
        "multiple of that, such as 16"
    )
    with pytest.raises(UserError, match=r"such as 8$"):
        made(tmp_path, {"batch_size": 8}, queue=3)
    assert made(tmp_path, {"batch_size": 8}, queue=16).queue.shape[1] == 16


def test_where_the_batch_is_not_known_before_the_first_step_tells(tmp_path):
    method = made(tmp_path, queue=20).double()
    method.similarities(rows(8, 64), rows(8, 64, 1))
    with pytest.raises(AssertionError, match="a queue of 20 is not made of whole batches of 8"):
        method.after_step(None)


def test_the_head_has_two_layers_and_ends_as_wide_as_the_teachers_features(tmp_path):
    method = made(tmp_path)
    method.networks.teacher.shapes = lambda: type(method.networks.student.shapes())(
        pooled=torch.empty(2, 96, device="meta")
    )
    wider = SEED(SEED.Config(queue=8), method.networks, method.data)
    assert [tuple(p.shape) for p in wider.head.parameters()] == [(64, 64), (64,), (96, 64), (96,)]
    assert wider.queue.shape == (96, 8)
