"""Which network of a training ships: what may, how well each does on held-out data, and the best so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from kdcompress.data.batch import Batch
from kdcompress.methods.base import Candidate, Method
from kdcompress.train.average import Average
from kdcompress.train.evaluate import deciding, predict, predict_teacher, score
from kdcompress.train.job import Outcome
from kdcompress.train.processes import Processes


class Choice:
    """The candidates of a training and the best of them so far.

    What decides is top-1, a backbone's nearest neighbours, or the agreement with the teacher where there are
    no labels (`evaluate.deciding`); where nothing can be told of the held-out images, the last epoch.

    Args:
        method: Whose candidates they are.
        average: One more candidate, or None.
        held_out: Batches to choose on; None: the last epoch is the choice.
        processes: The first of them scores, all of them agree.
    """

    def __init__(
        self,
        method: Method,
        average: Average | None,
        held_out: Iterable[Batch] | None,
        processes: Processes,
    ) -> None:
        self._method, self._average, self._held_out, self._processes = method, average, held_out, processes
        self.last: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        # What the teacher says of the held-out images is the same after every epoch.
        self._taught: Tensor | None = None

    def score(self, epoch: int) -> dict[str, Any] | None:
        """Scores every candidate and remembers the best; of equals, the earliest.

        Args:
            epoch: 1-based, the one that has just ended.

        Returns:
            Figures of the default candidate, those of all under "candidates" if there are several; None if
            nothing is held out, or nothing can be told of it.
        """
        if self._held_out is None:
            return None
        scores: dict[str, dict[str, Any]] = {}
        if self._processes.first:
            for name, candidate in self._candidates().items():
                scores[name] = self._figures(candidate, self._held_out)
        scores = self._processes.agree(scores)
        by = deciding(scores[self._default()])
        if by is None:
            return None
        name = max(scores, key=lambda key: scores[key][by])
        self.last = scores[self._default()]
        if self.best is None or scores[name][by] > self.best[by]:
            self.best = {**scores[name], "candidate": name, "epoch": epoch, "state": self._state_of(name)}
        return self.last if len(scores) == 1 else {**self.last, "candidates": scores}

    def outcome(self, ship: str, epoch: int, seconds: float) -> Outcome:
        """What ships.

        Args:
            ship: The best epoch and candidate on held-out data, or the last epoch's default candidate, which
                is also what ships where nothing is held out.
            epoch: 1-based, the last one.
            seconds: Of the whole training.
        """
        figures = None if self.best is None else {k: v for k, v in self.best.items() if k != "state"}
        if self.best is not None and ship == "best":
            name, epoch, state = self.best["candidate"], self.best["epoch"], self.best["state"]
        else:
            name = self._default()
            state = self._state_of(name)
        return Outcome(state, self._candidates()[name].model, name, epoch, self.last, figures, seconds)

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"best": self.best, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.best, self.last = state["best"], state["last"]

    def _figures(self, candidate: Candidate, held_out: Iterable[Batch]) -> dict[str, Any]:
        student, teacher = self._method.networks.student, self._method.networks.teacher
        outputs, labels_N = predict(candidate.module, student, held_out)
        # Where labels say how good a classifier is, its teacher need not be asked.
        asked = teacher is not None and (student.backbone or not bool((labels_N >= 0).any()))
        if asked and self._taught is None:
            assert teacher is not None
            self._taught, _ = predict_teacher(teacher, held_out, pooled=student.backbone)
        return score(outputs, labels_N, backbone=student.backbone, taught=self._taught)

    def _candidates(self) -> dict[str, Candidate]:
        candidates = dict(self._method.candidates())
        if self._average is not None:
            candidates["ema"] = Candidate(self._average.network, self._method.networks.student.model)
        return candidates

    def _default(self) -> str:
        """The average if one was asked for, else the method's first candidate, the student."""
        return "ema" if self._average is not None else next(iter(self._method.candidates()))

    def _state_of(self, name: str) -> dict[str, Tensor]:
        state = self._candidates()[name].module.state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}
