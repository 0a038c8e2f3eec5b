"""Outputs that one pass through a network can give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from kdcompress.tasks import Task

Want = frozenset[Literal["logits", "pooled", "stages", "pre"]]
"""Fields of `Activations` that a caller reads; the rest stays empty and costs nothing."""

LOGITS: Want = frozenset({"logits"})
POOLED: Want = frozenset({"pooled"})
STAGES: Want = frozenset({"stages"})


@dataclass(frozen=True, slots=True)
class Activations:
    """Float32 readings of one pass, whatever precision the network computed in.

    Args:
        logits: `[B, K]`, or None for a bare backbone or when not asked for.
        pooled: `[B, D]`, the classifier's input (a bare backbone's output), or None when not asked for.
        stages: `{"stage1": [B, C, H, W], ...}`, shallow to deep: the last map before each down-sampling.
        pre: The same maps before their last activation function (equal to `stages` where there is none).
    """

    logits: Tensor | None = None
    pooled: Tensor | None = None
    stages: dict[str, Tensor] = field(default_factory=dict)
    pre: dict[str, Tensor] = field(default_factory=dict)

    def output(self, task: Task) -> Tensor:
        """Returns the reading that is the output of a task."""
        output: Tensor | None = getattr(self, task.activation)
        assert output is not None, f"{task.activation} were not read"
        return output
