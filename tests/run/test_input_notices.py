"""What the user is told about the part of a picture and the normalisation that networks see."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from kdcompress.data.input_spec import InputSpec
from kdcompress.data.source import FolderSource
from kdcompress.networks import weights
from kdcompress.recipe import load_recipe
from kdcompress.run.input_notices import crop_notice, kept_by_crop, normalisation_notice


def pictures(folder, sizes, **settings):
    """Image files of these (width, height)."""
    names = [f"{number}.png" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        Image.new("RGB", size).save(folder / name)
    return FolderSource(folder, names, torch.zeros(len(names), dtype=torch.long), 16, **settings)


def test_what_is_left_is_the_median_over_the_pictures_shapes(tmp_path):
    source = pictures(tmp_path, [(40, 30), (30, 40), (80, 20), (40, 30), (32, 32)], crop_share=0.875)
    # The middle one of 3/4, 3/4, 1/4, 3/4 and 1, of which the crop's side is 7/8.
    assert kept_by_crop(source) == pytest.approx(0.75 * 0.875**2)
    assert "57 % of a picture's area" in crop_notice(source)


@pytest.mark.parametrize("settings", [{"fit": "whole"}, {"fit": "pad"}, {"crop_share": 1.0}])
def test_nothing_is_said_where_nothing_is_lost(tmp_path, settings):
    assert crop_notice(pictures(tmp_path, [(32, 32)] * 3, **settings)) is None


def told(*overrides, channels=3):
    recipe = load_recipe("quickstart", overrides, allow_code=True)
    spec = InputSpec(height=8, width=8, channels=channels, mean=(0.25,) * channels, std=(0.5,) * channels)
    return normalisation_notice(recipe, SimpleNamespace(input_spec=lambda: spec, channels=channels))


OWN = ("teacher.model=python:a:b", "teacher.pretrained=true")


def test_a_guessed_normalisation_is_told_with_the_settings_that_change_it():
    mean, std = "--set teacher.input.mean='[0.25, 0.25, 0.25]'", "--set teacher.input.std='[0.5, 0.5, 0.5]'"
    assert f"{mean} {std};" in told(*OWN)
    assert f"the data: {std};" in told(*OWN, "teacher.input.mean=[0.1]")
    assert told(*OWN, "teacher.input.mean=[0.1]", "teacher.input.std=[0.2]") is None


def test_of_grey_images_the_values_are_told_without_settings(tmp_path):
    """The teacher may take three channels, and then wants three values."""
    assert "teacher.input.mean [0.25] and teacher.input.std [0.5];" in told(*OWN, channels=1)


def test_weights_that_say_by_what_they_were_normalised_need_no_sentence(monkeypatch):
    def of(mean):
        return lambda *arguments, **settings: SimpleNamespace(mean=mean)

    given = ("teacher.model=python:a:b", "teacher.weights=some.pth")
    monkeypatch.setattr(weights, "resolve", of(None))
    assert "by the mean and std of the data" in told(*given)
    monkeypatch.setattr(weights, "resolve", of((0.5,)))
    assert told(*given) is None


def test_a_network_of_ours_and_one_that_is_trained_from_scratch_need_no_other_normalisation():
    assert told() is None
    assert told(OWN[0], "teacher.pretrained=false") is None
