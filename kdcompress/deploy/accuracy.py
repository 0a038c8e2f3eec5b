"""Scores of a deployed file on the test split, and its distance from the network it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.errors import NonFiniteOutputs, UserError
from kdcompress.metrics.split_rows import SplitRows, blocks
from kdcompress.tasks import CLASSIFICATION, Task
from kdcompress.tasks.base import Deviation, Scorer

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of the test split: images `[B, C, H, W]` float32 in [0, 1] and labels `[B]` int64 (-1 = none)."""

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Computes outputs of images in [0, 1], as a format's `open_` returns it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pass of an exported file and of its PyTorch network over the same images.

    Args:
        reference: PyTorch's figures.
        exported: The file's.
        errors: `[N]` float64, largest absolute difference of an image's outputs.
        deviation: Classes or directions that differ.
        spread: Standard deviation of the file's outputs, as `spread` gives it.
        mean_output: Mean absolute output of the file.
    """

    reference: Scorer
    exported: Scorer
    errors: Tensor
    deviation: Deviation
    spread: float
    mean_output: float


@dataclass(slots=True)
class FiniteCheck:
    """Counts the outputs that are no finite numbers.

    Args:
        source: The network's file, for the message.
    """

    source: Path
    outputs: int = 0
    images: int = 0
    not_finite: int = 0
    on_images: int = 0

    def add(self, outputs_BK: Tensor) -> None:
        """Adds outputs `[B, K]`."""
        wrong_BK = ~outputs_BK.isfinite()
        self.outputs += wrong_BK.numel()
        self.images += len(wrong_BK)
        self.not_finite += int(wrong_BK.sum())
        self.on_images += int(wrong_BK.flatten(1).any(1).sum())

    def finish(self) -> None:
        """Refuses the outputs if any is not finite.

        Raises:
            NonFiniteOutputs: With their number.
        """
        if self.not_finite:
            raise NonFiniteOutputs(
                f"{self.source}: {self.not_finite:,} of {self.outputs:,} outputs are not finite (NaN or "
                f"infinite), on {self.on_images:,} of {self.images:,} images, so nothing can be scored; its "
                "weights are damaged, or a layer overflows: export it again from its run or checkpoint"
            )


def score_split(run: Run, batches: Batches, scorer: Scorer, source: Path) -> Scorer:
    """Runs a deployed file over the test split and gives its outputs to the scorer.

    Args:
        run: The file.
        batches: The test split.
        scorer: Empty, of the file's task.
        source: Name of the file, for messages.

    Raises:
        NonFiniteOutputs: Outputs are NaN or infinite.
    """
    check = FiniteCheck(source)
    for images, labels in batches:
        outputs = torch.from_numpy(run(as_input(images)))
        check.add(outputs)
        scorer.update(outputs, labels)
    check.finish()
    return scorer


def outputs_of(run: Run, batches: Batches) -> tuple[Tensor, Tensor]:
    """Computes outputs [N, K] float32 and collects labels [N] of a split, which is not empty."""
    outputs, all_labels = SplitRows(), []
    for images, labels in batches:
        outputs.add(torch.from_numpy(run(as_input(images))))
        all_labels.append(labels.cpu())
    return outputs.tensor(), torch.cat(all_labels)


def scored(task: Task, outputs_NK: Tensor, labels_N: Tensor, num_classes: int | None = None) -> Scorer:
    """Gives the outputs of a whole split to a scorer of the task, which does not keep them.

    Args:
        task: Kind of the outputs.
        outputs_NK: All of them.
        labels_N: -1 = none.
        num_classes: K; None: the width of the outputs.
    """
    count = outputs_NK.shape[1] if num_classes is None else num_classes
    scorer = task.scorer(count, keep_outputs=False)
    for outputs, labels in blocks(outputs_NK, labels_N):
        scorer.update(outputs, labels)
    return scorer


def compare(
    reference_NK: Tensor, exported: Run, batches: Batches, *, task: Task = CLASSIFICATION, limit: float
) -> Comparison:
    """Runs an exported file over images whose outputs by PyTorch are known.

    Args:
        reference_NK: PyTorch's outputs, in the split's order.
        exported: The file.
        batches: The test split; not empty.
        task: Kind of the outputs.
        limit: Largest error of an output that counts as equal, over the spread.

    Raises:
        UserError: The file does not take these images, or gives another number of outputs.
    """
    num_classes = reference_NK.shape[1]
    reference_scorer = task.scorer(num_classes, keep_outputs=False)
    exported_scorer = task.scorer(num_classes)
    deviation = task.deviation(limit, spread(reference_NK))
    errors: list[Tensor] = []
    moments = _Moments()
    rows = 0
    for images, labels in batches:
        expected = reference_NK[rows : rows + len(images)]
        rows += len(images)
        got = torch.from_numpy(exported(as_input(images)))
        if expected.shape != got.shape:
            raise UserError(
                f"the file gives outputs of {list(got.shape)}, its network {list(expected.shape)}"
            )
        reference_scorer.update(expected, labels)
        exported_scorer.update(got, labels)
        deviation.update(expected, got)
        errors.append((expected.double() - got.double()).abs().amax(1))
        moments.add(got.double())
    assert 0 < rows == len(reference_NK), f"{rows} test images, outputs of {len(reference_NK)}"
    return Comparison(
        reference_scorer,
        exported_scorer,
        torch.cat(errors),
        deviation,
        moments.spread(),
        moments.mean_absolute(),
    )


def as_input(images: Tensor) -> NDArray[np.float32]:
    """Converts images to contiguous float32 arrays on the CPU."""
    return images.detach().to("cpu", torch.float32).contiguous().numpy()


def spread(outputs_NK: Tensor) -> float:
    """Computes S: the standard deviation over images of each logit (or feature), averaged over them.

    Errors of outputs are divided by S.
    """
    moments = _Moments()
    for (outputs,) in blocks(outputs_NK):
        moments.add(outputs.double())
    return moments.spread()


class _Moments:
    """Mean and variance of outputs over images, a batch at a time (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_K = torch.zeros(0)
        self.squares_K = torch.zeros(0)
        self.absolute_sum = 0.0

    def add(self, logits_BK: Tensor) -> None:
        rows = len(logits_BK)
        mean_K = logits_BK.mean(0)
        squares_K = (logits_BK - mean_K).square().sum(0)
        if self.count == 0:
            self.mean_K, self.squares_K = mean_K, squares_K
        else:
            total = self.count + rows
            step_K = mean_K - self.mean_K
            self.squares_K = self.squares_K + squares_K + step_K.square() * (self.count * rows / total)
            self.mean_K = self.mean_K + step_K * (rows / total)
        self.count += rows
        self.absolute_sum += float(logits_BK.abs().mean(1).sum())

    def spread(self) -> float:
        return float((self.squares_K / self.count).sqrt().mean())

    def mean_absolute(self) -> float:
        return self.absolute_sum / self.count
