from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from contrasting import FROZEN, keys, train
from small_training import ALONE, CLASSES, Small, assert_same
from torch import nn
from two_processes import TESTS, run_two

from kdcompress.errors import NetworkError, UserError
from kdcompress.methods import losses
from kdcompress.methods.selfkd.moco import MoCo, collect, deal
from kdcompress.networks.norm_groups import grouped_batch_norm


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(TESTS / "methods" / "contrasting.py", tmp_path_factory.mktemp("two"))


def rows(count, width=128, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the loss


def test_the_term_is_the_surprise_at_the_images_own_key_among_those_of_the_queue(tmp_path):
    method = Small(tmp_path, "moco", config={"temperature": 0.5}).method
    queries, own = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    method.queue = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    # Unit queries (0.6, 0.8) and (0, 1); the own keys are (1, 0) and (0, 1).
    first = -math.log(math.exp(1.2) / sum(math.exp(2 * x) for x in (0.6, 0.6, 0.8, -0.6)))
    second = -math.log(math.exp(2) / sum(math.exp(2 * x) for x in (1, 0, 1, 0)))
    assert method.contrast(queries, own).item() == pytest.approx((first + second) / 2)


def test_equal_columns_cost_the_logarithm_of_their_number():
    assert losses.own_column_cross_entropy(torch.full((3, 9), 2.0)).item() == pytest.approx(math.log(9))


def test_gradients_reach_the_query_alone(tmp_path):
    small = Small(tmp_path, "moco", float64=True)
    query, own = rows(8).requires_grad_(), rows(8, seed=1)
    small.method.contrast(query, own).backward()
    assert query.grad.abs().max() > 0
    batch = next(small.loader.epoch(0))
    assert not small.method.keys(batch.views[1].images, 1).requires_grad
    small.method.losses(batch)["contrast"].backward()
    trained = [*small.student.network.parameters(), *small.method.head.parameters()]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    assert all(p.grad is None for p in small.method.key_encoder.parameters())


def test_the_queries_are_of_the_first_view_and_the_keys_of_the_second(tmp_path):
    small = Small(tmp_path, "moco", float64=True)
    method, batch = small.method, next(small.loader.epoch(0))
    got = method.losses(batch)["contrast"]
    one, other = (
        method.head(small.student(view.images, frozenset({"pooled"})).pooled) for view in batch.views
    )
    q, k = F.normalize(one, dim=1), F.normalize(other, dim=1).detach()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue], 1) / 0.1
    expected = F.cross_entropy(logits, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)


# ---- copy and queue


def test_the_copy_starts_as_the_student_and_follows_it_by_the_momentum(tmp_path):
    small = Small(tmp_path, "moco", config={"momentum": 0.75}, optim={"schedule": "constant"}, held_out=0)
    student, method = small.student.network, small.method
    trained = [*student.parameters(), *method.head.parameters()]
    averages = list(method.key_encoder.parameters())
    assert all(torch.equal(a, p) for a, p in zip(averages, trained, strict=True))
    expected = [p.detach().clone() for p in trained]
    after_step = method.after_step

    def follow(batch):
        after_step(batch)
        for average, parameter in zip(expected, trained, strict=True):
            average.mul_(0.75).add_(parameter.detach(), alpha=0.25)

    method.after_step = follow
    small.run()
    for average, want, now in zip(averages, expected, trained, strict=True):
        torch.testing.assert_close(average, want)
        assert not torch.equal(average, now)


def test_the_copys_batch_norms_have_statistics_of_their_own(tmp_path):
    small = Small(tmp_path, "moco", held_out=0)
    small.run()
    copied = dict(small.method.key_encoder[0].named_buffers())
    for name, buffer in small.student.network.named_buffers():
        if name.endswith("running_mean"):
            assert copied[name].abs().max() > 0
            assert not torch.equal(copied[name], buffer)


