"""Checkpoints: all that a resume needs, in a file that is the old one or the new one, never half of one."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from kdcompress.atomic import write_bytes
from kdcompress.errors import RunFolderError

SCHEMA = "kdcompress.checkpoint/1"


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: The final name.
        state: Tensors, numbers, text and containers of them; nothing that would need code to read.
    """
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Reads a checkpoint, or None where there is none.

    Raises:
        RunFolderError: It is damaged, or was written by a newer version.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError) as error:
        reason = str(error).split("\n", 1)[0]
        raise RunFolderError(
            f"{path}: the checkpoint is damaged ({reason}); start again with --overwrite"
        ) from None
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise RunFolderError(f"{path}: checkpoint of schema {schema!r}, this version reads {SCHEMA!r}")
    return dict(state)
