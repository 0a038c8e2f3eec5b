"""The networks of one run: student, teacher and peers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks that a method trains or reads.

    Args:
        student: The network that ships.
        teacher: Frozen, or None.
        peers: Trained beside the student; any of them may ship if it is the student's class.
    """

    student: Tapped
    teacher: Teacher | None = None
    peers: tuple[Tapped, ...] = ()

    def trained(self) -> Iterator[nn.Module]:
        """Returns the student's and the peers' modules."""
        yield self.student.network
        for peer in self.peers:
            yield peer.network