def test_a_training_queues_the_keys_of_the_last_batches_once_each_step_is_done(tmp_path):
    # Ten batches of 8 into 24 places: the last of them went to the first place.
    small = Small(tmp_path, "moco", config={"queue": 24}, data={"batch_size": 8}, held_out=0)
    given, contrast = [], small.method.contrast

    def noted(queries, own):
        given.append((losses.unit_rows(own).T, small.method.queue.clone()))
        return contrast(queries, own)

    small.method.contrast = noted
    small.run()
    assert small.method.pointer == 80 % 24
    for place, number in ((0, 9), (8, 7), (16, 8)):
        assert torch.equal(small.method.queue[:, place : place + 8], given[number][0])
    # A query is compared with earlier batches only.
    assert torch.equal(given[4][1][:, :24], torch.cat([given[3][0], given[1][0], given[2][0]], 1))


def test_copy_queue_and_pointer_are_in_the_checkpoint_and_the_backbone_alone_ships(tmp_path):
    small = Small(tmp_path, "moco", labelled=False)
    outcome = small.run()
    assert list(outcome.state) == list(small.student.network.state_dict())
    saved = torch.load(tmp_path / "student.pt", weights_only=False)["modules"]["method"]
    assert torch.equal(saved["queue"], small.method.queue)
    assert saved["pointer"] == small.method.pointer
    assert sum(key.startswith("key_encoder.") for key in saved) == len(small.method.key_encoder.state_dict())


