"""A cached output is used only if it is whole and its own; what was just computed has the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_training import images, tapped
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcompress.data.batch import TurnedViews, View
from kdcompress.data.joined import IDS_PER_SET
from kdcompress.errors import UserError, WorldError
from kdcompress.networks.activations import LOGITS, POOLED, Activations
from kdcompress.networks.output_cache import cached_teacher
from kdcompress.networks.output_cache.cached_teacher import CachedTeacher
from kdcompress.networks.output_cache.codec import LogitsCodec, PooledCodec, TopKCodec
from kdcompress.networks.output_cache.facts import TeacherFacts
from kdcompress.networks.output_cache.rows import RowFiles
from kdcompress.networks.output_cache.stored_teacher import StoredTeacher, stored_classifier
from kdcompress.networks.teacher import FrozenTeacher

BOTH = LOGITS | POOLED


def drawn(count, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, width), np.uint8)


def numbers(*values):
    return np.array(values, np.int64)


def test_rows_are_found_by_number_and_others_are_missing(tmp_path):
    files, rows = RowFiles(tmp_path / "a", 9), drawn(3, 9)
    files.write("x", numbers(7, 0, 3), rows)
    found, present = files.read("x", numbers(3, 1, 7, 9, 0))
    assert present.tolist() == [True, False, True, False, True]
    assert (found[[0, 2, 4]] == rows[[2, 0, 1]]).all()
    assert not RowFiles(tmp_path / "a", 9).read("y", numbers(0))[1].any()
    assert RowFiles(tmp_path / "a", 9).read("x", numbers(7))[1].all()


def test_a_file_of_another_folder_holds_no_row_of_this_one(tmp_path):
    rows = drawn(3, 9)
    RowFiles(tmp_path / "one-key", 9).write("view0003.rows", numbers(0, 1, 2), rows)
    (tmp_path / "another-key").mkdir()
    content = (tmp_path / "one-key" / "view0003.rows").read_bytes()
    (tmp_path / "another-key" / "view0003.rows").write_bytes(content)
    assert RowFiles(tmp_path / "one-key", 9).read("view0003.rows", numbers(0, 1, 2))[1].all()
    assert not RowFiles(tmp_path / "another-key", 9).read("view0003.rows", numbers(0, 1, 2))[1].any()


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path):
    rows = drawn(4, 20)
    files = RowFiles(tmp_path, 20)
    files.write("x", numbers(0, 1, 2, 3), rows)
    whole = (tmp_path / "x").read_bytes()
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x").write_bytes(damaged)
        found, present = RowFiles(tmp_path, 20).read("x", numbers(0, 1, 2, 3))
        assert present.tolist() == [place != bit // 8 // 24 for place in range(4)]
        assert (found[present] == rows[present]).all()
    for length in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:length])
        assert RowFiles(tmp_path, 20).read("x", numbers(0, 1, 2, 3))[1].sum() == length // 24


def test_a_row_of_another_file_or_place_is_not_taken(tmp_path):
    files = RowFiles(tmp_path, 12)
    files.write("view0000", numbers(0, 1), drawn(2, 12))
    (tmp_path / "view0001").write_bytes((tmp_path / "view0000").read_bytes())
    assert not files.read("view0001", numbers(0, 1))[1].any()
    content = (tmp_path / "view0000").read_bytes()
    (tmp_path / "view0000").write_bytes(content[16:] + content[:16])
    assert not files.read("view0000", numbers(0, 1))[1].any()


def test_a_row_of_zeros_is_no_hole(tmp_path):
    files = RowFiles(tmp_path, 8)
    files.write("x", numbers(2), np.zeros((1, 8), np.uint8))
    assert files.read("x", numbers(0, 1, 2))[1].tolist() == [False, False, True]


def test_a_link_in_the_cache_is_not_followed(tmp_path):
    secret = tmp_path / "elsewhere"
    secret.write_bytes(b"mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").symlink_to(secret)
    with pytest.raises((UserError, WorldError)):
        RowFiles(tmp_path / "cache", 4).write("x", numbers(0), drawn(1, 4))
    assert secret.read_bytes() == b"mine"
    assert not RowFiles(tmp_path / "cache", 4).read("x", numbers(0))[1].any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0, 1e6])
def test_sixteen_bits_keep_eleven_of_the_fraction_at_any_size(scale):
    pooled = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * scale
    pooled[0] = 0
    codec = PooledCodec(7, None)
    rows = codec.encode(Activations(pooled=pooled))
    assert rows.shape == (5, codec.width)
    back = codec.decode(rows, POOLED).pooled
    largest = pooled.abs().amax(1, keepdim=True)
    assert ((back - pooled).abs() <= 2.0**-11 * pooled.abs() + 2.0**-24 * largest.clamp(min=1)).all()
    assert torch.equal(codec.encode(Activations(pooled=back)), rows)


def test_logits_of_pooled_features_are_the_classifiers():
    codec = PooledCodec(3, lambda pooled: pooled @ torch.arange(6.0).reshape(3, 2))
    pooled = torch.tensor([[1.0, 2, 3]])
    back = codec.decode(codec.encode(Activations(pooled=pooled)), BOTH)
    assert back.logits.tolist() == [[16.0, 22.0]]
    assert back.pooled.tolist() == [[1.0, 2, 3]]
    assert codec.decode(codec.encode(Activations(pooled=pooled)), LOGITS).pooled is None


@pytest.mark.parametrize(("classes", "kept"), [(10, 3), (10, 10), (50, 16), (40_000, 8)])
def test_the_largest_probabilities_are_kept_and_the_others_share_what_is_left(classes, kept):
    logits = 4 * torch.randn(6, classes, generator=torch.Generator().manual_seed(1))
    codec = TopKCodec(classes, kept)
    rows = codec.encode(Activations(logits=logits))
    assert rows.shape == (6, codec.width)
    there, back = logits.softmax(1), codec.decode(rows, LOGITS).logits.softmax(1)
    values, places = there.topk(kept, 1)
    assert torch.allclose(back.gather(1, places), values, atol=2e-3)
    assert torch.allclose(back.sum(1), torch.ones(6), atol=1e-4)
    others = back.scatter(1, places, 0)
    if kept < classes:
        assert torch.allclose(others.sum(1), 1 - values.sum(1), atol=2e-3)


def test_all_logits_are_kept_in_their_order():
    logits = torch.tensor([[1.0, -2.0, 70_000.0], [0.5, 0.25, 0]])
    codec = LogitsCodec(3)
    assert torch.allclose(
        codec.decode(codec.encode(Activations(logits=logits)), LOGITS).logits, logits, rtol=1e-3
    )


@pytest.fixture
def teacher():
    torch.manual_seed(3)
    return FrozenTeacher(tapped("cifar/resnet8", 8))


def cached(teacher, folder, **more):
    codec = PooledCodec(teacher.shapes().pooled.shape[1], teacher.classify)
    return CachedTeacher(teacher, codec, RowFiles(folder, codec.width), **more)


def view(ids, number=0, seed=0):
    pixels = images(40, 8, seed).images[torch.as_tensor(ids) % IDS_PER_SET] / 255
    return View(
        pixels.contiguous(memory_format=torch.channels_last),
        torch.arange(len(ids)),
        number,
        torch.tensor(ids),
    )


class Counted:
    """Counts the images that a teacher is asked for."""

    def __init__(self, teacher):
        self.teacher, self.images = teacher, 0

    def __getattr__(self, name):
        return getattr(self.teacher, name)

    def __call__(self, images, want=LOGITS):
        self.images += len(images if isinstance(images, torch.Tensor) else images.images)
        return self.teacher(images, want)


def test_a_second_look_has_the_same_bits_and_asks_nobody(teacher, tmp_path):
    counted = Counted(teacher)
    one = cached(counted, tmp_path)
    first = one(view([3, 1, 8]), BOTH)
    assert (counted.images, one.computed, one.read) == (3, 3, 0)
    again = one(view([8, 3]), BOTH)
    assert (counted.images, one.computed, one.read) == (3, 3, 2)
    assert torch.equal(again.pooled, first.pooled[[2, 0]])
    assert torch.allclose(again.logits, first.logits[[2, 0]], atol=1e-5)
    live = teacher(view([3, 1, 8]), BOTH)
    assert (first.pooled - live.pooled).abs().max() <= 2.0**-11 * live.pooled.abs().max()
    other = cached(counted, tmp_path)
    assert torch.equal(other(view([3, 1, 8]), BOTH).logits, first.logits)
    assert counted.images == 3


def test_a_batch_of_which_some_rows_are_missing_keeps_those_that_are_there(teacher, tmp_path):
    one = cached(teacher, tmp_path)
    first = one(view([3, 1]), POOLED).pooled
    mixed = one(view([1, 5, 3]), POOLED).pooled
    assert torch.equal(mixed[[2, 0]], first)
    assert (one.computed, one.read) == (3, 2)


def test_views_of_other_numbers_and_images_of_joined_sets_are_apart(teacher, tmp_path):
    one = cached(teacher, tmp_path, sets=("", "extra-12-"))
    ids = [2, 2 + IDS_PER_SET]
    one(view(ids, number=1), LOGITS)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["extra-12-view0001.rows", "view0001.rows"]
    assert one.has(1, torch.tensor(ids)).all()
    assert not one.has(0, torch.tensor(ids)).any()
    assert not one.has(1, torch.tensor([3, 3 + IDS_PER_SET])).any()


def test_rows_that_were_read_or_written_are_known_and_others_are_read_some_at_a_time(
    teacher, tmp_path, monkeypatch
):
    one = cached(teacher, tmp_path)
    one(view([3, 30]))
    read = []
    plain = RowFiles.read
    monkeypatch.setattr(
        RowFiles,
        "read",
        lambda *given: read.append(len(given[2])) or plain(*given),
    )
    monkeypatch.setattr(cached_teacher, "_ROWS_AT_ONCE", 16)
    expected = torch.zeros(40, dtype=torch.bool)
    expected[[3, 30]] = True
    assert torch.equal(one.has(0, torch.arange(40)), expected)
    assert read == [16, 16, 6]
    read.clear()
    other = cached(teacher, tmp_path)
    assert torch.equal(other.has(0, torch.arange(40)), expected)
    assert torch.equal(other.has(0, torch.tensor([3, 30])), expected[[3, 30]])
    assert read == [16, 16, 8]


def test_a_row_of_a_file_that_was_written_again_counts_as_missing(teacher, tmp_path):
    before = np.full(40, 1_700_000_000_000_000_000)
    cached(teacher, tmp_path, stamps=[before])(view([3, 5, 8]))
    after = before.copy()
    after[5] += 1
    one = cached(teacher, tmp_path, stamps=[after])
    assert one.has(0, torch.tensor([3, 5, 8])).tolist() == [True, False, True]
    one(view([3, 5, 8]))
    assert (one.computed, one.read) == (1, 2)
    assert cached(teacher, tmp_path, stamps=[after]).has(0, torch.tensor([3, 5, 8])).all()
    # Images in memory have no files.
    assert not cached(teacher, tmp_path).has(0, torch.tensor([3, 5, 8])).any()


def test_what_no_cache_can_give_is_computed(teacher, tmp_path):
    one = cached(teacher, tmp_path)
    stages = one(view([1, 2]), frozenset({"stages"})).stages
    assert set(stages) == set(teacher(view([1, 2]), frozenset({"stages"})).stages)
    fresh = View(view([1, 2]).images, torch.arange(2), 0)
    assert torch.equal(one(fresh).logits, teacher(fresh).logits)
    assert torch.equal(one(fresh.images).logits, teacher(fresh).logits)
    assert not list(tmp_path.iterdir())


def test_turned_views_are_kept_by_their_turn(teacher, tmp_path):
    views = tuple(view([4, 9], number=number, seed=number) for number in range(4))
    turned = [torch.rot90(each.images, k, dims=(2, 3)) for k, each in enumerate(views)]
    rows = TurnedViews(torch.stack(turned, 1).flatten(0, 1), views)
    one = cached(teacher, tmp_path)
    first = one(rows, BOTH)
    live = teacher(rows.images, BOTH)
    assert (first.pooled - live.pooled).abs().max() <= 2.0**-11 * live.pooled.abs().max()
    again = one(TurnedViews(torch.zeros_like(rows.images), views), BOTH)
    assert torch.equal(again.logits, first.logits)
    # An image that is turned by no quarter is the plain view.
    assert torch.equal(one(views[0], POOLED).pooled, first.pooled[0::4])
    assert not one.has(1, torch.tensor([4])).any()


def test_without_filling_a_missing_row_is_an_error(teacher, tmp_path):
    cached(teacher, tmp_path)(view([1, 2]))
    reader = cached(teacher, tmp_path, fill=False)
    reader(view([2, 1]))
    with pytest.raises(UserError, match=r"teacher\.cache\.mode: read, but of a batch of 2 the outputs for 1"):
        reader(view([2, 3]))


def test_a_full_disk_costs_a_warning(teacher, tmp_path, monkeypatch):
    told = []
    one = cached(teacher, tmp_path, warn=told.append)
    first = one(view([1, 2]), BOTH)
    monkeypatch.setattr("os.pwrite", lambda descriptor, content, place: 0)
    one(view([3, 4]), BOTH)
    one(view([5, 6]), BOTH)
    assert len(told) == 1
    assert "disk is full" in told[0]
    assert torch.equal(one(view([1, 2]), BOTH).logits, first.logits)


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_stored_classifier_gives_the_bits_of_the_teacher(precision):
    torch.manual_seed(3)
    network = tapped("cifar/resnet8", 8)
    network.precision = precision
    teacher = FrozenTeacher(network)
    stored = StoredTeacher(
        TeacherFacts.of(teacher), features=64, classifier=stored_classifier(teacher), precision=precision,
        device=torch.device("cpu"),
    )  # fmt: skip
    pooled = torch.rand(5, 64, requires_grad=True)
    assert torch.equal(stored.classify(pooled), teacher.classify(pooled))
    stored.classify(pooled).sum().backward()
    assert pooled.grad.abs().sum() > 0
    assert [shape.shape for shape in (stored.shapes().logits, stored.shapes().pooled)] == [
        shape.shape for shape in (teacher.shapes().logits, teacher.shapes().pooled)
    ]
    assert (stored.model, stored.fingerprint, stored.task) == (
        teacher.model, teacher.fingerprint, teacher.task,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"are not kept; run it with teacher\.cache\.mode: fill"):
        stored(torch.rand(2, 1, 8, 8))
    stored.take(teacher)
    assert torch.equal(stored(torch.ones(2, 1, 8, 8)).logits, teacher(torch.ones(2, 1, 8, 8)).logits)


class SlowCopy:
    """A copy from a device that has not come until it is read, or until `done` is set."""

    done = False

    def __init__(self, tensor):
        self.tensor = tensor

    def ready(self):
        return SlowCopy.done

    def array(self):
        return self.tensor.numpy()


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(SlowCopy, "done", False)
    monkeypatch.setattr(cached_teacher, "HostCopy", SlowCopy)


def stored(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def test_rows_on_their_way_from_the_device_are_written_once_they_are_there(teacher, tmp_path, slow):
    one = cached(teacher, tmp_path)
    one(view([3, 1]))
    one(view([5]))
    assert stored(tmp_path) == 0
    SlowCopy.done = True
    one(view([7]))
    assert torch.equal(
        cached(teacher, tmp_path).has(0, torch.arange(8)).nonzero()[:, 0], torch.tensor([1, 3, 5, 7])
    )


def test_no_more_than_a_few_batches_wait_to_be_written(teacher, tmp_path, slow):
    one = cached(teacher, tmp_path)
    for number in range(12):
        one(view([number]))
    there = cached(teacher, tmp_path).has(0, torch.arange(12))
    assert there.tolist() == [True] * 4 + [False] * 8
    one.on_epoch_end()  # other processes read the files in the next epoch
    assert cached(teacher, tmp_path).has(0, torch.arange(12)).all()
    one(view([20]))
    one.close()
    assert cached(teacher, tmp_path).has(0, torch.tensor([20])).all()


def test_a_row_on_its_way_is_read_and_not_computed_again(teacher, tmp_path, slow):
    one = cached(teacher, tmp_path)
    first = one(view([3, 1]), POOLED).pooled
    assert torch.equal(one(view([1]), POOLED).pooled, first[1:])
    assert (one.computed, one.read) == (2, 1)
    one(view([5]))
    assert one.has(0, torch.tensor([5])).all()


def test_a_missing_row_on_a_fake_gpu_reads_no_value(teacher, tmp_path, monkeypatch):
    class OnFakeGpu:
        device, precision = torch.device("cuda", 0), None

        def __call__(self, images, want=LOGITS):
            return Activations(pooled=torch.empty(2, 64, device="cuda"))

        def classify(self, pooled):
            assert pooled.device.type == "cuda"
            return pooled[:, :5]

    class NoCopy(SlowCopy):
        def __init__(self, tensor):
            assert tensor.device.type == "cuda"

    one = cached(teacher, tmp_path)
    one.teacher = OnFakeGpu()
    one.codec = PooledCodec(64, one.teacher.classify)
    rows, present = np.zeros((2, one.codec.width), np.uint8), np.array([True, False])
    monkeypatch.setattr(one, "_find", lambda name, ids: (rows, present))
    monkeypatch.setattr(cached_teacher, "HostCopy", NoCopy)
    monkeypatch.setattr(
        cached_teacher, "moved", lambda tensor, device: torch.empty_like(tensor, device=device)
    )
    asked = view([3, 1])
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = one(asked, BOTH)
    assert (one.computed, one.read) == (1, 1)
    assert outputs.logits.shape == (2, 5)
    assert outputs.logits.device.type == outputs.pooled.device.type == "cuda"
