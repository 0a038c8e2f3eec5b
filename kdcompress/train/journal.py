"""Writes the log of a run: one JSON object per line; a resume truncates it so that no epoch appears twice."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompress.atomic import translated
from kdcompress.containment import open_in_folder
from kdcompress.errors import UserError
from kdcompress.tasks.figures import FIGURES

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SCHEMA = "kdcompress.log/1"


class Journal:
    """Appends to `log.jsonl` (a line per epoch) and `steps.jsonl` (sampled steps) of a run folder.

    Args:
        folder: The run folder; None: nothing is written (in all processes but the first).
        tensorboard: True also writes the epochs to `tensorboard/`.
    """

    FILES = ("log.jsonl", "steps.jsonl")

    def __init__(self, folder: Path | None, tensorboard: bool = False) -> None:
        self.folder, self.tensorboard = folder, tensorboard
        self._whole: set[str] = set()
        self._writers: dict[str, SummaryWriter] = {}

    def epoch(self, line: dict[str, Any]) -> None:
        """Appends the line of an epoch to `log.jsonl`."""
        self._append("log.jsonl", line)
        if self.folder is not None and self.tensorboard:
            self._write_tensorboard(self.folder / "tensorboard", line)

    def step(self, line: dict[str, Any]) -> None:
        """Appends the line of a step to `steps.jsonl`."""
        self._append("steps.jsonl", line)

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file, which a checkpoint records."""
        if self.folder is None:
            return {}
        return {name: _size(self.folder / name) for name in self.FILES}

    def truncate(self, sizes: dict[str, int]) -> None:
        """Truncates the files to the sizes that a checkpoint recorded."""
        if self.folder is None:
            return
        for name in self.FILES:  # the names in a checkpoint may be anybody's
            if name in sizes and _size(self.folder / name) > sizes[name]:
                os.truncate(self.folder / name, sizes[name])

    def _write_tensorboard(self, folder: Path, line: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        phase, epoch = line["phase"], line["epoch"]
        if phase not in self._writers:
            # Hides the points that an interrupted session wrote from this epoch on.
            self._writers[phase] = SummaryWriter(str(folder / phase), purge_step=epoch)
        held_out = (
            {f"held_out/{name}": v for name, v in line["held_out"].items() if isinstance(v, int | float)}
            if line["held_out"]
            else {}
        )
        losses = {f"losses/{name}": value for name, value in line["losses"].items()}
        for name, value in {
            **losses,
            **held_out,
            "lr": line["lr"],
            "images_per_s": line["images_per_s"],
        }.items():
            if value is not None:
                self._writers[phase].add_scalar(name, value, epoch)
        self._writers[phase].flush()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.folder is None:
            return
        if name not in self._whole:
            _cut_torn_line(self.folder / name)
            self._whole.add(name)
        path, flags = self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with (
            translated(path),
            open(open_in_folder(path, flags, folder=False), "a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"schema": SCHEMA, **line}, allow_nan=False) + "\n")


def _cut_torn_line(path: Path) -> None:
    """Removes what stands behind the last line break: a killed process left it, and no line may follow it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        start = end
        while start:
            first = max(0, start - (1 << 16))
            file.seek(first)
            place = file.read(start - first).rfind(b"\n")
            if place >= 0:
                start = first + place + 1
                break
            start = first
        if start < end:
            file.truncate(start)


def describe_epoch(line: dict[str, Any], epochs: int) -> str:
    """Returns the line of an epoch for a person: phase, epoch, losses, held-out figures, images per second.

    Args:
        line: The line of `log.jsonl`.
        epochs: Number of epochs of the training.
    """
    losses = ", ".join(f"{name} {value:.4g}" for name, value in line["losses"].items() if value is not None)
    parts = [f"{line['phase']}: epoch {line['epoch']} of {epochs}", f"losses: {losses}" if losses else ""]
    parts.append(_held_out(line["held_out"] or {}))
    parts.append(f"{line['images_per_s']:,.0f} images/s")
    return "; ".join(filter(None, parts))


def _held_out(figures: dict[str, Any]) -> str:
    shares = [
        f"{figure.short} {100 * figures[key]:.2f} %"
        for key, figure in FIGURES.items()
        if figure.unit == "%" and figures.get(key) is not None
    ]
    return f"held-out {', '.join(shares)}" if shares else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def require_tensorboard() -> None:
    """Refuses `train.tensorboard` if TensorBoard is not installed.

    Raises:
        UserError: It is not; the message says how to install it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("train.tensorboard: needs the extra; pip install 'kdcompress[tensorboard]'")
