"""Networks of one class that share their first stages: the shared part runs once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError, Uncuttable
from kdcompress.networks.activations import LOGITS, POOLED, Activations, Want
from kdcompress.networks.build import CHOOSE, cuttable
from kdcompress.networks.exits import Exit, exit_after, own_exit
from kdcompress.networks.load_state import load_state
from kdcompress.networks.split import Split, fresh_network
from kdcompress.networks.tapped import Tapped, freeze_batch_norm, wide


class Cohort(nn.Module):
    """Runs the student and further branches that start behind one of its stages.

    Branch 0 is the student's own later part and is not registered here: the student's parameters and modes
    stay the student's. The further branches have its architecture and freshly drawn weights (from torch's
    global generator), and are this module's children. A compiled student is not used.

    Args:
        student: Trained in place.
        branches: Number of branches, the student's own included; at least 2.
        stage: The last stage that all share.
        stem_gradient: Factor on the gradient that the branches give the shared part.

    Attributes:
        tails: Branches 1 and up.

    Raises:
        NetworkError: Fewer than two branches, no such stage, or no linear classifier.
        Uncuttable: The network is no straight chain behind that stage.
    """

    def __init__(self, student: Tapped, branches: int, stage: str, *, stem_gradient: float = 1.0) -> None:
        super().__init__()
        self._stem_gradient = stem_gradient
        if branches < 2:
            raise NetworkError(f"{student.model}: a cohort has at least 2 branches, got {branches}")
        if student.task.has_classes:
            _ = student.classifier  # else it has no pooled features, and says so
        parts, own = own_exit(student, stage)
        # A tuple keeps nn.Module from registering what is the student's.
        self._student: tuple[Tapped, Split, Exit] = (student, parts, own)
        self.tails = nn.ModuleList(exit_after(student, stage) for _ in range(branches - 1))
        self._keys_in_branch = _keys_in_branch(student, parts)

    def __len__(self) -> int:
        """Returns the number of branches, the student's own included."""
        return 1 + len(self.tails)

    def forward(
        self, images: Tensor, want: Want = LOGITS | POOLED, views: int = 1
    ) -> tuple[Tensor, list[Activations]]:
        """Runs the shared part once and every branch on its map, under the student's precision.

        Args:
            images: `[V · B, C, H, W]` float32 in [0, 1], not normalised; the views one after the other.
            want: Read of each branch: logits, pooled features, and its last map as `stages["map"]`.
            views: V. Branch k reads view k modulo V alone; with one view all branches read all images.

        Returns:
            The shared map `[V · B, C', H', W']`, and the readings of each branch; all float32.
        """
        student, parts, _ = self._student
        return _run(student, parts.stem, self._branches(), images, want, views, self._stem_gradient)

    def train_mode(self, on: bool, freeze_bn: bool = False) -> None:
        """Switches the further branches between training and evaluation.

        Args:
            on: True: training.
            freeze_bn: Leave batch norm in evaluation, so that its statistics stay as they are.
        """
        self.train(on)
        if on and freeze_bn:
            freeze_batch_norm(self)

    def plain_state(self, branch: int) -> dict[str, Tensor]:
        """Returns the state dictionary of a plain network with the weights of the shared part and a branch.

        Args:
            branch: 0 is the student's own.

        Returns:
            The tensors themselves, as `state_dict` gives them, not copies.

        Raises:
            IndexError: No such branch.
        """
        state: dict[str, Tensor] = self._student[0].network.state_dict()
        if branch != 0:
            tail = self._branches()[branch].state_dict()
            state.update((key, tail[inner]) for key, inner in self._keys_in_branch.items())
        return state

    def parts(self) -> list[nn.Module]:
        """Returns the shared part and every branch, the student's own included, without copying them."""
        return [self._student[1].stem, *self._branches()]

    def plain(self, branch: int) -> nn.Module:
        """Builds a network of the student's plain class, in eval mode, with the weights of a branch.

        Args:
            branch: 0 is the student's own.

        Raises:
            IndexError: No such branch.
        """
        # Its weights are overwritten, so drawing them must leave no trace.
        with torch.random.fork_rng(devices=[]):
            network = fresh_network(self._student[0])
        load_state(network, self.plain_state(branch))
        return network.eval()

    def _branches(self) -> list[nn.Module]:
        return [self._student[2], *self.tails]


