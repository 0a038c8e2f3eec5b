"""A teacher of three channels gets grey images three times."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from kdcompress.errors import UserError
from kdcompress.networks.build import build
from kdcompress.networks.from_recipe import teacher_channels
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.recipe import TeacherSection, load_recipe
from kdcompress.run.opening import _image_channels

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.3, 0.5)


def channels_of(channels=1, **section):
    return teacher_channels(
        TeacherSection(**section),
        num_classes=2,
        channels=channels,
        image_size=(32, 32),
        allow_code=True,
        progress=False,
    )


def test_grey_images_are_repeated_and_normalised_per_channel():
    network = build("cifar/resnet8", num_classes=3, channels=3, image_size=(16, 16)).eval()
    tapped = Tapped(network, "cifar/resnet8", image_size=(16, 16), channels=3, mean=MEAN, std=STD)
    grey = torch.rand(2, 1, 16, 16)
    three = grey.repeat(1, 3, 1, 1)
    normalised = tapped.normalise(grey)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        assert torch.allclose(normalised[:, channel], (grey[:, 0] - mean) / std, atol=1e-6)
    teacher = FrozenTeacher(tapped)
    assert torch.equal(teacher(grey).logits, teacher(three).logits)


def test_a_network_that_takes_grey_images_is_built_for_them():
    assert channels_of(model="cifar/resnet8") == 1
    assert channels_of(3, model="cifar/resnet8") == 3


def test_a_family_of_three_channels_gets_three():
    assert channels_of(model="torchvision/resnet18") == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_say_how_many_channels_they_read(tmp_path, channels):
    network = build("cifar/resnet8", num_classes=3, channels=channels, image_size=(32, 32))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    assert channels_of(model="cifar/resnet8", weights=str(tmp_path / "teacher.safetensors")) == channels


def test_a_function_that_builds_for_three_channels_alone_gets_three(tmp_path, monkeypatch):
    (tmp_path / "colour_only.py").write_text(
        "from torch import nn\n\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert channels_of(model="python:colour_only:build") == 3


def test_the_recipe_has_the_last_word():
    assert channels_of(model="cifar/resnet8", input={"channels": 3}) == 3
    with pytest.raises(UserError, match=r"teacher\.input\.channels: 1, but the images have 3"):
        channels_of(3, model="cifar/resnet8", input={"channels": 1})


def test_looking_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    channels_of(model="cifar/resnet8")
    assert torch.equal(torch.rand(1), expected)


def recipe_with(*overrides):
    return load_recipe("quickstart", list(overrides))


def test_auto_finds_the_channels_that_all_networks_take():
    assert _image_channels(recipe_with()) == {1, 3}
    assert _image_channels(recipe_with("teacher.model=torchvision/resnet18")) == {3}


def test_grey_images_stay_grey_beside_a_teacher_of_three_channels():
    teacher = "teacher.model=torchvision/resnet18"
    assert _image_channels(recipe_with("data.channels=1", teacher)) == {1}
    assert _image_channels(recipe_with("teacher.input.channels=3", teacher)) == {1, 3}


def test_a_student_that_takes_no_grey_images_is_refused_before_anything_is_written():
    with pytest.raises(UserError, match=r"data\.channels: 1, but student\.model torchvision/resnet18 takes"):
        _image_channels(recipe_with("data.channels=1", "student.model=torchvision/resnet18"))
