from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompress.data import source as source_file
from kdcompress.data.augment import pipeline_of
from kdcompress.data.colour import adjust_colours
from kdcompress.data.decode import decode_image, open_image
from kdcompress.data.source import FolderSource, MemorySource


@pytest.fixture
def photos(tmp_path):
    """Smooth images of several shapes, of which any part has the gradient of the whole."""
    names = []
    for number, (width, height) in enumerate([(40, 30), (30, 40), (200, 120), (16, 16)]):
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        pixels = np.stack([x, y, np.full_like(x, 60 * number)], 2).astype(np.uint8)
        name = f"{number}.jpg" if number % 2 else f"{number}.png"
        Image.fromarray(pixels).save(tmp_path / name)
        names.append(name)
    return FolderSource(tmp_path, tuple(names), torch.arange(4), side=16)


def memory(count=6, channels=1, side=8, **more):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return MemorySource(pixels, torch.arange(count) % 3, **more)


def test_memory_gives_its_own_pixels_for_evaluation():
    source = memory()
    assert torch.equal(source.evaluation_images(torch.tensor([4, 1])), source.images[[4, 1]])
    assert (len(source), source.channels, source.image_size) == (6, 1, (8, 8))


def test_grey_is_repeated_on_three_channels_when_asked():
    source = memory().with_channels(3)
    for images in (source.evaluation_images(torch.arange(6)), source.training_images(torch.arange(6), 0, 0)):
        assert images.shape == (6, 3, 8, 8)
        assert torch.equal(images[:, 0], images[:, 2])


def test_a_subset_is_renumbered_and_keeps_its_settings():
    source = memory(preset="crop", pad=2).subset(torch.tensor([5, 3]))
    assert source.labels.tolist() == [2, 0]
    assert (source.preset, source.pad) == ("crop", 2)
    assert torch.equal(source.evaluation_images(torch.tensor([1])), memory().images[3:4])


def test_resizing_beforehand_and_batch_by_batch_give_the_same_pixels(monkeypatch):
    once = memory(preset="crop").with_size((16, 16))
    monkeypatch.setattr(source_file, "MATERIALISE_BYTES", 0)
    late = memory(preset="crop").with_size((16, 16))
    assert once.images.shape[2] == 16
    assert late.images.shape[2] == 8
    assert once.image_size == late.image_size == (16, 16)
    indices = torch.tensor([3, 0])
    assert torch.equal(once.evaluation_images(indices), late.evaluation_images(indices))
    assert torch.equal(once.training_images(indices, 4, 2), late.training_images(indices, 4, 2))


def test_files_of_any_shape_give_the_same_size(photos):
    everything = torch.arange(4)
    assert photos.evaluation_images(everything).shape == (4, 3, 16, 16)
    assert photos.training_images(everything, 0, 0).shape == (4, 3, 16, 16)
    assert photos.training_images(everything, 0, 0).dtype == torch.uint8


def test_evaluation_sees_the_centre(photos):
    images = photos.evaluation_images(torch.arange(4)).float()
    assert (images[:, :2].mean((2, 3)) - 127.5).abs().max() < 4


@pytest.mark.parametrize(
    "preset", ["resized_crop_flip", "crop_flip", "none", "moco_v2", "strong", "crop+strong"]
)
def test_a_view_of_a_file_is_replayed(photos, preset):
    source = photos.with_augment(preset)
    everything = source.training_images(torch.arange(4), 3, 9)
    assert torch.equal(source.training_images(torch.tensor([2, 0]), 3, 9), everything[[2, 0]])
    if preset != "none":
        assert not torch.equal(source.training_images(torch.arange(4), 4, 9), everything)


def test_the_colours_of_a_file_are_those_of_its_crop_in_memory(photos):
    everything, ids = torch.arange(4), torch.arange(10, 14)
    source = dataclasses.replace(photos, ids=ids).with_augment("strong")
    crops = dataclasses.replace(photos, ids=ids).training_images(everything, 3, 9)
    colours = pipeline_of(source.preset).colours
    expected = adjust_colours(crops, ids, colours, seed=9, view=3)
    assert torch.equal(source.training_images(everything, 3, 9), expected)
    assert not torch.equal(crops, expected)


def test_a_jpeg_decoded_smaller_shows_the_same_part(tmp_path):
    # Large enough for the smaller decoding; a lossless copy of the same picture is always decoded whole.
    x, y = np.meshgrid(np.linspace(0, 255, 800), np.linspace(0, 255, 640))
    picture = Image.fromarray(np.stack([x, y, x], 2).astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    picture.save(tmp_path / "a.png")
    small = FolderSource(tmp_path, ("a.jpg",) * 8, torch.zeros(8), side=16)
    whole = FolderSource(tmp_path, ("a.png",) * 8, torch.zeros(8), side=16)
    indices = torch.arange(8)
    difference = small.training_images(indices, 0, 0).int() - whole.training_images(indices, 0, 0).int()
    assert difference.abs().max() <= 6


def test_one_channel_is_grey(photos):
    grey = FolderSource(photos.root, photos.files, photos.labels, side=16, channels=1)
    assert grey.evaluation_images(torch.arange(2)).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("fit", ["crop", "whole", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_files_lie_in_memory_as_networks_read_them(photos, fit, channels):
    """So that no later step copies them into another layout."""
    source = dataclasses.replace(photos, fit=fit, channels=channels)
    for images in (source.evaluation_images(torch.arange(4)), source.training_images(torch.arange(4), 0, 0)):
        assert images.shape == (4, channels, 16, 16)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.permute(0, 2, 3, 1).is_contiguous()


def test_a_decoded_image_stays_readable_after_its_file_is_closed(photos):
    for name in photos.files:
        with open_image(photos.root / name) as stored:
            image = decode_image(stored, 3)
        (photos.root / name).unlink()
        assert np.asarray(image).shape == (image.height, image.width, 3)
        assert image.resize((4, 4)).size == (4, 4)


def test_a_folder_source_can_be_sent_to_another_process(photos):
    copy = pickle.loads(pickle.dumps(photos))
    assert torch.equal(copy.evaluation_images(torch.arange(4)), photos.evaluation_images(torch.arange(4)))
