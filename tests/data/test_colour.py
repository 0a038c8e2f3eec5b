"""Each change of colours is torchvision's with the same factor, and who is changed is drawn as told."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional

from kdcompress.data import colour
from kdcompress.data.colour import Colours, adjust_colours

NOTHING = Colours(0, 0, 0, 0, jitter_share=0)


def images(count=8, channels=3, side=20):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    noise = torch.randint(-20, 21, fine.shape, generator=generator)
    return (fine + noise).clamp(0, 255).to(torch.uint8)


def level(changed):
    return changed.round().clamp(0, 255).int()


@pytest.mark.parametrize(
    ("change", "reference", "factors"),
    [
        (colour.brightness, functional.adjust_brightness, [0.6, 0.9, 1.0, 1.4]),
        (colour.contrast, functional.adjust_contrast, [0.6, 0.9, 1.0, 1.4]),
        (colour.saturation, functional.adjust_saturation, [0.6, 0.9, 1.0, 1.4]),
        (colour.hue, functional.adjust_hue, [-0.5, -0.1, 0.0, 0.07]),
    ],
)
def test_a_change_is_torchvisions_with_the_same_factor(change, reference, factors):
    stock = images(4)
    stock[0, :, 0] = 77  # grey pixels have no hue
    made = level(change(stock.float(), torch.tensor(factors)))
    for image, ours, factor in zip(stock, made, factors, strict=True):
        assert (ours - reference(image, factor).int()).abs().max() <= 1


def test_grey_is_torchvisions():
    stock = images()
    difference = level(colour.grey(stock.float())) - functional.rgb_to_grayscale(stock).int()
    assert difference.abs().max() <= 1


def test_blur_is_torchvisions_with_the_same_sigma():
    stock = images(5, side=24)
    levels = torch.tensor([0, 200, 511, 800, 1023])
    made = level(colour.blur(stock.float(), levels))
    for image, ours, number in zip(stock, made, levels.tolist(), strict=True):
        sigma = 0.1 + 1.9 * number / 1023
        assert (ours - functional.gaussian_blur(image, [13, 13], [sigma, sigma]).int()).abs().max() <= 1
    assert torch.allclose(colour.blur_kernels().sum(1), torch.ones(1024))
    assert torch.equal(made[0], stock[0].int())  # a sigma of a tenth of a pixel changes nothing


def test_the_shares_of_changed_images_are_those_told():
    stock, indices = torch.full((2000, 3, 8, 8), 120, dtype=torch.uint8), torch.arange(2000)
    stock[:, 0] = 200
    grey = adjust_colours(stock, indices, Colours(0, 0, 0, 0, 0, grey_share=0.2), seed=0, view=0)
    became = (grey[:, 0] == grey[:, 2]).flatten(1).all(1)
    assert 0.17 < became.float().mean() < 0.23
    assert torch.equal(grey[~became], stock[~became])
    jittered = adjust_colours(stock, indices, Colours(0.4, 0, 0, 0, 0.8), seed=0, view=0)
    kept = (jittered == stock).flatten(1).all(1)
    assert 0.17 < kept.float().mean() < 0.23
    factors = jittered[~kept][:, 2, 0, 0].float() / 120
    assert factors.min() > 0.59
    assert factors.max() < 1.41
    assert 0.98 < factors.mean() < 1.02


def test_only_large_images_are_blurred():
    blurred = Colours(0, 0, 0, 0, 0, blur_share=0.5)
    small, large = images(40, side=32), images(40, side=64)
    assert torch.equal(adjust_colours(small, torch.arange(40), blurred, seed=0, view=0), small)
    changed = (adjust_colours(large, torch.arange(40), blurred, seed=0, view=0) != large).flatten(1).any(1)
    assert 10 < int(changed.sum()) < 30


def test_every_order_of_the_four_changes_occurs():
    assert len(set(colour._ORDERS)) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in colour._ORDERS)
    stock = images(1).expand(300, -1, -1, -1)
    factors = [torch.full((300,), value) for value in (1.4, 0.6, 1.3, 0.1)]
    order = torch.tensor(colour._ORDERS)[torch.arange(300) % 24]
    made = colour._jitter(stock.float().clone(), order, factors)
    assert torch.equal(made[:24], made[24:48])
    expected = stock[0].float()[None]
    for number in order[5].tolist():
        change = (colour.brightness, colour.contrast, colour.saturation, colour.hue)[number]
        expected = change(expected, factors[number][:1])
    assert torch.equal(made[5], expected[0])


def test_a_square_of_half_the_side_takes_the_mean_colour():
    stock = images(200, side=16)
    cut = adjust_colours(stock, torch.arange(200), Colours(0, 0, 0, 0, 0, cutout=True), seed=0, view=0)
    for image, ours in zip(stock, cut, strict=True):
        mean = image.float().mean((1, 2)).round().to(torch.uint8)
        square = (ours == mean[:, None, None]).all(0)
        assert torch.equal(ours[:, ~square], image[:, ~square])
        rows, columns = square.any(1).sum(), square.any(0).sum()
        assert 4 <= rows <= 9  # 8; a pixel of that colour may lie beside it, and the border cuts off up to 4
        assert 4 <= columns <= 9


def test_on_one_channel_only_brightness_and_contrast_change():
    stock, strong = images(30, channels=1), Colours(0, 0, 0.4, 0.5, 1.0, grey_share=1.0)
    assert torch.equal(adjust_colours(stock, torch.arange(30), strong, seed=0, view=0), stock)
    bright = adjust_colours(stock, torch.arange(30), Colours(0.4, 0.4, 0.4, 0.1, 1.0), seed=0, view=0)
    assert bright.shape == stock.shape
    assert not torch.equal(bright, stock)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_images_colours_do_not_depend_on_its_batch(channels):
    settings = Colours(0.4, 0.4, 0.4, 0.1, 0.8, grey_share=0.2, blur_share=0.5, cutout=True)
    stock, indices = images(24, channels, 64), torch.arange(24) + 100
    whole = adjust_colours(stock, indices, settings, seed=3, view=2)
    for rows in (torch.tensor([7]), torch.tensor([20, 3, 9, 0, 11]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(adjust_colours(stock[rows], indices[rows], settings, seed=3, view=2), whole[rows])


@pytest.mark.cuda
def test_the_device_gives_the_same_colours():
    settings = Colours(0.4, 0.4, 0.4, 0.1, 0.8, grey_share=0.2, blur_share=0.5, cutout=True)
    stock, indices = images(256, 3, 64), torch.arange(256)
    here = adjust_colours(stock, indices, settings, seed=3, view=2)
    assert torch.equal(adjust_colours(stock.cuda(), indices.cuda(), settings, seed=3, view=2).cpu(), here)


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_is_read_from_the_device_of_the_images(channels):
    # Tensors of the device `meta` have no values: whatever asks for one fails.
    images = torch.empty(32, channels, 64, 64, dtype=torch.uint8, device="meta")
    strong = Colours(0.4, 0.4, 0.4, 0.1, 0.8, grey_share=0.2, blur_share=0.5, cutout=True)
    changed = adjust_colours(images, torch.arange(32), strong, seed=0, view=0)
    assert (changed.device.type, changed.shape, changed.dtype) == ("meta", images.shape, torch.uint8)
