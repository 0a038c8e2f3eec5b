"""The interface of a task: checks of outputs, scores, and comparisons of a file with its network.

Outputs are given to it a batch at a time, so that a task whose outputs are large (a map per image) can keep
a summary of them, such as a confusion matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Decisions:
    """A classifier's decisions on a split: all that its figures by labels need, without N · K numbers.

    Args:
        rows: `[N, 2]` float64: class of the largest logit, cross-entropy in nats (0 where there is no label).
        num_classes: K.
    """

    rows: Tensor
    num_classes: int

    @property
    def classes(self) -> Tensor:
        """`[N]` int64."""
        return self.rows[:, 0].long()

    @property
    def losses(self) -> Tensor:
        """`[N]` float64."""
        return self.rows[:, 1]


class Scorer(ABC):
    """Collects a network's outputs on a split, a batch at a time, and computes its figures."""

    @abstractmethod
    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            outputs: `[B, ...]`, of the network.
            labels: `[B]` int64; -1 = none.
        """

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """`[N]` int64 labels of all images so far; -1 = none."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Computes the figures of all batches, with the keys of `results.json`; `n` counts the labels."""

    @abstractmethod
    def agreement(self, teacher_outputs: Tensor) -> float | None:
        """Computes the share of equal decisions, 0 to 1; None where that cannot be computed.

        Args:
            teacher_outputs: The teacher's outputs of the same images in the same order.
        """

    def constant(self, teacher_outputs: Tensor) -> dict[str, Any] | None:
        """Describes a network that decides nearly the same for all images; None: it does not."""
        return None


class Deviation(ABC):
    """Compares two networks' outputs of the same images, a batch at a time.

    Args:
        limit: Largest error of an output that counts as equal, over the spread.
        spread: Standard deviation of the reference's outputs between images.
        least: Smallest share of equal decisions that passes.
    """

    name: ClassVar[str]
    """Ending of the gate's name."""

    def __init__(self, limit: float, spread: float, least: float = 1.0) -> None:
        self.parity, self.spread, self.least = limit, spread, least

    @abstractmethod
    def update(self, reference: Tensor, outputs: Tensor) -> None:
        """Adds a batch of both."""

    @property
    @abstractmethod
    def figure(self) -> float:
        """The deviation so far."""

    @property
    @abstractmethod
    def limit(self) -> float:
        """The figure's limit."""

    @property
    @abstractmethod
    def passed(self) -> bool:
        """True if the figure keeps the limit; NaN never does."""

    @abstractmethod
    def detail(self, reference: str, images: str) -> str:
        """Describes the figure.

        Args:
            reference: The reference, in the genitive, such as "PyTorch's".
            images: "on the 10 test images".
        """


class Task(ABC):
    """One kind of output: its name in files, its checks, its figures."""

    name: ClassVar[str]
    output: ClassVar[str]
    """Name of the output in exported files and in golden.npz."""
    activation: ClassVar[Literal["logits", "pooled"]]
    """Field of `Activations` that is the output."""
    metrics: ClassVar[tuple[str, ...]]
    """Figures that a checkpoint is selected by, the first that is known."""
    one_output: ClassVar[str]
    """One number of the output, in words: "a logit"."""
    outputs: ClassVar[str]
    """All of them: "logits"."""
    has_classes: ClassVar[bool]
    """Whether an output stands for a class, so that class names ship with the network."""
    numbers_are_labels: ClassVar[bool] = False
    """Whether the number of the largest output is a label of the data, so that it is right or wrong."""

    @abstractmethod
    def output_problem(self, outputs: object, batch: int) -> str | None:
        """Says what is wrong with a network's outputs for this task; None if nothing is.

        Args:
            outputs: The network's output, of any type.
            batch: Images it was given.
        """

    @abstractmethod
    def scorer(self, num_classes: int, *, keep_outputs: bool = True) -> Scorer:
        """Makes an empty scorer of a test split.

        Args:
            num_classes: K; 0 where there are no classes.
            keep_outputs: False: the outputs are not asked for afterwards, so that a scorer whose figures do
                not need them all at once can let them go.
        """

    def decide(self, outputs: Tensor, labels: Tensor) -> Decisions | None:
        """Reduces a batch's outputs to the decisions that its labels judge; None: all outputs are needed.

        Args:
            outputs: `[B, ...]` on the CPU.
            labels: `[B]` int64; -1 = none.
        """
        return None

    @abstractmethod
    def score(
        self, outputs: Tensor | Decisions, labels: Tensor, teacher_outputs: Tensor | None = None
    ) -> dict[str, Any]:
        """Computes the figures that a training is judged by on held-out images.

        Args:
            outputs: `[N, ...]`, or the decisions if there are labels and `decide` reduces outputs.
            labels: `[N]` int64; -1 = none.
            teacher_outputs: The teacher's outputs of the same images; None: there is no teacher.

        Returns:
            By name; empty where neither labels nor a teacher say anything.
        """

    def parts(
        self, outputs: Tensor | Decisions, labels: Tensor, teacher_outputs: Tensor | None = None
    ) -> Tensor | None:
        """Computes each image's part of the selection metric of `score`, to compare networks image by image.

        Returns:
            `[N]` float64, whose sum is the figure; None where it is no sum over images, or there is none.
        """
        return None

    @abstractmethod
    def deviation(self, limit: float, spread: float, least: float = 1.0) -> Deviation:
        """Makes an empty comparison of two networks' outputs."""

    def class_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the class names that ship with a network, given those of its data."""
        return tuple(names) if self.has_classes else ()
