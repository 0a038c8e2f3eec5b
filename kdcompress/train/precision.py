"""Chooses the number format of a training: bf16, fp16 or fp32."""

from __future__ import annotations

from typing import Literal

import torch

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


def dtype(precision: Literal["bf16", "fp16", "fp32"]) -> torch.dtype | None:
    """Returns the autocast type; None means no autocast."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def _cpu_has_bf16() -> bool:
    # oneDNN also accepts bf16 on plain AVX-512, but emulates it there at a loss.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(probe() for name in probes if (probe := getattr(torch.cpu, name, None)) is not None)
