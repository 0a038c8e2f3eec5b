"""The entropy of pixels given features, where the answer is known."""

from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image

from kdcompress.probe.concepts import concepts, overlap
from kdcompress.probe.knowledge import HALF_LOG_2_PI_E, HIGHEST, LEAST, Search, entropies, passes
from kdcompress.probe.picture import Column, coloured, picture, scale
from kdcompress.probe.views import FLIPPED, ORIGINAL, second_view, shifted

IMAGES = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
THOROUGH = Search(steps=300, samples=32, rate=0.1)


def weights(side, low, high, seed=1):
    """Of a linear feature, one per pixel, spread evenly on a logarithmic scale."""
    drawn = torch.rand(side, side, generator=torch.Generator().manual_seed(seed))
    return (math.log(low) + drawn * math.log(high / low)).exp()


# ---- the optimum


@pytest.mark.parametrize("trade", [0.1, 0.02])
def test_the_optimum_of_a_linear_feature_is_the_one_on_paper(trade):
    # min over σ of Σ w_i² σ_i² / σ_f² − λ mean log σ_i: σ_i = σ_f √(λ / 2n) / |w_i|, its distortion λ / 2.
    weight_HW, variance = weights(4, 0.3, 3.0), 4.0
    search, images = Search(trade=trade, steps=300, samples=32), torch.rand(16, 1, 4, 4)
    kept = entropies(
        lambda x: (x[:, 0] * weight_HW).sum((1, 2))[:, None], images, variance, seed=0, search=search
    )
    sigma_HW = math.sqrt(variance * trade / (2 * 16)) / weight_HW
    expected_HW = sigma_HW.log() + HALF_LOG_2_PI_E
    for entropy_HW in kept.entropy:
        torch.testing.assert_close(entropy_HW, expected_HW, atol=0.2, rtol=0)
        assert float((entropy_HW - expected_HW).mean().abs()) < 0.05
    sigma_NHW = (kept.entropy - HALF_LOG_2_PI_E).exp()
    reached_N = ((sigma_NHW * weight_HW) ** 2).sum((1, 2)) / variance
    assert reached_N.tolist() == pytest.approx([trade / 2] * 16, rel=0.1)
    # What is told of it is estimated, here of one feature by 16 × 16 pairs of samples: to 9 %.
    assert float(kept.distortion.mean()) == pytest.approx(trade / 2, rel=0.35)


def test_a_feature_of_several_channels_counts_their_squares_together():
    # One σ for all channels of a pixel: it sees √(Σ_c w_c²).
    colour = torch.tensor([0.6, 0.8, 0.0])
    grey, three = (
        entropies(read, images, 1.0, seed=0, search=THOROUGH).entropy
        for read, images in (
            (lambda x: x.flatten(1), IMAGES),
            (lambda x: (x * colour[:, None, None]).sum(1).flatten(1), IMAGES.expand(-1, 3, -1, -1)),
        )
    )
    torch.testing.assert_close(grey, three, atol=0.2, rtol=0)


def test_scaling_features_and_their_variance_changes_nothing():
    weight_HW = weights(4, 0.3, 3.0)
    plain = entropies(lambda x: (x[:, 0] * weight_HW).flatten(1), IMAGES, 2.0, seed=0)
    scaled = entropies(lambda x: 10 * (x[:, 0] * weight_HW).flatten(1), IMAGES, 200.0, seed=0)
    torch.testing.assert_close(plain.entropy, scaled.entropy, atol=1e-3, rtol=0)


def test_pixels_that_a_network_does_not_see_have_the_highest_entropy():
    kept = entropies(lambda x: x[:, 0, :, :2].flatten(1), IMAGES, 1.0, seed=0)
    assert torch.equal(kept.entropy[:, :, 2:], torch.full((2, 4, 2), HIGHEST))
    assert float(kept.entropy[:, :, :2].max()) < HIGHEST - 1
    found = concepts(kept.entropy, ORIGINAL.seen(4, 4))
    assert bool(found[:, :, :2].all())
    assert not bool(found[:, :, 2:].any())


