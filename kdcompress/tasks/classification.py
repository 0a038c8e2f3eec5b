"""Classification: a logit per class, scored by top-1 accuracy, or by agreement with the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.data.class_weights import unequal_classes
from kdcompress.metrics.split_rows import SplitRows, blocks
from kdcompress.tasks.base import Decisions, Deviation, Scorer, Task

NEARLY_CONSTANT = 0.9
"""Share of the images that one class is given from which a network is nearly constant."""


class Predictions(Scorer):
    """Classes, losses and logits of the images of a split.

    Args:
        num_classes: K.
        keep_outputs: False: `logits` are not asked for afterwards, and take no memory.
    """

    def __init__(self, num_classes: int, keep_outputs: bool = True) -> None:
        self.num_classes, self._keep_outputs = num_classes, keep_outputs
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._logits = SplitRows()

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Adds logits `[B, K]` and labels `[B]`."""
        labels, logits = labels.cpu(), outputs.detach().cpu()
        self._batches.append((logits.argmax(1), cross_entropies(logits, labels), labels))
        if self._keep_outputs:
            self._logits.add(logits)

    @property
    def classes(self) -> Tensor:
        """`[N]` int64, the class of the largest logit."""
        return torch.cat([classes for classes, _, _ in self._batches])

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, as they came."""
        return self._logits.tensor()

    @property
    def losses(self) -> Tensor:
        """`[N]` float64 cross-entropies; 0 where there is no label."""
        return torch.cat([losses for _, losses, _ in self._batches])

    @property
    def labels(self) -> Tensor:
        """`[N]` int64; -1 = none."""
        return torch.cat([labels for _, _, labels in self._batches])

    def result(self) -> dict[str, Any]:
        """Returns the keys of `accuracy`."""
        return accuracy(self.classes, self.labels, self.num_classes, losses=self.losses)

    def agreement(self, teacher_outputs: Tensor) -> float:
        """Returns the share of images whose class is that of the teacher's largest logit."""
        return float((self.classes == teacher_outputs.argmax(1)).double().mean())

    def constant(self, teacher_outputs: Tensor) -> dict[str, Any] | None:
        """Describes a nearly constant network: at least 90 % of the images are given one class.

        Its agreement with the teacher says little: a network that always answers so would agree as often as
        the teacher gives that class.

        Returns:
            `class`, `share` of the images that are given it, `teacher_share` of those that the teacher gives
            it (0 to 1); None: the network is not nearly constant.
        """
        classes = self.classes
        number = int(torch.bincount(classes).argmax())
        share = (classes == number).double().mean().item()
        if share < NEARLY_CONSTANT:
            return None
        teacher_share = (teacher_outputs.argmax(1) == number).double().mean().item()
        return {"class": number, "share": share, "teacher_share": teacher_share}


class ClassDeviation(Deviation):
    """The share of equal classes; an image whose two best logits lie within the limit is a tie."""

    name = "top1"
    ties = different = images = 0

    def update(self, reference: Tensor, outputs: Tensor) -> None:
        """Adds logits `[B, K]` of both."""
        exact = reference.double()
        best = exact.topk(min(2, exact.shape[1]), dim=1).values
        margins = best[:, 0] - best[:, -1] if exact.shape[1] > 1 else torch.full((len(exact),), math.inf)
        differ = exact.argmax(1) != outputs.double().argmax(1)
        tied = differ & (margins <= self.parity * self.spread)
        self.ties += int(tied.sum())
        self.different += int((differ & ~tied).sum())
        self.images += len(exact)

    @property
    def figure(self) -> float:
        """Share of images with the same class, ties counted as the same."""
        return 1 - self.different / self.images

    @property
    def limit(self) -> float:
        """Least share."""
        return self.least

    @property
    def passed(self) -> bool:
        """True if enough classes are the same."""
        return self.figure >= self.least

    def detail(self, reference: str, images: str) -> str:
        """Describes the figure; see the base class."""
        return f"share of {reference} classes {images}, {self.ties} ties aside"


