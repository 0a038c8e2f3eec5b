"""A teacher whose outputs are kept on disk: it computes each view of an image once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kdcompress.data.batch import TurnedViews, View
from kdcompress.data.joined import IDS_PER_SET
from kdcompress.data.prefetch import HostCopy, moved
from kdcompress.errors import KdcompressError, UserError
from kdcompress.networks.activations import LOGITS, Activations, Want
from kdcompress.networks.output_cache.codec import Codec
from kdcompress.networks.output_cache.facts import TeacherFacts, WithFacts
from kdcompress.networks.output_cache.rows import RowFiles
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher

_ROWS_AT_ONCE = 4096
"""Rows that `has` reads at a time."""
_PENDING_BATCHES = 8
"""Batches whose rows may be on their way from the device; each holds some pinned memory."""


class CachedTeacher(WithFacts):
    """Reads the outputs of replayed views from files, and computes and keeps those that are not there.

    Outputs that were just computed go through the same 16 bits as those that are read, so that a training
    does not depend on what was in the cache. A batch of which some rows are missing is computed as a whole.
    Everything that no cache can answer (images that are no replayed view, stage maps) goes to the teacher.

    Args:
        teacher: Computes what is missing.
        codec: The form that outputs are kept in.
        files: The rows by view and image.
        sets: Beginning of the file names of each joined set of images (`JoinedSource`).
        stamps: Of each set `[N]` int64 by the number of an image: when its file was last written; a row of
            another time counts as missing. None: the set has no files. Empty: no set has.
        fill: False: a missing row is an error, and nothing is written.
        warn: Receives a sentence if the files cannot be written any more.

    Attributes:
        computed: Number of rows (images of a view) that the teacher computed for want of a cached one.
        read: Number of rows that came from the files.
    """

    def __init__(
        self,
        teacher: Teacher,
        codec: Codec,
        files: RowFiles,
        *,
        sets: Sequence[str] = ("",),
        stamps: Sequence[np.ndarray | None] = (),
        fill: bool = True,
        warn: Callable[[str], object] = lambda sentence: None,
    ) -> None:
        super().__init__(TeacherFacts.of(teacher))
        self.teacher, self.codec, self.files = teacher, codec, files
        self.computed = self.read = 0
        self._sets, self._fill, self._warn = tuple(sets), fill, warn
        self._stamps = dict(zip(self._sets, stamps, strict=False))
        self._writes = fill
        self._known: dict[str, np.ndarray] = {}
        self._pending: deque[_PendingRows] = deque()

    @property
    def tapped(self) -> Tapped | None:
        """The teacher's network."""
        return self.teacher.tapped

    @property
    def device(self) -> torch.device:
        """The device that its images must be on."""
        return self.teacher.device

    @property
    def precision(self) -> torch.dtype | None:
        """Autocast type of the passes; None is float32 throughout."""
        return self.teacher.precision

    @precision.setter
    def precision(self, precision: torch.dtype | None) -> None:
        self.teacher.precision = precision

    def to(self, device: torch.device | str) -> Self:
        """Moves the teacher to a device."""
        self.teacher.to(device)
        return self

    def compile(self, *, graphs: bool = False) -> None:
        """Compiles the teacher's passes where that is possible."""
        self.teacher.compile(graphs=graphs)

    def __call__(self, images: View | TurnedViews | Tensor, want: Want = LOGITS) -> Activations:
        """Returns float32 outputs without gradients, from the files where they are.

        Args:
            images: A view, turned views, or `[B, C, H, W]` float32 in [0, 1].
            want: Fields to read; the rest stays empty.

        Raises:
            UserError: A row is missing and must not be computed.
        """
        views = rows_of(images)
        if views is None or not want <= self.codec.gives:
            return self.teacher(images, want)
        if any(each.holds(views) for each in self._pending):
            self._write(wait=True)
        found = [self._find(name, ids) for name, ids in views]
        rows, present = (
            np.stack(each, 1).reshape(-1, *each[0].shape[1:]) for each in zip(*found, strict=True)
        )
        missing = int((~present).sum())
        self.read += len(present) - missing
        self.computed += missing
        if missing:
            self._require_fill(missing, len(present))
            computed = self.codec.encode(self.teacher(images, self.codec.reads))
            known = moved(torch.from_numpy(present), self.device)
            complete = torch.where(known[:, None], moved(torch.from_numpy(rows), self.device), computed)
            if self._writes:
                self._pending.append(_PendingRows(views, present, HostCopy(complete)))
                self._write()
            return self.codec.decode(complete, want)
        return self.codec.decode(moved(torch.from_numpy(rows), self.device), want)

    def classify(self, pooled: Tensor) -> Tensor:
        """Returns the teacher's logits `[B, K]` of pooled features `[B, D]`; gradients reach `pooled`."""
        return self.teacher.classify(pooled)

    def shapes(self, image_size: tuple[int, int] | None = None) -> Activations:
        """Returns the readings of a batch of two as tensors without data."""
        return self.teacher.shapes(image_size)

    def on_epoch_end(self) -> None:
        """Writes what the device has computed, so that other processes find it in the next epoch."""
        self._write(wait=True)

    def assert_unchanged(self) -> None:
        """Raises an AssertionError if anything of the teacher changed since it was made."""
        self.teacher.assert_unchanged()

    def has(self, view: int, ids: Tensor, turn: int = 0) -> Tensor:
        """Returns `[N]` True for each image whose outputs of a view, turned so often, are in the files.

        Rows that this process has read or written are known; the others are read, some at a time.
        """
        self._write(wait=True)
        name = view_name(view, turn)
        there = np.zeros(len(ids), np.bool_)
        for file, here, numbers, _ in self._files(name, ids):
            known = self._known.get(file, there[:0])
            there[here] = [number < len(known) and known[number] for number in numbers.tolist()]
        for places in torch.split(torch.from_numpy(~there).nonzero().flatten(), _ROWS_AT_ONCE):
            there[places.numpy()] = self._find(name, ids[places])[1]
        return torch.from_numpy(there)

    def cached(self, view: int, ids: Tensor, want: Want, turn: int = 0) -> Activations:
        """Returns the outputs in the files; what is not there is zero or the classifier's bias."""
        self._write(wait=True)
        rows, _ = self._find(view_name(view, turn), ids)
        return self.codec.decode(moved(torch.from_numpy(rows), self.device), want)

    def close(self) -> None:
        """Writes what the device has computed, and closes the files; a later call opens them again."""
        self._write(wait=True)
        self.files.close()

    def _find(self, name: str, ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Reads rows `[B, width]` of images and `[B]` whether they are there, from each set's own file."""
        rows = np.zeros((len(ids), self.codec.width), np.uint8)
        present = np.zeros(len(ids), np.bool_)
        for file, here, numbers, stamps in self._files(name, ids):
            rows[here], present[here] = self.files.read(file, numbers, stamps)
            self._remember(file, numbers[present[here]])
        return rows, present

    def _files(
        self, name: str, ids: Tensor
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Gives each set's file, `[B]` True for the images in it, and numbers and stamps of their rows."""
        numbers, sets = (ids % IDS_PER_SET).numpy(), (ids // IDS_PER_SET).numpy()
        for number in np.unique(sets).tolist():
            here, stamps = sets == number, self._stamps.get(self._sets[number])
            own = None if stamps is None else stamps[numbers[here]]
            yield self._sets[number] + name, here, numbers[here], own

    def _remember(self, file: str, numbers: np.ndarray) -> None:
        """Notes rows that are in a file, for `has`; nothing where nothing is filled."""
        if not self._writes or len(numbers) == 0:
            return
        known, most = self._known.get(file, np.zeros(0, np.bool_)), int(numbers.max()) + 1
        if most > len(known):
            self._known[file] = known = np.pad(known, (0, max(most, 2 * len(known)) - len(known)))
        known[numbers] = True

    def _write(self, *, wait: bool = False) -> None:
        """Writes the rows that have come from the device; with `wait` it waits for all of them."""
        while self._pending and (
            wait or len(self._pending) > _PENDING_BATCHES or self._pending[0].rows.ready()
        ):
            batch = self._pending.popleft()
            self._keep(batch.views, batch.rows.array(), batch.present)

    def _keep(self, views: list[tuple[str, Tensor]], rows: np.ndarray, present: np.ndarray) -> None:
        """Writes the rows that were not there; a full disk costs a warning and the rest of the cache."""
        if not self._writes:
            return
        turns = len(views)
        try:
            for turn, (name, ids) in enumerate(views):
                fresh, lacking = rows[turn::turns], ~present[turn::turns]
                for file, here, numbers, stamps in self._files(name, ids):
                    new = None if stamps is None else stamps[lacking[here]]
                    self.files.write(file, numbers[lacking[here]], fresh[here & lacking], new)
                    self._remember(file, numbers)
        except KdcompressError as error:
            self._writes = False
            self._warn(
                f"teacher.cache: {error}; what is kept so far is used, and the teacher computes the rest at "
                "every step. A smaller teacher.cache.views, or another teacher.cache.folder, would help"
            )

    def _require_fill(self, missing: int, count: int) -> None:
        if not self._fill:
            raise UserError(
                f"teacher.cache.mode: read, but of a batch of {count} the outputs for {missing} are not in "
                f"{self.files.folder}; run it once with teacher.cache.mode: fill, on the same images"
            )


@dataclass(frozen=True, slots=True)
class _PendingRows:
    """A batch whose rows `[B, width]` are on their way from the device; those not `present` are new."""

    views: list[tuple[str, Tensor]]
    present: np.ndarray
    rows: HostCopy

    def holds(self, views: list[tuple[str, Tensor]]) -> bool:
        """Returns True if it has a row of these views, which a look into the files would miss."""
        return any(
            name == own_name and bool(torch.isin(ids, own).any())
            for name, ids in views
            for own_name, own in self.views
        )


def view_name(view: int, turn: int = 0) -> str:
    """Returns the file name of a view, or of a view turned by quarter turns."""
    return f"view{view:04d}" + (f"-turn{turn}" if turn else "") + ".rows"


def rows_of(images: View | TurnedViews | Tensor) -> list[tuple[str, Tensor]] | None:
    """Returns the file name and `[B]` ids of each view whose rows take turns; None: they are not replayed."""
    if isinstance(images, Tensor):
        return None
    views = (images,) if isinstance(images, View) else images.views
    names = []
    for turn, view in enumerate(views):
        if view.ids is None:
            return None
        names.append((view_name(view.number, turn), view.ids))
    return names
