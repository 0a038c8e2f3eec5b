from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcompress.data.dataset import open_data
from kdcompress.errors import UserError
from kdcompress.progress import Progress
from kdcompress.recipe import load_recipe
from kdcompress.run.context import Run
from kdcompress.run.networks import load_networks, tapped
from kdcompress.run_folder import RunFolder
from kdcompress.train import precision
from kdcompress.train.processes import Processes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(UserError, match=r"train.precision: fp16 needs a CUDA device; take bf16, fp32"):
        precision.resolve("fp16", CPU)


@pytest.mark.parametrize("asked", ["bf16", "fp32"])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_what_is_asked_for_is_what_is_taken(asked, device):
    assert precision.resolve(asked, device) == asked
    assert precision.resolve("fp16", CUDA) == "fp16"


@pytest.mark.parametrize(("native", "taken"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu_is_bf16_only_where_the_processor_computes_it(monkeypatch, native, taken):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native, raising=False)
    assert precision.resolve("auto", CPU) == taken


@pytest.mark.parametrize(("native", "taken"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_cuda_is_fp16_where_bf16_would_be_emulated(monkeypatch, native, taken):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision.resolve("auto", CUDA) == taken


def test_the_autocast_types():
    assert precision.dtype("fp32") is None
    assert precision.dtype("bf16") == torch.bfloat16
    assert precision.dtype("fp16") == torch.float16


@pytest.fixture
def native_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)


@pytest.mark.parametrize(
    ("network", "taken"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "fp32"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8)), "fp32"),
        (nn.Conv2d(8, 8, 3, groups=2), "bf16"),
        (nn.Conv2d(1, 8, 3), "bf16"),
        (nn.Linear(8, 8), "bf16"),
    ],
)
def test_auto_trains_depthwise_convolutions_on_a_cpu_in_fp32(native_bf16, network, taken):
    assert precision.of_trained("auto", CPU, network) == taken
    assert precision.of_trained("bf16", CPU, network) == "bf16"


def test_auto_trains_every_network_on_cuda_alike(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert precision.of_trained("auto", CUDA, nn.Conv2d(8, 8, 3, groups=8)) == "bf16"


def test_a_student_with_depthwise_convolutions_trains_in_fp32_and_its_teacher_reads_in_bf16(
    native_bf16, tmp_path
):
    recipe = load_recipe("quickstart", ["student.model=cifar/mobilenet-v2", "student.weights=random"])
    data = open_data(recipe.data)
    run = Run(recipe, RunFolder(tmp_path / "run"), data, Processes(0, 1, CPU), Progress(), False, "")
    found = load_networks(run, build_teacher=True)
    assert tapped(run, recipe.student, found["student"]).precision is None
    assert tapped(run, recipe.teacher, found["teacher"]).precision is torch.bfloat16
    assert tapped(run, recipe.teacher, found["student"], frozen=True).precision is torch.bfloat16
