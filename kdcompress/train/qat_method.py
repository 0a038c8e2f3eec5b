"""Quantisation-aware training as a method: another method continues on a student whose passes are rounded."""

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
"""Steps after which the quantisation levels are measured again, since weights have changed."""


@dataclass(frozen=True, slots=True)
class QatConfig:
    """Config of `QuantizationAwareTraining`.

    Args:
        method: Class of the method that continues.
        config: Its Config.
        after: Number of epochs that the method has behind it.
    """

    method: type[Method]
    config: Any
    after: int


class QuantizationAwareTraining(Method):
    """Continues training with weights and activations rounded as ONNX Runtime will round them.

    The student is in evaluation mode: its batch norms keep their statistics and its dropout is off, so a step
    computes what the file will compute. Ramps and curricula of the method stay where they ended: its epochs
    are counted on.

    Args:
        method: The method after its own training.
        rounding: Rounds weights and activations of the student.
        processes: All use the first one's levels.
        after: Number of epochs that the method has behind it.
    """

    age: Tensor

    def __init__(self, method: Method, rounding: Rounding, processes: Processes, after: int) -> None:
        config = QatConfig(type(method), method.config, after)
        super().__init__(config, method.networks, method.data)
        self.method, self.rounding = method, rounding
        self._processes = processes
        self._steps: int | None = None  # `age`, known without a wait for the device; None: to be read
        # Steps since the levels were taken; in the checkpoint, so that a resume takes them at the same steps.
        self.register_buffer("age", rounding.zeros.new_zeros(()))

    @classmethod
    def needs(cls, config: QatConfig) -> Needs:
        """Returns the requirements of the method that continues."""
        return config.method.needs(config.config)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the method's losses of the rounded student."""
        return self.method.losses(batch)

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Returns the method's parameter sets."""
        return self.method.parameter_sets()

    def phases(self) -> list[Phase]:
        """Returns the method's last phase, in which the student is trained."""
        return [dataclasses.replace(self.method.phases()[-1], share=1.0)]

    def step(self, batch: Batch, minimise: Minimise) -> None:
        """Runs a step of the method, with levels no older than `STEPS_BETWEEN_MEASURES` steps."""
        if self._steps is None:
            self._steps = int(self.age)
        if self._steps >= STEPS_BETWEEN_MEASURES:
            self._measure()
            self._processes.broadcast_buffers([self.rounding])
        self.method.step(batch, minimise)

    def on_phase_start(self, name: str, resumed: bool) -> None:
        """Prepares the phase; the method continues the phase that it ended with."""
        super().on_phase_start(name, resumed)
        self._steps = None
        self.method.on_phase_start(name, resumed=True)

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Prepares an epoch of the method, counted on from its last one."""
        super().on_epoch_start(epoch, epochs)
        after = self.config.after
        self.method.on_epoch_start(after + epoch, after + epochs)
        self.networks.student.train_mode(False)

    def on_epoch_end(self) -> None:
        """Measures the levels of the weights that are scored and kept: the file will have the same."""
        self.method.on_epoch_end()
        self._measure()

    def after_step(self, batch: Batch) -> None:
        """Updates the method's state and the age of the levels."""
        self.method.after_step(batch)
        self.age += 1
        self._steps = None if self._steps is None else self._steps + 1

    def candidates(self) -> dict[str, Candidate]:
        """Names the student alone: it is the one that is rounded."""
        return {"student": Candidate.of(self.networks.student)}

    def _measure(self) -> None:
        student = self.networks.student
        student.train_mode(False)
        self.rounding.measure(student.network)
        self.age.zero_()
        self._steps = 0
