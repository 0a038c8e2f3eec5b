"""Extracts the plain student from a checkpoint of other training code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcompress.atomic import sha256_of
from kdcompress.deploy.formats import safetensors
from kdcompress.errors import UserError
from kdcompress.export.checkpoint_student import (
    StripRequest,
    default_side,
    find_student_in,
    load_student,
    strip_document,
)
from kdcompress.run_folder import check_writable


def strip(source: Path, out: Path, request: StripRequest) -> dict[str, Any]:
    """Writes the plain student of a checkpoint as safetensors, and reports what was dropped.

    Args:
        source: A .safetensors file, or any other name: a pickle of tensors and plain containers.
        out: The .safetensors to write.
        request: The network in it.

    Returns:
        The document (`kdcompress.strip/1`).

    Raises:
        UserError: The student cannot be found, or not be written there.
    """
    if out.suffix != safetensors.SUFFIX:
        raise UserError(f"--out {out}: expected a name that ends in {safetensors.SUFFIX}")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name the file to write")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out}: is the checkpoint itself, which stays as it is; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    check_writable(out.parent)
    assert request.student is not None
    side = request.side or default_side(request.student)
    match = find_student_in(source, request.student, side, request)
    network = load_student(match, request.student, side, request, source)
    safetensors.write_tensors(network, out)
    return {
        **strip_document(match, request.student, network, source),
        "file": str(out),
        "sha256": sha256_of(out),
        "bytes": out.stat().st_size,
    }