@pytest.mark.parametrize("factor", [0.3, 30.0])
def test_a_network_that_is_more_sensitive_bears_less_noise_by_as_much(factor):
    plain, other = (
        entropies(lambda x, by=by: (by * x).flatten(1), IMAGES, 16.0, seed=0).entropy for by in (1.0, factor)
    )
    torch.testing.assert_close(other, (plain - math.log(factor)).clamp(max=HIGHEST), atol=0.4, rtol=0)
    assert float((other - plain).mean()) == pytest.approx(-math.log(factor), abs=0.1)


def test_sigma_keeps_its_bounds():
    kept = entropies(lambda x: 1e6 * x.flatten(1), IMAGES, 1.0, seed=0)
    assert float((kept.entropy - HALF_LOG_2_PI_E).exp().min()) == pytest.approx(LEAST)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def look(seed):
        return entropies(lambda x: x.flatten(1), IMAGES, 1.0, seed=seed, search=Search(steps=5)).entropy

    assert torch.equal(look(3), look(3))
    assert not torch.equal(look(3), look(4))


def test_an_image_is_measured_alone():
    read, search = (lambda x: x.flatten(1) ** 2), Search(steps=20)
    both = entropies(read, IMAGES, 1.0, seed=0, search=search).entropy
    changed = torch.cat([IMAGES[:1], 1 - IMAGES[1:]])
    again = entropies(read, changed, 1.0, seed=0, search=search).entropy
    assert torch.equal(both[0], again[0])
    assert not torch.equal(both[1], again[1])


@pytest.mark.parametrize(("side", "cells"), [(8, 8), (20, 10), (32, 16), (33, 11), (50, 13)])
def test_a_large_image_has_at_most_sixteen_cells_a_side(side, cells):
    weight_HW, images = weights(side, 0.1, 10), torch.zeros(1, 1, side, side)
    kept = entropies(lambda x: (x[:, 0] * weight_HW).flatten(1), images, 1.0, seed=0, search=Search(steps=20))
    cell = math.ceil(side / 16)
    map_HW = kept.entropy[0]
    first_HW = map_HW[::cell, ::cell]
    assert first_HW.shape == (cells, cells)
    spread_HW = first_HW.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:side, :side]
    assert torch.equal(map_HW, spread_HW)
    assert float(first_HW.std()) > 0.1


def test_every_step_is_told(monkeypatch):
    monkeypatch.setattr("kdcompress.probe.knowledge._ROW_PIXELS", 4 * 16)
    search, calls = Search(steps=3), []
    images = torch.rand(5, 1, 4, 4)
    kept = entropies(
        lambda x: x.flatten(1), images, 1.0, seed=0, search=search, advance=lambda: calls.append(1)
    )
    assert len(calls) == passes(5, 4, 4, search) == 15  # one image at a time
    assert kept.entropy.shape == (5, 4, 4)
    assert kept.distortion.shape == (5,)


# ---- views and concepts


def test_equal_views_overlap_wholly():
    entropy = torch.randn(3, 4, 4)
    found = concepts(entropy, ORIGINAL.seen(4, 4))
    assert overlap(found, found).tolist() == [1, 1, 1]


def test_a_network_that_knows_no_left_and_right_keeps_its_concepts_in_the_mirror():
    weight_HW = weights(4, 0.1, 10)
    weight_HW = weight_HW + weight_HW.flip(1)

    def read(images):
        return torch.tanh((images[:, 0] * weight_HW).unflatten(2, (2, 2)).sum((1, 2)).sum(1)[:, None])

    first, second = (
        entropies(read, IMAGES, 1.0, seed=0, search=Search(steps=30), view=view)
        for view in (ORIGINAL, FLIPPED)
    )
    torch.testing.assert_close(first.entropy, second.entropy, atol=1e-3, rtol=0)


