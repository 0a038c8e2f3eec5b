"""Chooses the number format of a training: bf16, fp16 or fp32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from kdcompress.errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]


def resolve(precision: Precision, device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    """Resolves `train.precision` on a device.

    Args:
        precision: The recipe's value. auto is bf16 where the device computes it natively, fp16 on older GPUs,
            else fp32.
        device: Device of the training.

    Raises:
        UserError: fp16 on a CPU, which has no fast arithmetic for it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("train.precision: fp16 needs a CUDA device; take bf16, fp32 or auto on a CPU")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # Emulated bf16 (before Ampere) is slower than fp16 with a scaler.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def of_trained(
    precision: Precision, device: torch.device, network: nn.Module
) -> Literal["bf16", "fp16", "fp32"]:
    """Resolves `train.precision` for the passes of a network that is trained.

    On a CPU, auto is fp32 for a network with depthwise convolutions: their bf16 gradients make its training
    step 1.7 to 2.4 times as slow (measured on Zen 5 in batches of 32 at 64 pixels: MobileNetV3-small 62 and
    151 ms, EfficientNet-B0 266 and 527 ms), while forward passes alone are a little faster in bf16.

    Args:
        precision: The recipe's value.
        device: Device of the training.
        network: The network, in its plain form.

    Raises:
        UserError: As `resolve`.
    """
    if precision == "auto" and device.type == "cpu" and any(map(_is_depthwise, network.modules())):
        return "fp32"
    return resolve(precision, device)


def dtype(precision: Literal["bf16", "fp16", "fp32"]) -> torch.dtype | None:
    """Returns the autocast type; None means no autocast."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def _is_depthwise(module: nn.Module) -> bool:
    """Returns True for a convolution that filters each channel by itself."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return 1 < module.groups == module.in_channels


def _cpu_has_bf16() -> bool:
    # oneDNN also accepts bf16 on plain AVX-512, but emulates it there at a loss.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(probe() for name in probes if (probe := getattr(torch.cpu, name, None)) is not None)
