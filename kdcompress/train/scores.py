"""Scores networks on held-out images: one pass over the images for all, shared between the processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdcompress.data.loader import EvaluationLoader
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher
from kdcompress.tasks import Task
from kdcompress.tasks.base import Decisions
from kdcompress.tasks.classification import mean_prediction
from kdcompress.train.evaluate import predict_all, predict_teacher
from kdcompress.train.processes import Processes

ENSEMBLE = "ensemble"
"""Name of the mean prediction of an ensemble's members."""


class HeldOutScores:
    """Computes the figures of networks on held-out images.

    With labels only each image's class and loss are kept, so that many classes need no N · K numbers.

    Args:
        task: The student's.
        teacher: Compared with where labels do not decide; None: there is none.
        processes: Each computes on its batches.
    """

    def __init__(self, task: Task, teacher: Teacher | None, processes: Processes) -> None:
        self._task, self._teacher, self._processes = task, teacher, processes
        # The same after every epoch.
        self._teacher_outputs: Tensor | None = None

    def __call__(
        self,
        networks: Mapping[str, tuple[nn.Module, Tapped]],
        held_out: EvaluationLoader,
        *,
        members: tuple[str, ...] = (),
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor | None]]:
        """Computes the figures and their parts by image (`Task.parts`). All processes must call it.

        Args:
            networks: Each with a network of its class, by name.
            held_out: This process's batches.
            members: Networks whose mean prediction is scored too, as ENSEMBLE.

        Returns:
            Both by name in the first process; nothing in the others.
        """
        task, labels_N = self._task, held_out.labels
        # Labels alone say how good a classifier is: the teacher is needed only without them.
        by_labels = task.has_classes and bool((labels_N >= 0).any())
        if self._teacher is not None and not by_labels and self._teacher_outputs is None:
            outputs, _ = predict_teacher(self._teacher, held_out, task)
            self._teacher_outputs = self._processes.gather_rows(outputs)
        num_classes = 0

        def reduce(outputs: Tensor, labels: Tensor) -> Tensor:
            nonlocal num_classes
            # An ensemble is the mean of whole outputs.
            decisions = task.decide(outputs, labels) if by_labels and not members else None
            if decisions is None:
                return outputs
            num_classes = decisions.num_classes
            return decisions.rows

        own = predict_all(networks, held_out, reduce)
        rows = {name: self._processes.gather_rows(value) for name, value in own.items()}
        if not self._processes.first:
            return {}, {}
        if members:
            rows[ENSEMBLE] = mean_prediction([rows[name] for name in members])
        made = {name: Decisions(value, num_classes) if num_classes else value for name, value in rows.items()}
        scores = {name: task.score(value, labels_N, self._teacher_outputs) for name, value in made.items()}
        parts = {name: task.parts(value, labels_N, self._teacher_outputs) for name, value in made.items()}
        return scores, parts