def test_a_view_is_measured_in_the_coordinates_of_the_original():
    # A feature of the right half alone: in the mirror it sees what lies on the left of the original.
    kept = entropies(lambda x: x[:, 0, :, 2:].flatten(1), IMAGES, 1.0, seed=0, view=FLIPPED)
    assert float(kept.entropy[:, :, :2].max()) < HIGHEST - 1
    assert torch.equal(kept.entropy[:, :, 2:], torch.full((2, 4, 2), HIGHEST))


def test_a_shifted_image_has_moved_by_whole_pixels_and_says_what_it_shows():
    view = shifted(1)
    moved, seen = view.of(IMAGES), view.seen(4, 4)
    assert torch.equal(moved[:, :, 1:, 1:], IMAGES[:, :, :3, :3])
    assert torch.equal(moved[:, :, 0], torch.zeros(2, 1, 4))
    assert torch.equal(IMAGES[:, 0, seen].flatten(), moved[:, 0, 1:, 1:].flatten())
    kept = entropies(lambda x: x.flatten(1), IMAGES, 1.0, seed=0, view=view)
    assert torch.equal(kept.entropy[:, ~seen], torch.full((2, 7), HIGHEST))
    assert float(kept.entropy[:, seen].max()) < HIGHEST - 1


@pytest.mark.parametrize(
    ("preset", "name"),
    [("crop_flip", "flipped"), ("resized_crop_flip", "flipped"), ("crop", "shifted by 4"),
     ("none", "shifted by 4")],
)  # fmt: skip
def test_the_second_view_is_one_that_training_might_have_shown(preset, name):
    assert second_view(preset, 32).name == name


def test_a_concept_lies_below_the_mean_of_what_is_seen_by_the_margin():
    entropy = torch.tensor([[[0.0, 0.85], [1.0, 9.0]]])
    seen = torch.tensor([[True, True], [True, False]])
    # The mean of the three that are seen is 0.6167.
    assert concepts(entropy, seen).tolist() == [[[True, False], [False, False]]]
    assert concepts(entropy, seen, margin=0.7).sum() == 0
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert concepts(entropy, everything).tolist() == [[[True, True], [True, False]]]


def test_overlap_is_intersection_over_union_and_nothing_without_concepts():
    first = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    second = torch.tensor([[[0, 1], [1, 0]], [[0, 1], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    found = overlap(first, second)
    assert found[:2].tolist() == [pytest.approx(1 / 3), 0]
    assert bool(found[2].isnan())


# ---- the picture


def test_the_picture_shows_each_map_in_one_scale():
    images = torch.rand(3, 3, 8, 8)
    maps = [torch.full((3, 8, 8), value) for value in (-1.0, 0.0, 1.0)]
    columns = [Column(name, "", entropy) for name, entropy in zip("abc", maps, strict=True)]
    with Image.open(io.BytesIO(picture(images, columns, "Title", "how"))) as page:
        assert page.format == "PNG"
        colours = {colour for _, colour in page.convert("RGB").getcolors(1 << 24)}
    low, high = scale(maps)
    assert (low, high) == (-1, 1)
    for value in (-1.0, 0.0, 1.0):
        assert tuple(coloured(torch.tensor([[value]]), low, high)[0, 0].tolist()) in colours


def test_more_information_is_darker():
    ramp = coloured(torch.linspace(-3, 3, 50)[None], -2, 2)[0] @ [0.2126, 0.7152, 0.0722]
    assert all(ramp[1:] - ramp[:-1] >= 0)
    assert tuple(coloured(torch.tensor([[-9.0]]), -2, 2)[0, 0]) == (68, 1, 84)
    assert tuple(coloured(torch.tensor([[9.0]]), -2, 2)[0, 0]) == (253, 231, 37)


def test_a_map_that_is_the_same_everywhere_has_a_scale():
    low, high = scale([torch.zeros(1, 2, 2)])
    assert low < high