class CohortCopy(nn.Module):
    """Holds copies of a cohort's shared part and branches, and runs them in the student's precision.

    Unlike a cohort it has all of its tensors as its own. They begin with the cohort's values.

    Args:
        cohort: Not changed.
    """

    def __init__(self, cohort: Cohort) -> None:
        super().__init__()
        self._tapped, parts, _ = cohort._student
        stem, *branches = cohort.parts()
        self.stem = copy.deepcopy(stem)
        self.branches = nn.ModuleList(copy.deepcopy(branch) for branch in branches)
        self._keys_in_stem = _keys_within(self._tapped, parts.stem)
        self._keys_in_branch = cohort._keys_in_branch

    def forward(
        self, images: Tensor, want: Want = LOGITS | POOLED, views: int = 1
    ) -> tuple[Tensor, list[Activations]]:
        """Runs the shared part once and every branch; arguments and result as those of a cohort."""
        return _run(self._tapped, self.stem, self.branches, images, want, views)

    def parts(self) -> list[nn.Module]:
        """Returns the shared part and every branch, in the order of `Cohort.parts`."""
        return [self.stem, *self.branches]

    def plain_state(self, branch: int) -> dict[str, Tensor]:
        """Returns the state dictionary of a plain network; argument and result as those of a cohort.

        Raises:
            IndexError: No such branch.
        """
        tail, stem = self.branches[branch].state_dict(), self.stem.state_dict()
        return {
            key: tail[self._keys_in_branch[key]]
            if key in self._keys_in_branch
            else stem[self._keys_in_stem[key]]
            for key in self._tapped.network.state_dict()
        }


def _run(
    student: Tapped,
    stem: nn.Module,
    branches: Iterable[nn.Module],
    images: Tensor,
    want: Want,
    views: int,
    stem_gradient: float = 1.0,
) -> tuple[Tensor, list[Activations]]:
    with student.autocast():
        shared: Tensor = stem(student.normalise(images))
    if stem_gradient != 1 and shared.requires_grad:
        shared.register_hook(lambda gradient: stem_gradient * gradient)  # type: ignore[no-untyped-call]
    inputs = shared.chunk(views)
    readings = [branch(inputs[k % views]) for k, branch in enumerate(branches)]
    return wide(shared), [_selected(read, want) for read in readings]


def _selected(read: Activations, want: Want) -> Activations:
    return Activations(
        logits=read.logits if "logits" in want else None,
        pooled=read.pooled if "pooled" in want else None,
        stages=read.stages if "stages" in want else {},
    )


def _keys_in_branch(student: Tapped, parts: Split) -> dict[str, str]:
    """Maps the network's keys to those of a branch; keys that are left out lie in the shared part.

    Raises:
        Uncuttable: A tensor lies in neither, so that no branch could carry it.
    """
    shared, keys = _keys_within(student, parts.stem), _keys_within(student, parts.rest)
    for key in student.network.state_dict():
        if key not in shared and key not in keys:
            raise Uncuttable(
                f"{student.model}: {key} lies outside its segments, so no branch can carry it; "
                f"{CHOOSE} {cuttable()}"
            )
    return keys


def _keys_within(student: Tapped, part: nn.Module) -> dict[str, str]:
    """Maps keys of the network to those of a part that shares its tensors; others are left out."""
    inner = {id(t): key for key, t in part.state_dict(keep_vars=True).items()}
    tensors = student.network.state_dict(keep_vars=True)
    return {key: inner[id(t)] for key, t in tensors.items() if id(t) in inner}
