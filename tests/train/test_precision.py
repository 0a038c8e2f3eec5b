from __future__ import annotations

import pytest
import torch

from kdcompress.errors import UserError
from kdcompress.train import precision

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
