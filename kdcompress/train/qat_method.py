"""A method that goes on with a trained student whose passes are rounded: so the loop tunes for int8."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcompress.data.batch import Batch
from kdcompress.methods.base import Candidate, Method, Minimise, Needs, ParameterSet, Phase
from kdcompress.networks.rounding import Rounding
from kdcompress.train.processes import Processes

STEPS_BETWEEN_MEASURES = 50
"""The weights move, and what they reach with them: the levels are taken anew this often."""


@dataclass(frozen=True, slots=True)
class Continued:
    """What `Tuned` has for a Config.

    Args:
        method: That goes on.
        config: Its own.
        after: Epochs that it has behind it.
    """

    method: type[Method]
    config: Any
    after: int


class Tuned(Method):
    """Another method in its last phase, on the student as it will be deployed.

    The student is in evaluation mode: its batch norms keep their statistics and its dropout is off, so a step
    sees what the file will compute. Ramps and curricula of the method stay where they ended: its epochs are
    counted on.

    Args:
        method: As its training left it.
        rounding: Of the student; whatever passes through it is rounded so.
        processes: Which have the first one's levels.
        after: Epochs that the method has behind it.
    """

    age: Tensor

    def __init__(self, method: Method, rounding: Rounding, processes: Processes, after: int) -> None:
        config = Continued(type(method), method.config, after)
        super().__init__(config, method.networks, method.data)
        self.method, self.rounding = method, rounding
        self._processes = processes
        # Steps since the levels were taken; in the checkpoint, so that a resume takes them at the same steps.
        self.register_buffer("age", rounding.zeros.new_zeros(()))

    @classmethod
    def needs(cls, config: Continued) -> Needs:
        """Those of the method that goes on."""
        return config.method.needs(config.config)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The method's, of the rounded student."""
        return self.method.losses(batch)

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """The method's."""
        return self.method.parameter_sets()

    def phases(self) -> list[Phase]:
        """The method's last one, in which what ships is trained."""
        return [dataclasses.replace(self.method.phases()[-1], share=1.0)]

    def step(self, batch: Batch, minimise: Minimise) -> None:
        """The method's, with levels that are not older than `STEPS_BETWEEN_MEASURES`."""
        if self.age >= STEPS_BETWEEN_MEASURES:
            self._measure()
            self._processes.share([self.rounding])
        self.method.step(batch, minimise)

    def on_phase_start(self, name: str) -> None:
        """Told to the method."""
        super().on_phase_start(name)
        self.method.on_phase_start(name)

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Told to the method, counted on from its last epoch."""
        super().on_epoch_start(epoch, epochs)
        after = self.config.after
        self.method.on_epoch_start(after + epoch, after + epochs)
        self.networks.student.train_mode(False)

    def on_epoch_end(self) -> None:
        """The levels are those of the weights that are scored and kept: the file will have the same."""
        self.method.on_epoch_end()
        self._measure()

    def after_step(self, batch: Batch) -> None:
        """The method's."""
        self.method.after_step(batch)
        self.age += 1

    def candidates(self) -> dict[str, Candidate]:
        """The student alone: it is the one that is rounded."""
        student = self.networks.student
        return {"student": Candidate(student.network, student.model)}

    def _measure(self) -> None:
        student = self.networks.student
        student.train_mode(False)
        self.rounding.measure(student.network)
        self.age.zero_()
