from __future__ import annotations

import pytest
import torch
from PIL import Image

from kdcompress.data.batch import Replay
from kdcompress.data.loader import EvaluationLoader, TrainingLoader, on_device
from kdcompress.data.random_bits import permutation
from kdcompress.data.source import FolderSource, MemorySource
from kdcompress.errors import UserError


def source(count=22, side=8):
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, side, side) + 1
    return MemorySource(pixels, torch.arange(count) % 3)


def loader(given=None, **more):
    settings = {"batch_size": 4, "seed": 0, "augment": "crop", "device": "cpu"}
    return TrainingLoader(given or source(), **{**settings, **more})


def same(one, other):
    return torch.equal(one.indices, other.indices) and all(
        torch.equal(a.images, b.images) and a.number == b.number
        for a, b in zip(one.views, other.views, strict=True)
    )


def test_an_epoch_gives_each_sample_at_most_once_in_a_new_order():
    training = loader()
    assert training.steps == 5
    orders = [torch.cat([batch.indices for batch in training.epoch(epoch)]).tolist() for epoch in range(3)]
    for order in orders:
        assert len(set(order)) == len(order) == 20
    assert orders[0] != orders[1]
    assert orders[0] == torch.cat([batch.indices for batch in loader(views=2).epoch(0)]).tolist()


def test_images_are_float32_in_the_unit_interval_and_channels_last():
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    training = loader(MemorySource(pixels, torch.zeros(8, dtype=torch.int64)), augment="none")
    batch = next(training.epoch(0))
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images, pixels[batch.indices].float() / 255)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64


def test_labels_and_indices_belong_to_the_images():
    stock = source()
    for batch in loader(stock, augment="none").epoch(0):
        assert torch.equal(batch.labels, stock.labels[batch.indices])
        assert torch.equal((batch.images[:, 0, 0, 0] * 255).round().long(), batch.indices + 1)


def test_views_are_numbered_through_all_epochs():
    numbers = [
        [view.number for view in batch.views] for epoch in (0, 1) for batch in loader(views=3).epoch(epoch)
    ]
    assert numbers[0] == [0, 1, 2]
    assert numbers[-1] == [3, 4, 5]
    first = next(loader(views=3).epoch(0))
    assert not torch.equal(first.views[0].images, first.views[1].images)


def test_an_epoch_goes_on_from_any_step():
    whole = list(loader(views=2).epoch(3))
    rest = list(loader(views=2).epoch(3, start_step=3))
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(rest, whole[3:], strict=True))
    assert list(loader().epoch(3, start_step=5)) == []


def test_processes_together_see_what_one_sees():
    whole = list(loader().epoch(1))
    parts = [list(loader(rank=rank, world=2).epoch(1)) for rank in range(2)]
    for step, batch in enumerate(whole):
        first, second = parts[0][step], parts[1][step]
        assert torch.equal(torch.cat([first.indices, second.indices]), batch.indices)
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="multiple of 3"):
        loader(world=3)


def test_a_set_smaller_than_a_batch_is_one_batch_of_all():
    training = loader(source(5), batch_size=64)
    (batch,) = training.epoch(0)
    assert training.steps == 1
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 3, 4]


class Backwards:
    """Three batches of four, from the last image on; one earlier in every epoch."""

    steps = 3

    def __call__(self, epoch):
        return torch.arange(22).flip(0).roll(epoch)[:12]


def test_an_order_says_which_images_a_batch_holds_and_how_many_batches_there_are():
    training = loader(order=Backwards())
    batches = list(training.epoch(1))
    assert training.steps == len(batches) == 3
    assert batches[0].indices.tolist() == [0, 21, 20, 19]


def test_an_order_for_another_batch_size_is_a_mistake():
    with pytest.raises(AssertionError):
        next(loader(order=Backwards(), batch_size=5).epoch(0))


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_each_view_may_have_an_augmentation_of_its_own(tmp_path, in_files, workers):
    stock = source(6, 16).with_augment("crop")
    if in_files:
        for number in range(6):
            Image.effect_noise((20, 24), 50 + number).save(tmp_path / f"{number}.png")
        stock = FolderSource(tmp_path, tuple(f"{n}.png" for n in range(6)), torch.arange(6), side=16)
    training = loader(stock, augment=("weak", "none", "moco_v2"), views=3, workers=workers)
    batch = next(training.epoch(1))
    training.close()
    presets = (stock.preset, "none", "moco_v2")
    for number, view, preset in zip((3, 4, 5), batch.views, presets, strict=True):
        expected = stock.with_augment(preset).training_images(batch.indices, number, 0)
        assert view.number == number
        assert torch.equal(view.images, expected.float() / 255)


