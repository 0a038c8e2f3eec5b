"""Smaller weights in short trainings: who does not fit the labels yet is only slowed by imitating."""

from __future__ import annotations

from pydantic import Field

from kdcompress.config import Section


class ShortRuns(Section):
    """The option of methods whose terms would keep a short training from fitting its labels.

    Published settings have 100 epochs and more. With their weights in 12 epochs of 2,700 images, networks
    that imitate each other or themselves ended 0.5 to 8 points below plain training
    (benchmarks/without_teacher.md).
    """

    full_weight_epochs: float = Field(60.0, ge=0)
    """Epochs from which on the weights of the method's own terms are as given; a shorter training has its
    share of them, 12 epochs a fifth. 0: always as given."""


def short_run_factor(epochs: int, full_weight_epochs: float) -> float:
    """Returns the factor on the weights of a training, at most 1.

    Args:
        epochs: Of the training.
        full_weight_epochs: See `ShortRuns`.
    """
    return min(1.0, epochs / full_weight_epochs) if full_weight_epochs else 1.0
