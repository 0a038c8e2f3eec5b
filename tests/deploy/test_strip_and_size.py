from __future__ import annotations

import pytest
import torch
from small_student import CLASSES, MODEL
from torch import nn

from kdcompress.deploy import macs
from kdcompress.deploy.macs import count_macs, count_parameters, evaluating
from kdcompress.deploy.strip import plain_student, without_wrappers
from kdcompress.errors import WeightsError

SIZE = {"num_classes": len(CLASSES), "channels": 3, "image_size": (16, 16)}


def test_the_plain_student_holds_every_trained_tensor(student):
    plain = plain_student(student.state_dict(), MODEL, **SIZE)
    assert type(plain) is type(student)
    assert not plain.training
    held = plain.state_dict()
    assert all(torch.equal(held[key], tensor) for key, tensor in student.state_dict().items())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_wrappers_are_taken_off(student, prefix):
    wrapped = {prefix + key: tensor for key, tensor in student.state_dict().items()}
    assert list(without_wrappers(wrapped)) == list(student.state_dict())
    plain_student(wrapped, MODEL, **SIZE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update({"projector.weight": torch.zeros(2)}), r"1 left over \(projector\.weight\)"),
        (lambda s: s.pop("fc.bias"), r"1 missing \(fc\.bias\)"),
        (lambda s: s.update({"fc.bias": torch.zeros(9)}), r"1 of another shape \(fc\.bias\)"),
        (lambda s: s.clear(), r"missing \(conv1\.weight, .*, …\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(student, change, words):
    state = dict(student.state_dict())
    change(state)
    with pytest.raises(WeightsError, match=words):
        plain_student(state, MODEL, **SIZE)


def test_stripping_draws_no_random_numbers(student):
    before = torch.get_rng_state()
    plain_student(student.state_dict(), MODEL, **SIZE)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_count_once_and_buffers_not_at_all():
    linear = nn.Linear(3, 4)  # 3 × 4 weights, 4 biases
    norm = nn.BatchNorm1d(4)  # 4 weights, 4 biases; its statistics are buffers
    assert count_parameters(nn.Sequential(linear, norm, linear)) == 16 + 8


def test_multiply_accumulates_of_a_convolution_and_a_matrix_product():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 6, 5))
    # 27 products for each of 8 × 4 × 6 outputs, then 192 × 5.
    assert count_macs(network, 3, 4, 6) == 27 * 8 * 24 + 192 * 5


def test_large_images_are_counted_without_values_to_the_same_number(monkeypatch):
    class Looks(nn.Module):
        def forward(self, images):
            return images if images.sum().item() == 0 else images[:, :1]

    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(192, 5))
    expected = 27 * 8 * 24 + 192 * 5
    runs = []
    plain.register_forward_hook(lambda module, images, output: runs.append(type(output).__name__))
    monkeypatch.setattr(macs, "_MOST_COMPUTED", 3 * 4 * 6 - 1)
    assert count_macs(plain, 3, 4, 6) == expected
    assert count_macs(nn.Sequential(Looks(), plain), 3, 4, 6) == expected
    assert runs == ["FakeTensor", "Tensor"]


def test_counting_leaves_modes_statistics_and_gradients_alone(student):
    norm = nn.BatchNorm2d(3)
    frozen = nn.BatchNorm2d(3).eval()
    network = nn.Sequential(norm, frozen, nn.Conv2d(3, 2, 1))
    frozen.training = False
    count_macs(network, 3, 4, 4)
    assert (network.training, norm.training, frozen.training) == (True, True, False)
    assert int(norm.num_batches_tracked) == 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_modes_come_back_after_an_error():
    network = nn.Sequential(nn.Dropout())

    def fail():
        with evaluating(network):
            assert not network[0].training
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert network[0].training


def test_the_literatures_resnet20_has_its_macs():
    from kdcompress.networks.build import build

    network = build("cifar/resnet20", num_classes=10, channels=3, image_size=(32, 32))
    assert count_macs(network, 3, 32, 32) == pytest.approx(40.8e6, rel=0.02)  # He et al. 2016: 0.27 M, 41 M
