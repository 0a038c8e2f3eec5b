"""The log of a run: a JSON object a line, cut back at a resume so that no epoch stands twice."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompress.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SCHEMA = "kdcompress.log/1"


class Journal:
    """`log.jsonl` (a line per epoch) and `steps.jsonl` (sampled steps) of one run folder.

    Args:
        folder: The run folder, or None: nothing is written (the processes that are not the first).
        tensorboard: Whether the epochs also go to `tensorboard/`.
    """

    FILES = ("log.jsonl", "steps.jsonl")

    def __init__(self, folder: Path | None, tensorboard: bool = False) -> None:
        self.folder, self.tensorboard = folder, tensorboard
        self._writers: dict[str, SummaryWriter] = {}

    def epoch(self, line: dict[str, Any]) -> None:
        """Appends to `log.jsonl`."""
        self._append("log.jsonl", line)
        if self.folder is not None and self.tensorboard:
            self._draw(self.folder / "tensorboard", line)

    def step(self, line: dict[str, Any]) -> None:
        """Appends to `steps.jsonl`."""
        self._append("steps.jsonl", line)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, to go into a checkpoint."""
        if self.folder is None:
            return {}
        return {name: _size(self.folder / name) for name in self.FILES}

    def cut_back(self, sizes: dict[str, int]) -> None:
        """Drops what was written after the checkpoint that recorded `sizes`."""
        if self.folder is None:
            return
        for name, size in sizes.items():
            if _size(self.folder / name) > size:
                os.truncate(self.folder / name, size)

    def _draw(self, folder: Path, line: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        phase, epoch = line["phase"], line["epoch"]
        if phase not in self._writers:
            # What an interrupted session drew from this epoch on is not shown any more.
            self._writers[phase] = SummaryWriter(str(folder / phase), purge_step=epoch)
        held_out = (
            {f"held_out/{name}": v for name, v in line["held_out"].items() if name != "candidates"}
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
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA, **line}, allow_nan=False) + "\n")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def require_tensorboard() -> None:
    """Says how to install TensorBoard where it is asked for and missing.

    Raises:
        UserError: It is missing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("train.tensorboard: needs the extra; pip install 'kdcompress[tensorboard]'")
