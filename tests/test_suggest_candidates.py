"""The students that `suggest` tries: each is a file of the very network that would ship, untrained."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from kdcompress.networks.build import build
from kdcompress.networks.families import torchvision
from kdcompress.tools import suggest_candidates as candidates
from kdcompress.tools.suggest_candidates import StudentSpec, default_students, export_candidate


def test_the_ladders_are_of_networks_that_there_are():
    assert default_students(64) == candidates.SMALL
    assert default_students(65) == candidates.LARGE
    for side in (32, 224):
        names = default_students(side)
        assert candidates.check_students(names, StudentSpec(3, side, 10)) == names
        assert len(names) == len(set(names)) == 14


def test_a_grey_student_takes_grey_or_three_repeated_channels(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates.onnx, "write", lambda network, spec, file, **_: file.touch())
    grey = StudentSpec(1, 32, 10)
    assert export_candidate("cifar/resnet8", grey, tmp_path).channels == 1
    large = export_candidate("torchvision/mobilenet_v3_small", grey, tmp_path)
    assert large.channels == 3
    assert large.top1 == (pytest.approx(0.67668), "IMAGENET1K_V1")
    refused = export_candidate("cifar/resnet8", StudentSpec(1, 32, 10, accepted=frozenset()), tmp_path)
    assert refused.problem == "takes images of 1 or 3 channels, the run has 1"


def test_a_file_is_that_of_the_student_and_the_same_again(tmp_path):
    spec = StudentSpec(3, 32, 10, opset=18)
    one = export_candidate("cifar/resnet8", spec, tmp_path)
    first = one.file.read_bytes()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = export_candidate("cifar/resnet8", spec, tmp_path)
    assert again.file.read_bytes() == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.params == sum(
        p.numel()
        for p in build("cifar/resnet8", num_classes=10, channels=3, image_size=(32, 32)).parameters()
    )
    assert one.bytes == len(first)
    assert onnx.load(one.file).opset_import[0].version == 18


def test_weights_that_are_too_large_are_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates.onnx, "write", lambda *_, **__: pytest.fail("exported"))
    one = export_candidate("cifar/resnet8", StudentSpec(3, 32, 10), tmp_path, largest_mb=0.3)
    assert (one.file, one.problem) == (None, "")


def test_values_do_not_fade_in_a_deep_untrained_network():
    network = build("torchvision/efficientnet_b0", num_classes=10, channels=3, image_size=(64, 64))
    least = []

    def watch(module, inputs, output):
        least.append(float(output.abs().max()))

    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(watch)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.eval()(images)
        faded = min(least)
        candidates._calibrate_batch_norm(network, 3, 64)
        least.clear()
        network(images)
    assert faded < 1e-6
    assert min(least) > 1e-2
    assert not any(part.training for part in network.modules())


class _Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images):
        raise RuntimeError("I am picky\nabout images")


def test_a_network_that_fails_on_these_images_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "_build", lambda *_: _Picky())
    one = export_candidate("cifar/resnet8", StudentSpec(3, 32, 10), tmp_path)
    assert one.problem == "cannot take images of 32×32 pixels: I am picky"
    assert one.file is None


def test_published_figures_are_those_of_the_listing():
    for name, summary in torchvision.NAMES.items():
        top1, weights = torchvision.published_top1(name)
        assert f"ImageNet top-1 {100 * top1:.1f} % ({weights})" in summary, name
