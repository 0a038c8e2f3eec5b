from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional

from kdcompress.data.augment import augment, pipeline_of, resolve_preset
from kdcompress.data.crop import crop_box, resize_images, usual_pad
from kdcompress.data.source import MemorySource
from kdcompress.errors import UserError


def images(count=16, channels=3, side=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


RESOLVED = (
    "none",
    "crop",
    "crop_flip",
    "resized_crop_flip",
    "moco_v2",
    "simsiam",
    "crop+strong",
    "none+strong",
)


@pytest.mark.parametrize("preset", RESOLVED)
def test_a_view_is_replayed_whatever_the_batch(preset):
    stock, indices = images(), torch.arange(16)
    whole = augment(stock, indices, seed=5, view=3, preset=preset, pad=2)
    assert whole.shape == stock.shape
    assert whole.dtype == torch.uint8
    some = torch.tensor([9, 2, 11])
    assert torch.equal(augment(stock[some], some, seed=5, view=3, preset=preset, pad=2), whole[some])


@pytest.mark.parametrize("preset", [preset for preset in RESOLVED if preset != "none"])
def test_another_view_or_seed_is_another_augmentation(preset):
    stock, indices = images(), torch.arange(16)
    views = [
        augment(stock, indices, seed=s, view=v, preset=preset, pad=2) for s, v in ((0, 0), (0, 1), (1, 0))
    ]
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_none_changes_nothing():
    stock = images()
    assert torch.equal(augment(stock, torch.arange(16), seed=0, view=0, preset="none", pad=2), stock)


def test_a_crop_is_a_window_of_the_zero_padded_image():
    pad, side = 2, 12
    stock = images(200, 1, side)
    found = set()
    crops = augment(stock, torch.arange(200), seed=0, view=0, preset="crop", pad=pad)
    padded = torch.nn.functional.pad(stock, (pad, pad, pad, pad))
    for image, crop in zip(padded, crops, strict=True):
        places = [
            (y, x)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            if torch.equal(image[:, y : y + side, x : x + side], crop)
        ]
        assert len(places) == 1
        found.add(places[0])
    assert len(found) == (2 * pad + 1) ** 2


@pytest.mark.parametrize("preset", ["crop", "crop_flip", "strong"])
def test_draws_of_a_whole_set_are_those_of_its_batches(preset):
    generator = torch.Generator().manual_seed(0)
    stock = torch.randint(0, 256, (20, 3, 16, 16), generator=generator, dtype=torch.uint8)
    ids = torch.randperm(50, generator=generator)[:20]
    preset = resolve_preset(preset, "crop_flip")
    source = MemorySource(stock, torch.zeros(20), preset=preset, pad=2, ids=ids)
    for view in (3, 4, 3):
        for batch in torch.tensor([19, 2, 7]), torch.tensor([0]):
            expected = augment(stock[batch], ids[batch], seed=5, view=view, preset=preset, pad=2)
            assert torch.equal(source.training_images(batch, view, 5), expected)


def test_half_of_the_images_are_mirrored():
    stock = images(1000, 1, 8)
    crops = augment(stock, torch.arange(1000), seed=0, view=0, preset="crop", pad=1)
    flips = augment(stock, torch.arange(1000), seed=0, view=0, preset="crop_flip", pad=1)
    mirrored = (crops.flip(3) == flips).flatten(1).all(1)
    assert (mirrored | (crops == flips).flatten(1).all(1)).all()
    assert 430 < int(mirrored.sum()) < 570


def test_the_usual_padding_is_an_eighth():
    assert [usual_pad(side) for side in (8, 28, 32, 64, 4)] == [1, 4, 4, 8, 1]


def test_crop_boxes_follow_the_law_of_area_and_ratio():
    width, height = 400, 300
    boxes = [crop_box(0, 0, index, width, height) for index in range(4000)]
    areas, ratios = [], []
    for (left, top, right, bottom), _ in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        areas.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
    assert min(areas) > 0.078
    assert max(areas) <= 1.0
    assert min(areas) < 0.1  # the range is used to its ends
    assert max(areas) > 0.9
    assert min(ratios) > 0.73
    assert max(ratios) < 1.37
    assert 0.46 < sum(flip for _, flip in boxes) / len(boxes) < 0.54


def test_an_image_too_narrow_for_any_box_gives_its_central_part():
    box, _ = crop_box(0, 0, 0, 1000, 10)
    assert box == (493, 0, 506, 10)
    assert crop_box(0, 0, 0, 1, 1)[0] == (0, 0, 1, 1)


def test_resizing_to_the_same_size_copies_nothing():
    stock = images()
    assert resize_images(stock, (12, 12)) is stock


def test_resizing_down_averages():
    board = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    board[..., ::2] = 200  # stripes: without antialiasing they would stay stripes, or vanish
    assert (resize_images(board, (2, 2)).int() - 100).abs().max() <= 15


def test_an_unknown_preset_names_the_close_one():
    with pytest.raises(UserError, match="did you mean 'crop_flip'"):
        augment(images(), torch.arange(16), seed=0, view=0, preset="crop_flop", pad=2)


def test_weak_and_strong_are_made_of_what_is_usual_for_the_data():
    assert resolve_preset("weak", "crop") == "crop"
    assert resolve_preset("strong", "crop") == resolve_preset("strong", "crop+strong") == "crop+strong"
    assert resolve_preset("moco_v2", "crop") == "moco_v2"
    weak, strong = pipeline_of("crop"), pipeline_of("crop+strong")
    assert not strong.mirror  # digits are never mirrored
    assert (strong.pad, strong.resized) == (weak.pad, weak.resized)
    assert weak.colours is None
    assert strong.colours.cutout
    with pytest.raises(UserError, match="did you mean 'simsiam'"):
        resolve_preset("simsiem")


def test_strong_has_the_crop_of_weak_where_no_colour_changes():
    stock, indices = images(64, 3, 16), torch.arange(64)
    weak, strong = (
        augment(stock, indices, seed=0, view=1, preset=preset, pad=2)
        for preset in ("crop_flip", "crop_flip+strong")
    )
    same = (weak == strong).all(1).flatten(1).float().mean(1)
    assert (
        (same > 0.5) & (same < 1)
    ).float().mean() > 0.1  # a fifth keep their colours outside of the square


@pytest.mark.parametrize("preset", ["moco_v2", "simsiam"])
def test_the_presets_of_contrastive_learning_keep_at_least_a_fifth_of_the_area(preset):
    pipeline = pipeline_of(preset)
    assert (pipeline.scale, pipeline.mirror, pipeline.resized) == ((0.2, 1.0), True, True)
    colours = pipeline.colours
    assert (colours.brightness, colours.contrast, colours.saturation, colours.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (colours.jitter_share, colours.grey_share, colours.blur_share) == (0.8, 0.2, 0.5)
    shares = []
    for index in range(2000):
        (left, top, right, bottom), _ = crop_box(0, 0, index, 100, 100, pipeline.scale)
        shares.append((right - left) * (bottom - top) / 10_000)
    assert 0.19 < min(shares) < 0.22


def test_a_resized_crop_is_torchvisions_of_the_same_box():
    stock, indices = images(12, 3, 32), torch.arange(12)
    made = augment(stock, indices, seed=2, view=0, preset="resized_crop_flip", pad=0)
    for index in range(12):
        (left, top, right, bottom), flip = crop_box(2, 0, index, 32, 32)
        expected = functional.resized_crop(
            stock[index], top, left, bottom - top, right - left, [32, 32], antialias=True
        )
        expected = functional.horizontal_flip(expected) if flip else expected
        assert (made[index].int() - expected.int()).abs().max() <= 1
