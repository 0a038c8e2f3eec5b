"""Re-estimates the batch-norm statistics of the network that ships, and keeps the better ones."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.data.loader import EvaluationLoader
from kdcompress.networks.exits import WithExits
from kdcompress.networks.load_state import load_state
from kdcompress.networks.tapped import Tapped
from kdcompress.tasks.figures import selection_metric
from kdcompress.train import bn_statistics
from kdcompress.train.processes import Processes
from kdcompress.train.ranking import rank
from kdcompress.train.scores import HeldOutScores


class ScratchNetworks:
    """Holds networks that states are loaded into: a branch has no network of its own."""

    def __init__(self) -> None:
        self._networks: dict[tuple[int, str], nn.Module] = {}

    def load(self, like: Tapped, state: Mapping[str, Tensor], name: str = "") -> nn.Module:
        """Loads a state into a scratch network of its plain class.

        Args:
            like: A network of that class.
            state: State dictionary.
            name: Tells networks apart that are used at the same time.
        """
        key = (id(like), name)
        if key not in self._networks:
            self._networks[key] = copy.deepcopy(like.network)
        load_state(self._networks[key], state)
        return self._networks[key]


class ShippingStatistics:
    """Gives the network that ships, and its exits, the batch-norm statistics that are better.

    Args:
        images: Un-augmented training images, in shuffled order.
        shown: Gives what a network sees of a batch's images (`Method.statistics_images`).
        held_out: This process's batches of the images that decide; None: the re-estimated ones are kept.
        scores: Computes the held-out figures.
        processes: The first one re-estimates, all of them agree.
        scratch: Networks for the states.
    """

    def __init__(
        self,
        images: Iterable[Batch],
        shown: Callable[[Tensor], Tensor],
        held_out: EvaluationLoader | None,
        scores: HeldOutScores,
        processes: Processes,
        scratch: ScratchNetworks,
    ) -> None:
        self._images, self._shown, self._held_out = images, shown, held_out
        self._compute_scores, self._processes, self._scratch = scores, processes, scratch

    def better(
        self, like: Tapped, state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Re-estimates a state's batch-norm statistics and keeps the better ones; of equals, the new ones.

        Args:
            like: A network of its class.
            state: State dictionary with the running statistics.

        Returns:
            The state, and the facts: number of images, which statistics ship, the held-out figures of both
            (None without held-out images) and the seconds that re-estimation took; None if nothing was
            re-estimated.
        """
        result = self._changed(like, state) if self._processes.first else None
        changed, count, seconds = self._processes.broadcast(result)
        if count == 0:
            return state, None
        new, shipped = {**state, **changed}, "re-estimated"
        scores: dict[str, dict[str, Any]] | None = None
        if self._held_out is not None:
            values = {"re-estimated": new, "running": state}
            networks = {key: (self._scratch.load(like, own, key), like) for key, own in values.items()}
            scores = self._processes.broadcast(self._compute_scores(networks, self._held_out)[0])
            metric = selection_metric(scores[shipped])
            if metric is None:
                scores = None
            elif rank(scores["running"], metric) > rank(scores[shipped], metric):
                shipped = "running"
        # The time of re-estimation alone: the held-out images are scored in any case.
        facts = {"images": count, "shipped": shipped, "held_out": scores, "seconds": seconds}
        return (new if shipped == "re-estimated" else state), facts

    def of_exits(
        self,
        modules: Mapping[str, nn.Module],
        exits: Mapping[str, dict[str, Tensor]],
        like: Tapped,
        state: Mapping[str, Tensor],
    ) -> dict[str, dict[str, Tensor]]:
        """Re-estimates the batch-norm statistics of exits on the maps of the student that ships.

        Args:
            modules: The exits' modules, by stage.
            exits: Their state dictionaries.
            like: A network of the student's class.
            state: The student's state dictionary.
        """
        new: dict[str, dict[str, Tensor]] = {}
        if self._processes.first:
            layers = {stage: copy.deepcopy(modules[stage]) for stage in exits}
            for stage, module in layers.items():
                load_state(module, exits[stage])
            pairs = [(like.taps.stages[stage], module) for stage, module in layers.items()]
            whole = WithExits(self._scratch.load(like, state), pairs)
            self._reestimate(whole, like, within=whole.exits)
            new = {stage: copied(module.state_dict()) for stage, module in layers.items()}
        agreed: dict[str, dict[str, Tensor]] = self._processes.broadcast(new)
        return agreed

    def _changed(self, like: Tapped, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], int, float]:
        """Returns the re-estimated tensors that differ from the state's, the images used, and the seconds."""
        began = time.perf_counter()
        network = self._scratch.load(like, state)
        count = self._reestimate(network, like)
        new = copied(network.state_dict())
        changed = {name: value for name, value in new.items() if not value.equal(state[name])}
        return changed, count, time.perf_counter() - began

    def _reestimate(self, network: nn.Module, like: Tapped, within: nn.Module | None = None) -> int:
        return bn_statistics.reestimate(
            network, like, self._images, shown=self._shown, until_converged=True, within=within
        )


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns copies of all tensors, on the CPU and without gradients."""
    return {key: value.detach().cpu().clone() for key, value in state.items()}
