"""Several networks of one class that share their first stages: the shared part runs once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError, Uncuttable
from kdcompress.networks.activations import Activations
from kdcompress.networks.cut import Cut, cut, flat, fresh, fresh_network, pieces
from kdcompress.networks.tapped import Tapped, wide
from kdcompress.networks.trace import undisturbed


class Cohort(nn.Module):
    """The student and further branches beside it, grown on its first stages.

    Branch 0 is the student's own later part and is not registered here: the student's parameters and modes
    stay the student's. The further branches are freshly drawn (from torch's global generator) and are this
    module's children.

    Args:
        student: Trained in place.
        branches: How many in all, the student's own included; at least 2.
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
        own = cut(student, stage)
        # A tuple keeps nn.Module from registering what is the student's.
        self._own: tuple[Tapped, Cut] = (student, own)
        self.tails = nn.ModuleList(fresh(student, own.position).rest for _ in range(branches - 1))
        self._classifier = _path_of_classifier(student, own.rest)
        _check_covered(student)
        self._copies_map = _rewrites_its_input(student, own)

    def __len__(self) -> int:
        """How many branches there are, the student's own included."""
        return 1 + len(self.tails)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Activations]]:
        """One pass through the shared part and every branch, under the student's precision.

        Args:
            images: `[B, C, H, W]` float32 in [0, 1], not normalised.

        Returns:
            The shared map `[B, C', H', W']`, and for each branch its logits and pooled features; all float32.
        """
        student, own = self._own
        results = []
        with student.autocast():
            shared = own.stem(student.normalise(images))
            for branch in self._branches():
                with _input_of(branch.get_submodule(self._classifier)) as pooled:
                    logits = branch(shared.clone() if self._copies_map else shared)
                results.append(Activations(logits=wide(logits), pooled=wide(pooled[0])))
        return wide(shared), results

    def plain(self, branch: int) -> nn.Module:
        """A fresh network of the student's plain class, in eval mode, with the weights of stem and branch.

        Args:
            branch: 0 is the student's own.

        Raises:
            IndexError: No such branch.
        """
        student, own = self._own
        parts = [*flat(own.stem), *flat(self._branches()[branch])]
        with torch.random.fork_rng(
            devices=[]
        ):  # its weights are overwritten, so drawing them must leave no trace
            network = fresh_network(student)
        for target, source in zip(pieces(student.model, network), parts, strict=True):
            target.load_state_dict(source.state_dict(), strict=True)
        return network.eval()

    def _branches(self) -> list[nn.Module]:
        return [self._own[1].rest, *self.tails]


def _path_of_classifier(student: Tapped, rest: nn.Module) -> str:
    """Where the student's classifier lies in what comes after the shared part."""
    classifier = student.classifier
    for path, module in rest.named_modules():
        if module is classifier:
            return str(path)
    raise Uncuttable(f"{student.model}: its classifier does not lie in the branches")


def _check_covered(student: Tapped) -> None:
    """The pieces hold every parameter and buffer, so that copying them copies the network."""
    parts = pieces(student.model, student.network)
    held = {id(t) for part in parts for t in [*part.parameters(), *part.buffers()]}
    network = student.network
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if id(tensor) not in held:
            raise Uncuttable(f"{student.model}: {name} lies outside its segments, so no branch can carry it")


def _rewrites_its_input(student: Tapped, own: Cut) -> bool:
    """Whether a branch begins with an in-place operation, which would spoil the map for the next branch."""
    with undisturbed(student.network):
        shared = own.stem(student.sample())
        version = shared._version
        own.rest(shared)
    return bool(shared._version != version)


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first input of the module's calls, while the context lasts."""
    read: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        yield read
    finally:
        handle.remove()
