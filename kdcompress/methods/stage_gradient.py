"""A smaller gradient for the stages that classifiers beside the network's own read."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section


class StageGradient(Section):
    """The option of methods whose further classifiers train the stages in front of them.

    A small network has no room for features that serve all of them: with whole gradients it ended a point
    below plain training in 45 epochs (benchmarks/without_teacher.md).
    """

    stage_gradient: float = Field(0.1, ge=0, le=1)
    """Factor on the gradient that further classifiers give the stages of a network; they themselves learn at
    whole weights. 1 as published."""


def with_gradient_share(values: Tensor, share: float) -> Tensor:
    """Returns the same values, to the bit, whose gradient is multiplied by a factor.

    Args:
        values: Of any shape.
        share: The factor, 0 to 1.
    """
    if share == 1:
        return values
    constant = values.detach()
    return constant + share * (values - constant)
