"""A joined set is, bit for bit, what one set of all its images with the same ids would be."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from PIL import Image

from kdcompress.data.joined import IDS_PER_SET, JoinedSource
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.source import FolderSource, MemorySource


def pixels(count, seed=0, side=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def memory(count, seed=0, first_label=0):
    return MemorySource(pixels(count, seed), torch.arange(first_label, first_label + count))


def photos(folder, count, colour=0):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (16, 14), (10 * number + 5, colour, 0)).save(folder / f"{number}.png")
    return FolderSource(folder, tuple(f"{n}.png" for n in range(count)), torch.arange(count), side=12)


def with_ids_of(joined, whole):
    """Gives one set the ids that the images have in the joined one."""
    return dataclasses.replace(whole, ids=joined.ids)


MIXED = torch.tensor([7, 0, 4, 3, 9, 4])


@pytest.mark.parametrize("preset", ["none", "crop", "crop_flip", "resized_crop_flip", "strong", "simsiam"])
def test_two_sets_in_memory_give_what_their_images_in_one_tensor_give(preset):
    one, other = memory(4), memory(6, seed=1, first_label=4)
    joined = JoinedSource((one, other)).with_augment(preset)
    whole = MemorySource(torch.cat([one.images, other.images]), torch.arange(10)).with_augment(preset)
    whole = with_ids_of(joined, whole)
    assert torch.equal(joined.labels, whole.labels)
    assert len(joined) == len(whole) == 10
    assert (joined.channels, joined.image_size) == (3, (12, 12))
    for view in range(3):
        assert torch.equal(joined.training_images(MIXED, view, 5), whole.training_images(MIXED, view, 5))
    assert torch.equal(joined.evaluation_images(MIXED), whole.evaluation_images(MIXED))


def test_two_sets_of_files_give_what_their_files_in_one_set_give(tmp_path):
    one, other = photos(tmp_path / "a", 4), photos(tmp_path / "b", 6, colour=200)
    files = (*(f"a/{name}" for name in one.files), *(f"b/{name}" for name in other.files))
    whole = FolderSource(tmp_path, files, torch.cat([one.labels, other.labels]), side=12)
    joined = JoinedSource((one, other))
    whole = with_ids_of(joined, whole)
    for preset in ("resized_crop_flip", "crop_flip"):
        same = [source.with_augment(preset).training_images(MIXED, 1, 5) for source in (joined, whole)]
        assert torch.equal(*same)
    assert torch.equal(joined.evaluation_images(MIXED), whole.evaluation_images(MIXED))


def test_a_subset_is_numbered_anew_and_keeps_its_ids_and_with_them_its_augmentation():
    joined = JoinedSource((memory(4), memory(6, seed=1, first_label=4))).with_augment("crop")
    kept = torch.tensor([1, 3, 4, 9])
    part = joined.subset(kept)
    assert part.labels.tolist() == [1, 3, 4, 9]
    assert part.ids.tolist() == [1, 3, IDS_PER_SET, IDS_PER_SET + 5]
    everything = torch.arange(4)
    assert torch.equal(part.training_images(everything, 0, 5), joined.training_images(kept, 0, 5))


def test_an_empty_batch_and_one_of_a_single_part_are_no_exceptions(tmp_path):
    joined = JoinedSource((memory(4), photos(tmp_path / "a", 3)))
    assert joined.evaluation_images(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 12, 12)
    assert torch.equal(joined.evaluation_images(torch.tensor([2, 0])), pixels(4)[[2, 0]])
    assert joined.evaluation_images(torch.tensor([6]))[0, 0, 6, 6] == 25


def test_parts_of_another_size_are_a_mistake():
    with pytest.raises(AssertionError):
        JoinedSource((memory(4), MemorySource(pixels(2, side=8), torch.arange(2))))


def test_workers_decode_a_mixed_set_to_the_same_batches(tmp_path):
    joined = JoinedSource((memory(8), photos(tmp_path / "a", 8)))
    settings = {"batch_size": 4, "views": 2, "seed": 3, "augment": "resized_crop_flip", "device": "cpu"}
    plain, helped = TrainingLoader(joined, **settings), TrainingLoader(joined, workers=1, **settings)
    try:
        for one, other in zip(plain.epoch(1), helped.epoch(1), strict=True):
            assert torch.equal(one.indices, other.indices)
            assert torch.equal(one.labels, other.labels)
            for a, b in zip(one.views, other.views, strict=True):
                assert torch.equal(a.images, b.images)
    finally:
        helped.close()


def test_a_set_all_in_memory_needs_no_workers_and_can_be_sent():
    joined = JoinedSource((memory(4), memory(4, seed=1)))
    assert joined.in_memory
    assert joined.nbytes == 8 * 3 * 12 * 12
    loader = TrainingLoader(joined, batch_size=4, seed=0, augment="crop", device="cpu", workers=2)
    assert loader._workers is None
    again = pickle.loads(pickle.dumps(joined))
    assert torch.equal(again.evaluation_images(torch.arange(8)), joined.evaluation_images(torch.arange(8)))


@pytest.mark.cuda
def test_the_device_gives_the_same_batches():
    joined = JoinedSource((memory(8), memory(8, seed=1, first_label=8)))
    settings = {"batch_size": 4, "views": 2, "seed": 3, "augment": "crop_flip"}
    here = TrainingLoader(joined, device="cpu", **settings)
    there = TrainingLoader(joined, device="cuda", **settings)
    assert all(part.images.is_cuda for part in there.source.parts)
    for one, other in zip(here.epoch(1), there.epoch(1), strict=True):
        assert other.images.is_cuda
        assert torch.equal(one.indices, other.indices.cpu())
        assert torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.labels, other.labels.cpu())


@pytest.mark.cuda
def test_files_beside_pixels_reach_the_device_too(tmp_path):
    joined = JoinedSource((memory(8), photos(tmp_path / "a", 8)))
    settings = {"batch_size": 4, "seed": 3, "augment": "crop_flip"}
    here = TrainingLoader(joined, device="cpu", **settings)
    there = TrainingLoader(joined, device="cuda", **settings)
    for one, other in zip(here.epoch(0), there.epoch(0), strict=True):
        assert torch.equal(one.images, other.images.cpu())
