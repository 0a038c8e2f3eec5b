"""The log of a run: a JSON object a line, cut back at a resume so that no epoch stands twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = "kdcompress.log/1"


class Journal:
    """`log.jsonl` (a line per epoch) and `steps.jsonl` (sampled steps) of one run folder.

    Args:
        folder: The run folder, or None: nothing is written (the processes that are not the first).
    """

    FILES = ("log.jsonl", "steps.jsonl")

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def epoch(self, line: dict[str, Any]) -> None:
        """Appends to `log.jsonl`."""
        self._append("log.jsonl", line)

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

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.folder is None:
            return
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA, **line}, allow_nan=False) + "\n")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
