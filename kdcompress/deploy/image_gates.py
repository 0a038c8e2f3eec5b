"""The proof of `student.image.onnx`: image files through it, and through the evaluation's own transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor

from kdcompress.atomic import write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy import image_graph
from kdcompress.deploy.formats.onnx import PREFIX, PROVIDER, OnnxModel, open_
from kdcompress.deploy.gate import Gate, at_most, relative
from kdcompress.deploy.graph_gates import graph_gates
from kdcompress.deploy.probabilities import probabilities_gate, temperature_in
from kdcompress.deploy.verify import INVARIANCE_LIMIT, ROUNDING
from kdcompress.errors import UserError
from kdcompress.schemas.config import MOST_NUMBERS

PIXEL_LIMIT = 1.0
"""255ths: two roundings of the same sum, in another order. Without antialias it is 29."""
MEAN_PIXEL_LIMIT = 0.25
"""255ths. Mostly it is 0.001. Of images of a few pixels, whose sums end in halves, it was 0.06, and of images
twice as high as wide or higher 0.2, since Pillow 13 resizes some of them down first. Unrounded: 0.28."""
OUTPUT_LIMIT = 0.05
"""Of S: what a level more or less in a few pixels may do to a logit."""


@dataclass(frozen=True, slots=True)
class ReferenceImage:
    """An image file, decoded, and what the evaluation makes of it.

    Args:
        image: `[H, W, C]` uint8, upright.
        expected: `[C, S, S]` uint8.
    """

    image: NDArray[np.uint8]
    expected: Tensor


def make(
    exact: Path, path: Path, spec: InputSpec, images: Sequence[ReferenceImage], spread: float, source: str
) -> list[Gate]:
    """Writes `student.image.onnx` and proves it.

    Args:
        exact: The proven `student.onnx`.
        path: Destination.
        spec: The network's input, which `image_graph.check_spec` has let pass.
        images: At least one.
        spread: S, of the network's outputs between images.
        source: Description of the images, for the gates.

    Raises:
        WorldError: The disk is full or fails.
    """
    model = image_graph.with_preprocessing(image_graph.read(exact), spec, typical(images))
    write_bytes(path, image_graph.serialised(model))
    threads = torch.get_num_threads()
    base = open_(exact, threads)
    try:
        file = open_(path, threads)
        gates = [
            Gate(f"image_{gate.gate}", gate.passed, gate.figure, gate.limit, gate.detail)
            for gate in graph_gates(file, base.opset)
        ]
        on = f"on {len(images)} {source}"
        temperature = temperature_in(model, PREFIX, str(path))
        if temperature is not None:
            outputs = [file.outputs(checked.image[None]) for checked in images]
            together = {name: np.concatenate([own[name] for own in outputs]) for name in outputs[0]}
            gates.append(probabilities_gate(together, temperature, prefix="image_"))
        return [
            *gates,
            *_pixels(model, images, threads, on),
            *_outputs(file, base, images, spread, on),
            _alone(file, images, spread),
        ]
    except UserError as error:
        return [Gate("image_runs", False, None, None, str(error))]


def typical(images: Sequence[ReferenceImage]) -> tuple[int, int]:
    """Returns (H, W): the medians of the images' own, made smaller where that is more than a file may say."""
    heights, widths = (sorted(checked.image.shape[axis] for checked in images) for axis in (0, 1))
    height, width = heights[len(heights) // 2], widths[len(widths) // 2]
    scale = min(1.0, math.sqrt(MOST_NUMBERS / (3 * height * width)))
    return max(1, int(scale * height)), max(1, int(scale * width))


def _pixels(model: ModelProto, images: Sequence[ReferenceImage], threads: int, on: str) -> list[Gate]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(image_graph.with_pixels(model), options, providers=[PROVIDER])
    worst, total, count = 0.0, 0.0, 0
    for checked in images:
        (got,) = session.run([image_graph.PIXELS], {"images": checked.image[None]})
        expected = checked.expected.numpy()
        if got.shape[1:] != expected.shape:
            worst = total = math.inf
            break
        apart = np.abs(got[0].astype(np.float64) - expected)
        worst, total, count = max(worst, float(apart.max())), total + float(apart.sum()), count + apart.size
    beside = f"255ths, to the pixels of the evaluation's transform, {on}"
    return [
        at_most("image_pixels_max", worst, PIXEL_LIMIT, f"largest difference in {beside}"),
        at_most("image_pixels_mean", total / max(1, count), MEAN_PIXEL_LIMIT, f"mean difference in {beside}"),
    ]


def _outputs(
    file: OnnxModel, base: OnnxModel, images: Sequence[ReferenceImage], spread: float, on: str
) -> list[Gate]:
    got = np.concatenate([file(checked.image[None]) for checked in images])
    expected = np.concatenate(
        [base((checked.expected[None].to(torch.float32) / 255).numpy()) for checked in images]
    )
    worst = float(np.abs(got.astype(np.float64) - expected).max())
    after = f"over the spread between images, to student.onnx after the evaluation's transform, {on}"
    gates = [at_most("image_outputs", relative(worst, spread), OUTPUT_LIMIT, f"largest difference {after}")]
    if base.task.has_classes:
        deviation = base.task.deviation(OUTPUT_LIMIT, spread)
        deviation.update(torch.from_numpy(expected), torch.from_numpy(got))
        detail = deviation.detail("equal", on)
        gates.append(Gate("image_top1", deviation.passed, deviation.figure, deviation.limit, detail))
    return gates


def _alone(file: OnnxModel, images: Sequence[ReferenceImage], spread: float) -> Gate:
    """Compares an image's outputs with those of the same image in a batch of mirror images."""
    name, first = "image_batch_invariance", images[0].image
    batch = np.ascontiguousarray(np.stack([first[:, ::-1], first, first[::-1]]))
    alone, together = file(np.ascontiguousarray(first[None])), file(batch)[1:2]
    moved = relative(float(np.abs(alone.astype(np.float64) - together).max()), spread)
    limit = max(INVARIANCE_LIMIT, relative(ROUNDING * float(np.abs(alone).max()), spread))
    return at_most(name, moved, limit, "an image alone against the same image in a batch of 3")
