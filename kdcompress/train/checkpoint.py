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
from kdcompress.networks.read_checkpoint import TORCH_LOAD_ERRORS

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


def load(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint onto the CPU, or None where there is none.

    Raises:
        RunFolderError: It is damaged, or was written by a newer version.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch writes checksums and does not read them: a changed weight would go unnoticed.
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*TORCH_LOAD_ERRORS, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise RunFolderError(
            f"{path}: the checkpoint is damaged ({reason}); start again with --overwrite"
        ) from None
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise RunFolderError(
            f"{path}: a checkpoint of schema {schema!r}, this version reads {SCHEMA!r}; go on with the "
            "version of kdcompress that wrote it, or start again with --overwrite"
        )
    return dict(state)
