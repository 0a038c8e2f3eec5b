"""Networks of one class that share their first stages: the shared part runs once for all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError, Uncuttable
from kdcompress.networks.activations import LOGITS, POOLED, Activations, Want
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

    Attributes:
        tails: Branches 1 and up.

    Raises:
        NetworkError: Fewer than two branches, no such stage, or no linear classifier.
        Uncuttable: The network is no straight chain behind that stage.
    """

    def __init__(self, student: Tapped, branches: int, stage: str) -> None:
        super().__init__()
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
        with student.autocast():
            shared = parts.stem(student.normalise(images))
        inputs = shared.chunk(views)
        readings = [branch(inputs[k % views]) for k, branch in enumerate(self._branches())]
        return wide(shared), [_selected(read, want) for read in readings]

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
    shared = {id(t) for t in parts.stem.state_dict(keep_vars=True).values()}
    inner = {id(t): key for key, t in parts.rest.state_dict(keep_vars=True).items()}
    keys = {}
    for key, tensor in student.network.state_dict(keep_vars=True).items():
        if id(tensor) in inner:
            keys[key] = inner[id(tensor)]
        elif id(tensor) not in shared:
            raise Uncuttable(f"{student.model}: {key} lies outside its segments, so no branch can carry it")
    return keys
