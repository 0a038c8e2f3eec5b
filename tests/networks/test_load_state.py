"""Loading tensors into networks that ask for the version of their class."""

import pytest
import torch

from kdcompress.networks.build import build
from kdcompress.networks.load_state import load_state

SHAPE = {"num_classes": 3, "channels": 3, "image_size": (32, 32)}


def test_a_class_that_asks_for_its_version_takes_tensors_without_one():
    torch.manual_seed(0)
    before, after = build("torchvision/mnasnet0_5", **SHAPE), build("torchvision/mnasnet0_5", **SHAPE)
    tensors = dict(before.state_dict())
    with pytest.raises(ValueError, match="version"):
        after.load_state_dict(tensors)
    load_state(after, tensors)
    assert all(torch.equal(value, tensors[key]) for key, value in after.state_dict().items())


def test_a_tensor_that_is_missing_left_over_or_of_another_shape_is_refused():
    network = build("cifar/resnet8", **SHAPE)
    tensors = dict(network.state_dict())
    for wrong in (
        {key: tensors[key] for key in list(tensors)[1:]},
        {**tensors, "more": torch.zeros(1)},
        {**tensors, "fc.bias": torch.zeros(4)},
    ):
        with pytest.raises(RuntimeError):
            load_state(network, wrong)
