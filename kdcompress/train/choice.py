"""Choosing the network that ships: the candidates of a training, their held-out scores, the best so far."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from kdcompress.data.loader import EvaluationLoader
from kdcompress.errors import UserError
from kdcompress.methods.base import Candidate, Method
from kdcompress.networks.tapped import Tapped
from kdcompress.tasks.figures import selection_metric
from kdcompress.train import bn_statistics
from kdcompress.train.average import Average
from kdcompress.train.bn_statistics import StatisticsImages
from kdcompress.train.job import Outcome
from kdcompress.train.processes import Processes
from kdcompress.train.ranking import leads, loss_of, rank
from kdcompress.train.scores import ENSEMBLE, HeldOutScores
from kdcompress.train.shipping_statistics import ScratchNetworks, ShippingStatistics, copied

BEST, LAST, EMA = "best", "last", "ema"


def offered(method: Method, *, ema: bool) -> list[str]:
    """Lists the values that `train.ship` may have for a method.

    Args:
        method: Its candidates and members are offered.
        ema: True if `train.ema` is set.
    """
    names = [*method.candidates(), *([EMA] if ema else [])]
    return [BEST, LAST, *names, *([ENSEMBLE] if method.members() else [])]


def check_ship(method: Method, ship: str, *, ema: bool) -> None:
    """Refuses a value of `train.ship` that the method does not offer.

    Raises:
        UserError: With the list of values.
    """
    known = offered(method, ema=ema)
    if ship in known:
        return
    hint = difflib.get_close_matches(ship, known, n=1)
    if ship == EMA:  # a method may have averages of its own
        hint = [name for name in known if name.startswith(f"{EMA}_")][:1]
    advice = "ema needs train.ema, its decay per step; " if ship == EMA and not hint else ""
    advice += f"did you mean {hint[0]!r}?; " if hint else ""
    raise UserError(f"train.ship: the method does not offer {ship!r}; {advice}choices: {', '.join(known)}")


class Choice:
    """Keeps the candidate of a training that would ship now.

    The selection metric is top-1, for a backbone the accuracy of its nearest neighbours, or the agreement
    with the teacher where there are no labels (`tasks.figures.selection_metric`). If no metric can be
    computed on the held-out images, the last epoch is chosen.

    The highest of many figures of a few images is high by chance: the epoch with the best top-1 on 300 images
    is seldom the best epoch, the less so the more networks there are to choose from. So a later epoch is
    chosen unless the best one so far leads it clearly, image by image (`leads`). Of the candidates of an
    epoch that the best of them does not lead, the one of the lowest loss is chosen. Of metrics that are no
    sum over images, the highest counts.

    Args:
        method: The method being trained.
        average: Moving average of the student, a further candidate; None: there is none.
        held_out: This process's batches of the images to choose on; None: the last epoch is chosen.
        processes: Each scores its batches, all of them agree.
        ship: Value of `train.ship`: best, last, ensemble or the name of a candidate.
        statistics: Images to re-estimate batch-norm statistics on; None: the running statistics are used.
        exits: The early exits that ship too, by stage; empty: none.
        average_exits: Their moving averages, which belong to the student's; empty: there is none.
    """

    def __init__(
        self,
        method: Method,
        average: Average | None,
        held_out: EvaluationLoader | None,
        processes: Processes,
        ship: str = BEST,
        statistics: StatisticsImages | None = None,
        *,
        exits: Mapping[str, nn.Module] = MappingProxyType({}),
        average_exits: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        self._method, self._average, self._held_out, self._processes = method, average, held_out, processes
        self._ship = ship
        self._exits, self._average_exits = exits, average_exits
        self._statistics_seconds = 0.0
        self.last: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self._peaks: dict[str, dict[str, Any]] = {}
        self.best_ensemble: dict[str, Any] | None = None
        self.reached: dict[str, dict[str, Any]] = {}
        networks = method.networks
        self._compute_scores = HeldOutScores(networks.student.task, networks.teacher, processes)
        self._scratch = ScratchNetworks()
        self._sample = None if statistics is None else statistics.sample
        self._shipping = None
        if statistics is not None:
            self._shipping = ShippingStatistics(
                statistics.shipping_images,
                method.statistics_images,
                held_out,
                self._compute_scores,
                processes,
                self._scratch,
            )

    def score(self, epoch: int, *, frozen_statistics: bool = False) -> dict[str, Any] | None:
        """Scores every candidate and member of the ensemble, and keeps the candidate that would ship.

        Args:
            epoch: 1-based number of the epoch that has just ended.
            frozen_statistics: True if the phase keeps its batch-norm statistics, so that they are not
                re-estimated.

        Returns:
            Figures of the default candidate, with those of all networks under "candidates" if there are
            several; None if nothing is held out or no metric can be computed.
        """
        if self._held_out is None:
            return None
        found = self._scores(self._held_out, re_estimate=not frozen_statistics)
        scores, parts = self._processes.broadcast(found)
        metric = selection_metric(scores[self._default()])
        if metric is None:
            return None
        self.last = scores[self._default()]
        candidates = self._candidates()
        for name, figures in scores.items():
            if name not in self.reached or rank(figures, metric) > rank(self.reached[name], metric):
                may_ship = name in candidates or name == ENSEMBLE
                self.reached[name] = {**figures, "epoch": epoch, "may_ship": may_ship}
        names = [key for key in self._eligible() if key in scores]
        highest = max(names, key=lambda key: rank(scores[key], metric))
        name = highest
        if parts[highest] is not None:
            rivals = [key for key in names if not leads(parts[highest], parts[key])]
            name = min(rivals, key=lambda key: loss_of(scores[key]))
        if self._keeps_up(BEST, highest, name, scores, parts, metric):
            self.best = {**scores[name], "candidate": name, "epoch": epoch, "state": self._state_of(name)}
            if self._exits:
                self.best["exits"] = self._states_of_exits(name)
        if ENSEMBLE in scores and self._keeps_up(ENSEMBLE, ENSEMBLE, ENSEMBLE, scores, parts, metric):
            self.best_ensemble = {**scores[ENSEMBLE], "epoch": epoch, "states": self._states_of_members()}
        return self.last if len(scores) == 1 else {**self.last, "candidates": scores}

    def outcome(self, epoch: int, seconds: float) -> Outcome:
        """Returns the network that ships.

        Args:
            epoch: 1-based number of the last epoch.
            seconds: Duration of the whole training.
        """
        states: dict[str, dict[str, Tensor]] = {}
        ensemble_best = None
        if self._ship == ENSEMBLE:
            states = self._states_of_members() if self.best_ensemble is None else self.best_ensemble["states"]
            ensemble_best = _without_tensors(self.best_ensemble)
        if self.best is not None and self._ship != LAST:
            name, epoch, state = self.best["candidate"], self.best["epoch"], self.best["state"]
            exits = self.best.get("exits", {})
        else:
            name = self._default() if self._default() in self._eligible() else self._eligible()[0]
            state, exits = self._state_of(name), self._states_of_exits(name)
        like, best = self._candidates()[name].like, _without_tensors(self.best)
        state, facts = self._with_best_statistics(like, state)
        # With `ship: last` the best epoch is another one than that of these figures.
        if best is not None and self._ship != LAST and facts is not None and facts["held_out"] is not None:
            best = {**facts["held_out"][facts["shipped"]], "candidate": name, "epoch": epoch}
        # The exits' statistics are of the same kind as those of the student that they read.
        if exits and facts is not None and facts["shipped"] == "re-estimated":
            assert self._shipping is not None
            exits = self._shipping.of_exits(self._exits, exits, like, state)
        members = self._method.members()
        states = {key: self._with_best_statistics(members[key].like, own)[0] for key, own in states.items()}
        return Outcome(
            state, name, like, epoch, self.last, best, seconds, states, ensemble_best, facts, self.reached,
            exits=exits,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resume needs."""
        return {
            "best": self.best,
            "last": self.last,
            "best_ensemble": self.best_ensemble,
            "reached": self.reached,
            "peaks": self._peaks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.best, self.last = state["best"], state["last"]
        self.best_ensemble = state.get("best_ensemble")
        self.reached = state.get("reached", {})
        best = _without_tensors(self.best)
        # Checkpoints of older versions hold no peaks, only the figures of the best epoch.
        earlier = {} if best is None else {BEST: {"figures": best, "parts": None}}
        self._peaks = state.get("peaks", earlier)

    def _keeps_up(
        self,
        kind: str,
        highest: str,
        name: str,
        scores: Mapping[str, dict[str, Any]],
        parts: Mapping[str, Tensor | None],
        metric: str,
    ) -> bool:
        """Records the highest figures so far; returns True unless they lead those of a candidate.

        Args:
            kind: BEST or ENSEMBLE, between which nothing is compared.
            highest: The candidate with the highest figures of this epoch.
            name: The candidate.
            scores: Figures of all candidates.
            parts: Their parts by image.
            metric: Name of the selection metric.
        """
        peak = self._peaks.get(kind)
        if peak is None or rank(scores[highest], metric) > rank(peak["figures"], metric):
            peak = self._peaks[kind] = {"figures": scores[highest], "parts": parts[highest]}
        if peak["parts"] is None or parts[name] is None:
            return peak["figures"] is scores[name]
        return not leads(peak["parts"], parts[name])

    def _with_best_statistics(
        self, like: Tapped, state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Returns a state with the better batch-norm statistics, and the facts; see `ShippingStatistics`."""
        state, facts = (state, None) if self._shipping is None else self._shipping.better(like, state)
        if facts is not None:
            facts["seconds"] = round(self._statistics_seconds + facts["seconds"], 3)
        return state, facts

    def _scores(
        self, held_out: EvaluationLoader, *, re_estimate: bool = True
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor | None]]:
        """Computes the figures of all networks, and their parts by image, in one pass over the images.

        Returns:
            Both by name in the first process; nothing in the others.
        """
        candidates = self._candidates()
        # Those that may not ship are scored too: whoever trains several networks is told what each reached.
        members = self._method.members()
        # All states are loaded before the first statistics change: a branch has its stem from the student.
        networks = {
            name: (self._module_of(name, candidate), candidate.like)
            for name, candidate in {**candidates, **members}.items()
        }
        sample = self._sample if re_estimate else None
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            for module, like in networks.values():
                shown = self._method.statistics_images
                stack.enter_context(bn_statistics.reestimated(module, like, sample, shown))
            self._statistics_seconds += time.perf_counter() - began
            averaged = tuple(members) if self._ship == ENSEMBLE else ()
            return self._compute_scores(networks, held_out, members=averaged)

    def _candidates(self) -> dict[str, Candidate]:
        candidates = dict(self._method.candidates())
        if self._average is not None:
            network = self._average.network
            candidates[EMA] = Candidate(self._method.networks.student, network.state_dict, network)
        return candidates

    def _eligible(self) -> list[str]:
        """Lists the candidates that may ship under the present `train.ship`."""
        names = list(self._candidates())
        if self._ship == ENSEMBLE:
            members = self._method.members()
            return [name for name in names if name in members]
        return names if self._ship in (BEST, LAST) else [self._ship]

    def _default(self) -> str:
        """Returns the average if there is one, else the method's first candidate, the student."""
        return EMA if self._average is not None else next(iter(self._method.candidates()))

    def _module_of(self, name: str, candidate: Candidate) -> nn.Module:
        if candidate.module is not None:
            return candidate.module
        return self._scratch.load(candidate.like, candidate.state(), name)

    def _state_of(self, name: str) -> dict[str, Tensor]:
        return copied(self._candidates()[name].state())

    def _states_of_members(self) -> dict[str, dict[str, Tensor]]:
        return {name: copied(member.state()) for name, member in self._method.members().items()}

    def _states_of_exits(self, name: str) -> dict[str, dict[str, Tensor]]:
        """Returns copies of the exits' states that belong to a candidate."""
        exits = self._average_exits if name == EMA else self._exits
        return {stage: copied(module.state_dict()) for stage, module in exits.items()}


def _without_tensors(figures: dict[str, Any] | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    return {key: value for key, value in figures.items() if key not in ("state", "states", "exits")}
