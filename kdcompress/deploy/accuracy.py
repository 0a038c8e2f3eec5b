"""How good a deployed file is on the test split, and how near it is to the network it was made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.errors import UserError
from kdcompress.metrics.neighbours import knn_top1, overlap

Batches = Iterable[tuple[Tensor, Tensor]]
"""Of the test split: images `[B, C, H, W]` float32 in [0, 1] and labels `[B]` int64 (-1 = none)."""

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images in [0, 1] to logits, or a backbone's features, as a format's `open_` gives it."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """One pass over the test split.

    Args:
        classes: `[N]` int64, the class of the largest logit.
        losses: `[N]` float64, cross-entropy; 0 where there is no label.
        labels: `[N]` int64; -1 = none.
    """

    classes: Tensor
    losses: Tensor
    labels: Tensor

    def score(self, num_classes: int) -> dict[str, Any]:
        """`accuracy` of these predictions."""
        return accuracy(self.classes, self.labels, num_classes, losses=self.losses)

    def agreement(self, taught: Tensor) -> float:
        """The share of images whose class is that of the teacher's largest logit.

        Args:
            taught: `[N, K]`, the teacher's logits on the same images.
        """
        return float((self.classes == taught.argmax(1)).double().mean())


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a backbone gives on the test split.

    Args:
        features: `[N, D]` float32.
        labels: `[N]` int64; -1 = none.
    """

    features: Tensor
    labels: Tensor

    def score(self, num_classes: int) -> dict[str, Any]:
        """The keys of `accuracy`, empty, and `knn_top1`, None without labels.

        Args:
            num_classes: 0.
        """
        labelled = int((self.labels >= 0).sum())
        figures = accuracy(torch.zeros(0, dtype=torch.int64), self.labels[:0], num_classes)
        return {**figures, "knn_top1": knn_top1(self.features, self.labels), "n": labelled}

    def agreement(self, taught: Tensor) -> float | None:
        """The share of nearest neighbours that are also the teacher's; None of a single image.

        Args:
            taught: `[N, D']`, the teacher's pooled features of the same images.
        """
        return overlap(self.features, taught)


Found = Predictions | Embeddings
"""What a network gives on the test split."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pass of an exported file and of its PyTorch network over the same images.

    Args:
        reference: PyTorch's predictions or embeddings.
        exported: The file's.
        errors: `[N]` float64, largest absolute difference of an image's outputs.
        margins: `[N]` float64, PyTorch's largest output less its second.
        turns: `[N]` float64, 1 − cosine of an image's outputs by PyTorch and by the file.
        spread: Of the file's outputs, as `spread` gives it.
        mean_output: Mean absolute output of the file.
    """

    reference: Found
    exported: Found
    errors: Tensor
    margins: Tensor
    turns: Tensor
    spread: float
    mean_output: float


def accuracy(
    predictions: Tensor, labels: Tensor, num_classes: int, *, losses: Tensor | None = None
) -> dict[str, Any]:
    """The figures of a classifier on a labelled split.

    Args:
        predictions: `[N]` int64 classes, or `[N, K]` logits with K > 0.
        labels: `[N]` int64; rows of -1 do not count.
        num_classes: K.
        losses: `[N]`, cross-entropy of each image. None: computed from logits, unknown for classes.

    Returns:
        `top1` and `balanced_top1` (mean over the classes that occur) in [0, 1], `per_class` (top-1 by class
        number, None where a class does not occur), `loss` (mean, in nats, None if unknown or not finite)
        and `n`. Without any labelled row everything but `n` = 0 is None.
    """
    if predictions.ndim == 2:
        if losses is None:
            losses = _losses(predictions, labels)
        predictions = predictions.argmax(1)
    known = labels >= 0
    count = int(known.sum())
    if count == 0:
        return {"top1": None, "balanced_top1": None, "per_class": [None] * num_classes, "loss": None, "n": 0}
    labels, right = labels[known], (predictions == labels)[known]
    of_class = torch.bincount(labels, minlength=num_classes).tolist()
    right_of_class = torch.bincount(labels[right], minlength=num_classes).tolist()
    per_class = [r / n if n else None for r, n in zip(right_of_class, of_class, strict=True)]
    present = [share for share in per_class if share is not None]
    loss = None if losses is None else float(losses[known].double().mean())
    return {
        "top1": int(right.sum()) / count,
        "balanced_top1": sum(present) / len(present),
        "per_class": per_class,
        "loss": loss if loss is not None and math.isfinite(loss) else None,
        "n": count,
    }