class Classification(Task):
    """A logit for each of K classes."""

    name = "classification"
    output = "logits"
    activation = "logits"
    metrics = ("top1", "agreement")
    one_output = "a logit"
    outputs = "logits"
    has_classes = True
    numbers_are_labels = True

    def output_problem(self, outputs: object, batch: int) -> str | None:
        """Logits `[batch, classes]` are right."""
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == batch:
            return None
        expected = "a classifier gives one tensor of logits [batch, classes]"
        return f"{expected}; this one gives {described(outputs)}"

    def scorer(self, num_classes: int, *, keep_outputs: bool = True) -> Predictions:
        """Collects classes and losses, and logits if they are kept."""
        return Predictions(num_classes, keep_outputs)

    def decide(self, outputs: Tensor, labels: Tensor) -> Decisions:
        """Reduces logits to classes and cross-entropies."""
        parts = [
            torch.stack([some.argmax(1).double(), cross_entropies(some, their_labels)], dim=1)
            for some, their_labels in blocks(outputs, labels)
        ]
        rows = torch.cat(parts) if parts else torch.empty(0, 2, dtype=torch.float64)
        return Decisions(rows, outputs.shape[1])

    def score(
        self, outputs: Tensor | Decisions, labels: Tensor, teacher_outputs: Tensor | None = None
    ) -> dict[str, Any]:
        """Computes `top1` (0 to 1) and `loss` (mean cross-entropy, nats) on the labelled images.

        Where classes are unequal also `balanced_top1`, which then `decides`; `single_class` as in `accuracy`.
        Without labels: `agreement` (share of images with the teacher's class) and `kl` (mean
        divergence of the softmax from the teacher's, nats). A loss that is not finite is None.
        """
        known = labels >= 0
        if bool(known.any()):
            made = outputs if isinstance(outputs, Decisions) else self.decide(outputs, labels)
            full = accuracy(made.classes, labels, made.num_classes, losses=made.losses)
            figures = {"top1": full["top1"], "loss": full["loss"]}
            if "decides" in full:
                figures |= {"balanced_top1": full["balanced_top1"], "decides": full["decides"]}
            return figures | ({"single_class": full["single_class"]} if "single_class" in full else {})
        if teacher_outputs is None:
            return {}
        assert isinstance(outputs, Tensor), "without labels all logits are compared with the teacher's"
        agreement = (outputs.argmax(1) == teacher_outputs.argmax(1)).double().mean().item()
        divergences = [
            F.kl_div(own.log_softmax(1), target.log_softmax(1), log_target=True, reduction="sum")
            for own, target in blocks(outputs, teacher_outputs)
        ]
        divergence = torch.stack(divergences).sum() / len(outputs) if divergences else torch.tensor(math.nan)
        return {"agreement": agreement, "kl": _finite(divergence)}

    def parts(
        self, outputs: Tensor | Decisions, labels: Tensor, teacher_outputs: Tensor | None = None
    ) -> Tensor | None:
        """Computes whether each image is right, over the number of images; see the base class.

        For `balanced_top1` over the number of images of its class and of classes.
        """
        known = labels >= 0
        classes = outputs.classes if isinstance(outputs, Decisions) else outputs.argmax(1)
        if not bool(known.any()):
            if teacher_outputs is None:
                return None
            return (classes == teacher_outputs.argmax(1)).double() / len(classes)
        right = ((classes == labels) & known).double()
        count = outputs.num_classes if isinstance(outputs, Decisions) else outputs.shape[1]
        counts = torch.bincount(labels[known], minlength=count)
        if not unequal_classes(counts.tolist()):
            return right / int(known.sum())
        weights = 1 / (counts.clamp(min=1) * int((counts > 0).sum())).double()
        return right * weights[labels.clamp(min=0)]

    def deviation(self, limit: float, spread: float, least: float = 1.0) -> ClassDeviation:
        """Compares classes."""
        return ClassDeviation(limit, spread, least)


CLASSIFICATION = Classification()


def accuracy(
    predictions: Tensor, labels: Tensor, num_classes: int, *, losses: Tensor | None = None
) -> dict[str, Any]:
    """Computes the figures of a classifier on a labelled split.

    Args:
        predictions: `[N]` int64 classes, or `[N, K]` logits with K > 0.
        labels: `[N]` int64; rows of -1 do not count.
        num_classes: K.
        losses: `[N]`, cross-entropy of each image. None: computed from logits, unknown for classes.

    Returns:
        `top1` and `balanced_top1` (mean over the classes that occur) in [0, 1], `per_class` (top-1 by class
        number, None where a class does not occur), `loss` (mean, in nats, None if unknown or not finite)
        and `n`. Without any labelled row everything but `n` = 0 is None. `decides`: "balanced_top1", where
        the classes are unequal (`unequal_classes`). `single_class`: the number of the class that (nearly) all
        images are given (`single_class`), where there is one.
    """
    if predictions.ndim == 2:
        if losses is None:
            losses = cross_entropies(predictions, labels)
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
    figures = {
        "top1": int(right.sum()) / count,
        "balanced_top1": sum(present) / len(present),
        "per_class": per_class,
        "loss": None if losses is None else _finite(losses[known].double().mean()),
        "n": count,
    }
    if unequal_classes(of_class):
        figures["decides"] = "balanced_top1"
    single = single_class(predictions[known], per_class)
    return figures if single is None else {**figures, "single_class": single}


def single_class(predictions: Tensor, per_class: Sequence[float | None]) -> int | None:
    """Returns the class that (nearly) all images are given by a network that tells no classes apart.

    Args:
        predictions: `[N]` int64.
        per_class: Recall by class; None for a class without images.

    Returns:
        A class that at least 90 % of the images are given, if the mean recall of all other classes is below
        20 %; None: there is none, or fewer than two classes occur.
    """
    if sum(recall is not None for recall in per_class) < 2:
        return None
    largest = torch.bincount(predictions).argmax().item()
    share = (predictions == largest).double().mean().item()
    recalls = [recall for i, recall in enumerate(per_class) if recall is not None and i != largest]
    collapsed = share >= NEARLY_CONSTANT and sum(recalls) / len(recalls) < 0.2
    return int(largest) if collapsed else None


def cross_entropies(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Computes the cross-entropy of each image, `[B]` float64 in nats; 0 where there is no label."""
    return F.cross_entropy(logits_BK.double(), labels_B, ignore_index=-1, reduction="none")


def described(outputs: object) -> str:
    """Names the type of outputs, and the shape of a tensor."""
    if isinstance(outputs, Tensor):
        return f"a tensor of {'×'.join(map(str, outputs.shape))}"
    return f"a {type(outputs).__name__}"


def _finite(figure: Tensor) -> float | None:
    value = figure.item()
    return value if math.isfinite(value) else None


def mean_prediction(outputs: Sequence[Tensor]) -> Tensor:
    """Averages the predictions of an ensemble's members.

    Args:
        outputs: `[N, K]` logits of each member.

    Returns:
        `[N, K]` log of the mean of the members' softmax probabilities, which are logits again: their softmax
        is that mean.
    """
    stacked = torch.stack([logits.log_softmax(1) for logits in outputs])
    return stacked.logsumexp(0) - math.log(len(outputs))