@pytest.mark.parametrize(
    ("images", "batch", "places"),
    [(50_000, 64, 4096), (50_000, 100, 4000), (1_437, 64, 320), (200, 64, 64), (60, 60, 60)],
)
def test_by_default_the_queue_has_whole_batches_of_at_most_a_quarter_of_the_images(
    images, batch, places, tmp_path
):
    method = Small(tmp_path, "moco").method
    labels = torch.zeros(images, dtype=torch.int64)
    data = type(method.data)(CLASSES, labels, (8, 8), 3, batch_size=batch)
    made = MoCo(MoCo.Config(), method.networks, data)
    assert made.queue.shape == (128, places)
    torch.testing.assert_close(made.queue.norm(dim=0), torch.ones(places))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"queue": 20}, r"method moco: a queue of 20 .* whole batches, which have 8 images; .* such as 16"),
        ({"queue": 48}, r"a queue of 48 would hold several keys of one image, since there are 40 training"),
        ({"norm_groups": 3}, r"a batch of 8 images cannot be split into 3 equal groups .* set method.norm_g"),
        ({"norm_groups": 8}, r"cannot be split into 8 equal groups of at least two images"),
    ],
    ids=str,
)
def test_queues_and_groups_that_do_not_fit_the_data_are_refused_with_what_to_change(
    config, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        Small(tmp_path, "moco", config=config)


def test_a_student_without_pooled_features_is_refused(tmp_path):
    method = Small(tmp_path, "moco").method
    method.networks.student.shapes = lambda: type("Shapes", (), {"pooled": None})()
    with pytest.raises(NetworkError, match=r"method moco: .* the student cifar/resnet8 has none"):
        MoCo(method.config, method.networks, method.data)


# ---- batch norm in groups


def test_dealt_rows_share_one_row_with_each_group_that_they_came_from_and_are_collected_again():
    dealt = deal(torch.arange(16).reshape(16, 1), 4)
    assert dealt.flatten().tolist() == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    for group in dealt.chunk(4):
        assert sorted((group // 4).flatten().tolist()) == [0, 1, 2, 3]
    wide = torch.rand(12, 2, 3)
    assert torch.equal(collect(deal(wide, 3), 3), wide)
    assert torch.equal(collect(deal(wide, 6), 6), wide)


@pytest.mark.parametrize(
    ("rows", "setting", "groups"),
    [(8, None, 1), (32, None, 2), (64, None, 4), (512, None, 8), (40, None, 2), (7, None, 1), (8, 4, 4)],
)
def test_by_default_there_are_at_most_eight_groups_of_at_least_sixteen_rows(rows, setting, groups, tmp_path):
    method = Small(tmp_path, "moco", config={"norm_groups": setting}).method
    assert method.groups(rows) == groups


class Doubled(nn.BatchNorm2d):
    """A batch norm with an operation behind it, as timm's have."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_groups_are_normalised_each_by_itself_and_the_statistics_move_towards_their_mean():
    torch.manual_seed(0)
    norm, plain = (Doubled(3, momentum=0.3).double() for _ in range(2))
    images = torch.randn(8, 3, 2, 2, dtype=torch.float64) * torch.arange(1, 9).reshape(8, 1, 1, 1)
    with grouped_batch_norm(nn.Sequential(norm), 4):
        got = norm(images)
    means, variances = [], []
    for part, output in zip(images.chunk(4), got.chunk(4), strict=True):
        torch.testing.assert_close(output, 2 * F.batch_norm(part, None, None, training=True))
        means.append(part.mean((0, 2, 3)))
        variances.append(part.var((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, 0.3 * torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, 0.7 + 0.3 * torch.stack(variances).mean(0))
    # Afterwards, and in evaluation, it is the module that it was.
    assert norm.momentum == 0.3
    assert "forward" not in vars(norm)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(images), plain(images))
    norm.eval()
    plain.load_state_dict(norm.state_dict())
    with grouped_batch_norm(norm, 4):
        assert torch.equal(norm(images), plain.eval()(images))


def test_a_batch_norm_is_restored_after_an_error():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match="expected 4D"), grouped_batch_norm(norm, 2):
        norm(torch.rand(4, 3))
    assert norm.momentum == 0.1
    assert "forward" not in vars(norm)


def test_a_key_depends_on_the_images_of_its_group_alone_and_comes_back_in_its_own_row(tmp_path):
    small = Small(tmp_path, "moco", config={"norm_groups": 2}, float64=True)
    images = next(small.loader.epoch(0)).views[1].images.double()
    method, student = small.method, small.student
    got = method.keys(images, 2)
    for place in range(2):
        expected = method.key_encoder(student.normalise(images[place::2]))
        torch.testing.assert_close(got[place::2], expected)
    changed = images.clone()
    changed[1] = 0
    again = method.keys(changed, 2)
    torch.testing.assert_close(again[0::2], got[0::2], rtol=1e-12, atol=1e-14)
    assert (again[1::2] - got[1::2]).abs().amax(1).min() > 1e-6


def test_the_students_batch_norms_see_the_same_groups(tmp_path):
    small = Small(tmp_path, "moco", config={"norm_groups": 2}, float64=True)
    method, batch = small.method, next(small.loader.epoch(0))
    images = batch.views[0].images.double()
    expected = torch.cat(
        [method.head(small.student(half, frozenset({"pooled"})).pooled) for half in images.chunk(2)]
    )
    given = []
    method.contrast = lambda queries, own: given.append(queries) or queries.sum()
    method.losses(batch)
    torch.testing.assert_close(given[0], expected)


# ---- two processes


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FROZEN)
def test_two_processes_train_what_one_trains(two, name, tmp_path):
    first, second = (seen[name] for seen in two)
    assert_same(first, second)
    whole = train(tmp_path, name, ALONE)
    assert first.keys() == whole.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(first[key], tensor, rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.exhaustive
def test_two_processes_have_the_keys_of_one_in_as_many_groups(two, tmp_path):
    whole = keys(tmp_path, ALONE)
    torch.testing.assert_close(torch.cat([seen["keys"] for seen in two]), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.exhaustive
def test_a_stop_and_resume_on_two_processes_ends_in_the_same_bits(two):
    for seen in two:
        assert seen["stopped"]
        assert_same(seen["unbroken"], seen["resumed"])
        assert torch.equal(seen["unbroken"]["method.queue"], two[0]["unbroken"]["method.queue"])