def predict(run: Run, batches: Batches) -> Predictions:
    """Runs a deployed file over the test split."""
    parts = []
    for images, labels in batches:
        logits = torch.from_numpy(run(as_input(images)))
        parts.append((logits.argmax(1), _losses(logits, labels.cpu()), labels.cpu()))
    classes, losses, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Predictions(classes, losses, labels)


def outputs_of(run: Run, batches: Batches) -> tuple[Tensor, Tensor]:
    """`[N, K]` float32 outputs and `[N]` labels of the whole split, which is not empty."""
    pairs = [(torch.from_numpy(run(as_input(images))), labels.cpu()) for images, labels in batches]
    outputs, labels = zip(*pairs, strict=True)
    return torch.cat(outputs), torch.cat(labels)


def found_in(outputs_NK: Tensor, labels_N: Tensor, *, backbone: bool) -> Found:
    """What a network's outputs say: classes and losses, or embeddings as they are."""
    if backbone:
        return Embeddings(outputs_NK, labels_N)
    return Predictions(outputs_NK.argmax(1), _losses(outputs_NK, labels_N), labels_N)


def compare(reference_NK: Tensor, exported: Run, batches: Batches, *, backbone: bool = False) -> Comparison:
    """Runs an exported file over images whose outputs by PyTorch are known.

    Args:
        reference_NK: PyTorch's outputs, in the split's order.
        exported: The file.
        batches: The test split; not empty.
        backbone: Whether the outputs are features and no logits.

    Raises:
        UserError: The file does not take these images, or gives another number of outputs.
    """
    ours: list[Found] = []
    theirs: list[Found] = []
    apart: list[tuple[Tensor, ...]] = []
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
        ours.append(found_in(expected, labels.cpu(), backbone=backbone))
        theirs.append(found_in(got, labels.cpu(), backbone=backbone))
        exact, near = expected.double(), got.double()
        apart.append((_largest(exact - near), _margins(exact), _turns(exact, near)))
        moments.add(near)
    assert 0 < rows == len(reference_NK), f"{rows} test images, outputs of {len(reference_NK)}"
    errors, margins, turns = _columns(apart)
    return Comparison(
        _joined(ours),
        _joined(theirs),
        errors,
        margins,
        turns,
        moments.spread(),
        moments.mean_absolute(),
    )


def as_input(images: Tensor) -> NDArray[np.float32]:
    """Images as the files take them: float32, contiguous, on the CPU."""
    return images.detach().to("cpu", torch.float32).contiguous().numpy()


def spread(outputs_NK: Tensor) -> float:
    """S: the standard deviation over images of each class's logit (or feature), averaged over classes.

    The signal that an error of an output is to be measured against: what all images share tells none apart.
    """
    return float(outputs_NK.double().std(0, correction=0).mean())


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


def _losses(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return F.cross_entropy(logits_BK.double(), labels_B, ignore_index=-1, reduction="none")


def _margins(logits_BK: Tensor) -> Tensor:
    if logits_BK.shape[1] < 2:
        return torch.full((len(logits_BK),), math.inf, dtype=torch.float64)
    best_B2 = logits_BK.topk(2, dim=1).values
    return best_B2[:, 0] - best_B2[:, 1]


def _largest(difference_BK: Tensor) -> Tensor:
    return difference_BK.abs().amax(1)


def _turns(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    # Half the squared distance of the unit vectors: exact where 1 − cosine cancels, 0 for two that are zero.
    return (F.normalize(one_BD, dim=1) - F.normalize(other_BD, dim=1)).square().sum(1) / 2


def _joined(parts: list[Found]) -> Found:
    columns = [tuple(getattr(part, field.name) for field in fields(part)) for part in parts]
    return type(parts[0])(*_columns(columns))


def _columns(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
