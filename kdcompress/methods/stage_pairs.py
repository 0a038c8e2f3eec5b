"""Base of the self methods in which shallower stages of a network imitate its deeper ones."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.networks import Networks


class StagePairs(Method):
    """Minimises CE(labels) + factor · Σ over pairs of stages of what `compare` gives.

    The factor is 0 up to `start_share` of the run's epochs: deep maps that know nothing yet are no targets.

    Args:
        config: The recipe's `method:` section.
        networks: The student.
        data: Facts about the training data.

    Attributes:
        pairs: Names of the shallower and the deeper stage.

    Raises:
        NetworkError: The student has fewer than two stages to compare.
    """

    class Config(ShortRuns):
        """Pairs and start of the term."""

        imitates: Literal["next", "deepest"] = "next"
        """Each stage imitates the next one, or all imitate the deepest."""
        start_share: float = Field(1 / 3, ge=0, lt=1)
        """Share of the run's epochs before the term begins; a run of one epoch has it from the start."""

    COMPARES_POSITIONS: ClassVar[bool] = False
    """True: leave out stages whose maps have one pixel, which is equally active everywhere."""
    config: Config

    def __init__(self, config: Any, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        maps = networks.student.shapes().stages
        stages = [name for name in maps if not self.COMPARES_POSITIONS or maps[name][0, 0].numel() > 1]
        if len(stages) < 2:
            which = " whose maps have more than one pixel" if self.COMPARES_POSITIONS else ""
            raise NetworkError(
                f"method {self.name()}: needs two stages or more{which}, {networks.student.model} has "
                f"{len(stages)} at {data.image_size[0]}x{data.image_size[1]} pixels; name them in "
                "student.taps or take larger images"
            )
        deeper = stages[1:] if config.imitates == "next" else [stages[-1]] * (len(stages) - 1)
        self.pairs = list(zip(stages, deeper, strict=False))

    @classmethod
    def name(cls) -> str:
        """Returns the method's name, that of its file."""
        return cls.__module__.rsplit(".", 1)[1].replace("_", "-")

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """Requires the student's stage maps."""
        return Needs(student=frozenset({"logits", "stages"}))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the term ce, and the term stages once it has begun."""
        outputs = self.networks.student(batch.images, self.needs(self.config).student)
        assert outputs.logits is not None
        terms = {"ce": self.cross_entropy(outputs.logits, batch.labels)}
        if self.begun():
            each = [self.compare(outputs.stages[a], outputs.stages[b]) for a, b in self.pairs]
            terms["stages"] = self.short_run_factor() * torch.stack(each).sum()
        return terms

    def begun(self) -> bool:
        """Returns True from the epoch on in which the term begins."""
        return self.epoch >= int(self.config.start_share * self.epochs)

    def compare(self, shallow_BCHW: Tensor, deep_BCHW: Tensor) -> Tensor:
        """Computes the weighted term of a pair.

        Args:
            shallow_BCHW: `[B, C, H, W]`.
            deep_BCHW: `[B, C', H', W']` of the stage that is imitated.
        """
        raise NotImplementedError(f"{type(self).__name__} compares nothing")