def test_one_augmentation_for_all_views_or_one_for_each():
    with pytest.raises(AssertionError):
        loader(augment=("weak", "strong"), views=3)


def test_without_an_order_the_images_are_shuffled_with_the_seed_and_the_epoch():
    drawn = torch.cat([batch.indices for batch in loader(seed=3).epoch(2)])
    assert torch.equal(drawn, permutation(3, 2, 22)[:20])


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    list(loader(views=2).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_gives_every_image_once_in_order_and_plain():
    stock = source().with_augment("crop")
    evaluation = EvaluationLoader(stock, batch_size=8, device="cpu")
    batches = list(evaluation)
    assert len(evaluation) == len(batches) == 3
    assert [len(batch) for batch in batches] == [8, 8, 6]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(22))
    assert torch.equal(torch.cat([batch.images for batch in batches]), stock.images.float() / 255)
    assert {view.number for batch in batches for view in batch.views} == {-1}
    assert evaluation.source.labels.tolist() == stock.labels.tolist()
    assert len(list(evaluation)) == 3


def test_files_are_loaded_like_tensors(tmp_path):
    for number in range(6):
        Image.new("RGB", (20, 16), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    files = tuple(f"{number}.png" for number in range(6))
    stock = FolderSource(tmp_path, files, torch.arange(6) % 2, side=8)
    training = loader(stock, batch_size=2, augment="resized_crop_flip", views=2)
    for batch in training.epoch(0):
        assert batch.images.shape == (2, 3, 8, 8)
        assert torch.equal((batch.images[:, 0, 4, 4] * 255).round().long(), 40 * batch.indices)
    assert len(list(EvaluationLoader(stock, batch_size=4, device="cpu"))) == 2


@pytest.mark.cuda
def test_the_device_gives_the_same_batches():
    here, there = loader(views=2), loader(views=2, device="cuda")
    assert there.source.images.is_cuda
    for a, b in zip(here.epoch(2), there.epoch(2), strict=True):
        assert b.images.is_cuda
        assert b.labels.is_cuda
        assert torch.equal(a.images, b.images.cpu())
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(on_device(pixels, torch.device("cuda")).cpu(), on_device(pixels, torch.device("cpu")))


def test_views_that_repeat_are_the_same_for_every_seed_of_the_run():
    replay = Replay(views=2, seed=7)
    epochs = [list(loader(seed=seed, replay=replay).epoch(epoch)) for seed, epoch in ((0, 1), (5, 3))]
    assert not torch.equal(epochs[0][0].indices, epochs[1][0].indices)
    pictures = [{}, {}]
    for batches, found in zip(epochs, pictures, strict=True):
        for batch in batches:
            (view,) = batch.views
            assert view.number == 1
            found.update(zip(view.ids.tolist(), view.images, strict=True))
    shared = pictures[0].keys() & pictures[1].keys()
    assert len(shared) >= 18
    assert all(torch.equal(pictures[0][i], pictures[1][i]) for i in shared)


def test_an_image_keeps_its_views_when_others_are_left_out():
    replay = Replay(views=1, seed=0)
    part = source().subset(torch.tensor([3, 8, 9, 20]))
    (batch,) = loader(part, replay=replay).epoch(0)
    whole = {
        number: picture
        for each in loader(replay=replay).epoch(0)
        for number, picture in zip(each.views[0].ids.tolist(), each.images, strict=True)
    }
    found = dict(zip(batch.views[0].ids.tolist(), batch.images, strict=True))
    assert found.keys() == {3, 8, 9, 20}
    assert all(torch.equal(found[i], whole[i]) for i in found.keys() & whole.keys())
    assert next(loader().epoch(0)).views[0].ids is None
