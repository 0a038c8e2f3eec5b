"""The base of online methods: networks that train together, as whole networks or as branches of one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Candidate, Method
from kdcompress.networks.activations import LOGITS, Activations, Want
from kdcompress.networks.build import CHOOSE, cuttable
from kdcompress.networks.cohort import Cohort
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped


class CohortMethod(Method):
    """Runs K networks that train together, and offers each one of the student's class for shipping.

    Network 0 is the student. The others are its peers, or branches that share the student's first stages.

    Args:
        config: The recipe's `method:` section.
        networks: Student and peers.
        data: Facts about the training data.
        branches: Number of branches, the student's own included; 0: whole networks.
        own_stages: Number of last stages that each branch has of its own.
        stem_gradient: Factor on the gradient that the branches give the shared stages.

    Attributes:
        cohort: The branches; None where whole networks train together.

    Raises:
        NetworkError: The student has no stage that the branches could share, or cannot be split there.
    """

    def __init__(
        self,
        config: Any,
        networks: Networks,
        data: DataInfo,
        *,
        branches: int = 0,
        own_stages: int = 1,
        stem_gradient: float = 1.0,
    ) -> None:
        super().__init__(config, networks, data)
        self.cohort: Cohort | None = None
        if branches:
            stage = last_shared_stage(networks.student, own_stages)
            self.cohort = Cohort(networks.student, branches, stage, stem_gradient=stem_gradient)

    @property
    def count(self) -> int:
        """K, the number of networks."""
        return 1 + len(self.networks.peers) if self.cohort is None else len(self.cohort)

    def names(self) -> list[str]:
        """Returns student, peer1, peer2, ...; or student, branch1, branch2, ..."""
        other = "peer" if self.cohort is None else "branch"
        return ["student", *(f"{other}{k}" for k in range(1, self.count))]

    def architectures(self) -> tuple[Tapped, ...]:
        """Returns one network of each member's class, for its shapes: the student where it is a branch."""
        student = self.networks.student
        return (student, *self.networks.peers) if self.cohort is None else (student,) * len(self.cohort)

    def read_all(self, batch: Batch, want: Want = LOGITS) -> list[Activations]:
        """Runs all networks; network k reads view k modulo V.

        Args:
            batch: Its views are read.
            want: Outputs of every network. Branches give their last map as `stages["map"]`.

        Returns:
            Float32 outputs of each network, in the order of `names`.
        """
        if self.cohort is not None:
            return self.read_branches(batch, want)[1]
        views = len(batch.views)
        networks = (self.networks.student, *self.networks.peers)
        return [network(batch.views[k % views].images, want) for k, network in enumerate(networks)]

    def read_branches(self, batch: Batch, want: Want = LOGITS) -> tuple[Tensor, list[Activations]]:
        """Runs the shared stages once and every branch on their map.

        Returns:
            The shared map `[V · B, C', H', W']` and the float32 outputs of each branch.
        """
        assert self.cohort is not None
        images = torch.cat([view.images for view in batch.views]) if len(batch.views) > 1 else batch.images
        shared, readings = self.cohort(images, want, len(batch.views))
        return shared, readings

    def ramp(self) -> float:
        """Returns this epoch's share of a weight, by `ramp_share`, `ramp_epochs` and `ShortRuns`."""
        c = self.config
        return self.short_run_factor() * losses.exponential_ramp(
            self.epoch, self.epochs_of(c.ramp_share, c.ramp_epochs)
        )

    def candidates(self) -> dict[str, Candidate]:
        """Names the student and every other network of its class: the best of them on held-out data ships."""
        student = self.networks.student
        return {
            name: candidate for name, candidate in self.members().items() if candidate.model == student.model
        }

    def members(self) -> dict[str, Candidate]:
        """Names all networks, those of other classes than the student's included."""
        student, cohort = self.networks.student, self.cohort
        if cohort is None:
            networks = (student, *self.networks.peers)
            return {n: Candidate.of(network) for n, network in zip(self.names(), networks, strict=True)}
        own, *others = self.names()
        branches = {n: Candidate(student, partial(cohort.plain_state, k)) for k, n in enumerate(others, 1)}
        return {own: Candidate.of(student), **branches}


def last_shared_stage(student: Tapped, own_stages: int) -> str:
    """Returns the name of the stage behind which branches start.

    Args:
        student: The network that is split.
        own_stages: Number of last stages that each branch has of its own.

    Raises:
        NetworkError: The network has no more stages than that.
    """
    stages = list(student.shapes().stages)
    if len(stages) <= own_stages:
        raise NetworkError(
            f"{student.model}: has {len(stages)} stages, so branches with {own_stages} of their own would "
            f"share none; name stages in student.taps, take larger images, or {CHOOSE} {cuttable()}"
        )
    return stages[-1 - own_stages]


def logits_of(readings: Iterable[Activations]) -> list[Tensor]:
    """Returns the logits of each network, which must have been read."""
    return [_present(read.logits) for read in readings]


def pooled_of(readings: Iterable[Activations]) -> list[Tensor]:
    """Returns the pooled features of each network, which must have been read."""
    return [_present(read.pooled) for read in readings]


def last_map(read: Activations) -> Tensor:
    """Returns the deepest map `[B, C, H, W]` that was read."""
    return list(read.stages.values())[-1]


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
