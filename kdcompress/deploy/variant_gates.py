"""The gates of the smaller files: what fp16 and int8 are held to, each against fp32 on the same images.

fp32 is proved equal to PyTorch. fp16 must come out the same but for rounding. int8 rounds so coarsely that
only what it is for can be held against it: how many test images it still gets right.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from kdcompress.deploy import half
from kdcompress.deploy.accuracy import Run, as_input, spread
from kdcompress.deploy.gate import Gate, at_most, relative
from kdcompress.deploy.verify import (
    INVARIANCE_LIMIT,
    PARITY_BATCHES,
    VARY_LIMIT,
    in_batches,
    largest_difference,
)
from kdcompress.errors import UserError
from kdcompress.metrics.split_rows import blocks, largest_absolute, mean_absolute
from kdcompress.tasks import Task

FP16_PARITY = 5e-2
"""Largest error of an output over S, the spread of the outputs between images."""
FP16_AGREEMENT = 0.995
"""Least share of fp32's classes, ties aside."""
FP16_SNR_DB = 40.0
FP16_ROUNDING = 16 * 2.0**-11
"""Of the largest output: what rounding to float16 may move an output by from one batch size to another."""
FP16_RANGE = half.LARGEST / 2
"""Of an activation on the calibration images; others reach further, and past 65504 comes infinity."""
INT8_INVARIANCE = 5e-2
"""Of S. A sum that a larger batch rounds to the neighbouring level moves an output by some 1e-3 S; a file
that mixes its images up, by S."""
INT8_AGREEMENT = 0.90
"""Least share of fp32's classes, where no label says which of the two is right."""
INT8_SNR_DB = 15.0
"""Least signal to noise of a backbone's features, where there are no labels."""
MAX_DROP = 3.0
"""Points of top-1 that int8 may lose, by default."""


def size_gate(precision: str, path: Path, exact: Path) -> Gate:
    """Checks that a file's tensors take less room than those of the float32 file."""
    share = _tensor_bytes(path) / _tensor_bytes(exact)
    files = path.stat().st_size / exact.stat().st_size
    detail = f"bytes of the tensors over those of {exact.name}; of the whole files {files:.2f}"
    return Gate(f"{precision}_size", share < 1, share, "less than 1", detail)


def vary_gate(precision: str, outputs_NK: Tensor) -> Gate:
    """Checks that the outputs depend on the image."""
    signal = spread(outputs_NK)
    vary = relative(signal, mean_absolute(outputs_NK))
    detail = (
        "spread of the outputs between images over their mean size on the "
        f"{len(outputs_NK):,} test images; the limit is the least"
    )
    varies = signal > 0 and vary >= VARY_LIMIT  # NaN is not more than nothing
    return Gate(f"{precision}_outputs_vary", varies, vary, VARY_LIMIT, detail)


def invariance_gate(precision: str, run: Run, images: Tensor, exact_NK: Tensor) -> Gate:
    """Compares an image's outputs alone with those of the same image in batches of 2 and of 3.

    Args:
        precision: int8 or fp16.
        run: The file.
        images: `[PARITY_IMAGES, C, H, W]` of the test split.
        exact_NK: What the float32 file gives on the test split: its spread S is the measure.
    """
    name, signal = f"{precision}_batch_invariance", spread(exact_NK)
    limit = INT8_INVARIANCE
    if precision == "fp16":
        limit = max(INVARIANCE_LIMIT, relative(FP16_ROUNDING * largest_absolute(exact_NK), signal))
    array = as_input(images)
    try:
        alone, *together = (in_batches(run, array, size) for size in PARITY_BATCHES)
    except UserError as error:
        return Gate(name, False, None, limit, f"a batch size was baked into the file: {error}")
    moved = max(relative(largest_difference(alone, rows), signal) for rows in together)
    detail = "an image alone against the same image in a batch of 2 and of 3, over the spread between images"
    return at_most(name, moved, limit, detail)


_DROPS = {"top1": "top-1", "knn_top1": "kNN top-1", "cluster_accuracy": "accuracy of clusters"}
"""Figures that a loss is computed of, in the order of preference, and their names."""


def loss_gate(score: dict[str, Any], count: int, max_drop: float) -> Gate:
    """Checks the loss of int8 by the best measure that there is.

    Args:
        score: Score of the file: see `Variant`.
        count: Count of test images.
        max_drop: Points that may be lost.
    """
    if score["drop"] is not None:
        by = next(key for key in _DROPS if score.get(key) is not None)
        called = _DROPS[by]
        before = 100 * score[by] + score["drop"]
        detail = (
            f"points of {called} lost on the {score['n']:,} labelled test images: {before:.2f} % in fp32, "
            f"{100 * score[by]:.2f} % in int8"
        )
        # Differences of shares in binary: three points of a hundred come out as 3.0000000000000027.
        return at_most("int8_drop", round(score["drop"], 9), max_drop, detail)
    if "agreement_fp32" in score:
        share = score["agreement_fp32"]
        on = f"on the {count:,} test images, which have no labels"
        detail = f"share of fp32's classes {on}; the limit is the least"
        return Gate("int8_agreement", share >= INT8_AGREEMENT, share, INT8_AGREEMENT, detail)
    noise = score["snr_db"]
    detail = f"signal to noise of the features in dB on the {count:,} test images; the limit is the least"
    return Gate("int8_snr", noise is None or noise >= INT8_SNR_DB, noise, INT8_SNR_DB, detail)


def range_gate(largest: float, count: int) -> Gate:
    """Checks that the activations stay in the range of float16, for processors that compute in it.

    Args:
        largest: Absolute value of an activation in float32.
        count: Count of images.
    """
    detail = (
        f"largest activation in float32 on {count} training images; beyond {half.LARGEST:.0f} float16 has "
        "only infinity, and other images reach further"
    )
    return at_most("fp16_range", largest, FP16_RANGE, detail)


def rounding_gates(exact_NK: Tensor, near_NK: Tensor, snr_db: float, *, task: Task) -> list[Gate]:
    """Compares fp16 with fp32 on the whole test split.

    Args:
        exact_NK: What the float32 file gives there.
        near_NK: What this file gives.
        snr_db: Signal to noise of it.
        task: Kind of the outputs.
    """
    signal, on = spread(exact_NK), f"on the {len(exact_NK):,} test images"
    deviation = task.deviation(FP16_PARITY, signal, FP16_AGREEMENT)
    largest = []
    for exact, near in blocks(exact_NK, near_NK):
        largest.append((exact.double() - near.double()).abs().max())
        deviation.update(exact.double(), near.double())
    worst = relative(float(torch.stack(largest).max()), signal)
    gates = [
        at_most("fp16_parity", worst, FP16_PARITY, f"largest error of an output over the spread, {on}"),
        Gate(
            "fp16_snr",
            snr_db >= FP16_SNR_DB,
            snr_db,
            FP16_SNR_DB,
            f"signal to noise of the outputs in dB {on}; the limit is the least",
        ),
    ]
    detail = deviation.detail("fp32's", on) + ("; the limit is the least" if task.has_classes else "")
    last = Gate(f"fp16_{deviation.name}", deviation.passed, deviation.figure, deviation.limit, detail)
    return [*gates, last]


def _tensor_bytes(path: Path) -> int:
    return sum(tensor.ByteSize() for tensor in onnx.load(path).graph.initializer) or math.inf  # type: ignore[return-value]
