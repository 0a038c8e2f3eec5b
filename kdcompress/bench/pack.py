"""`pack:DIR`: writes a benchmark as a zip to carry to a machine by hand, and reads the result it brings back.

The zip holds a folder with run.py, all that it needs, and a README.txt. run.py writes result.json there; that
file alone is enough for `read_result`, since the job stands in it too.
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompress import __version__
from kdcompress.atomic import sha256_of, write_bytes
from kdcompress.bench import environment
from kdcompress.bench.answers import PackedResult
from kdcompress.bench.bundle import DRIVER_FILES, JOB, NEEDS, PREFLIGHT_FILES, bundle, needs_of, to_text
from kdcompress.bench.cell import Artefact, Cell, CellRole, Protocol
from kdcompress.bench.device import main as run
from kdcompress.bench.measure import check_artefacts, describe_artefacts, make_document, protocol_block
from kdcompress.bench.plan import cells_of, plan
from kdcompress.bench.runtimes import check_remote_runtime
from kdcompress.bench.target import RawResult
from kdcompress.documents import MOST_BYTES, check_document, parse_json, read_text
from kdcompress.errors import UserError
from kdcompress.run_folder import create_folder
from kdcompress.schemas.bench import Bench

PACK = "pack:"
NAME = "kdcompress-bench"
SCHEMA = "kdcompress.bench-pack/1"
_ALL = 0
"""Thread count in the plan of a cell that uses all cores, whose number is not yet known."""

_README = """\
A benchmark of kdcompress {version}, to be carried out on this machine.

It needs Python 3.8 or newer, numpy and onnxruntime; Linux or macOS.

    python3 run.py

It looks at the machine first, says what it does, and writes result.json beside run.py. It changes nothing
else, and connects to nothing. Let nothing else run meanwhile. Take result.json back to where the benchmark
came from:

    kdcompress bench --merge result.json
"""


class Pack:
    """A zip for a machine that cannot be reached from here.

    Args:
        text: `pack:DIR`, as the user wrote it.

    Raises:
        UserError: It names no folder.
    """

    def __init__(self, text: str) -> None:
        self.text, folder = text, text.removeprefix(PACK)
        if not folder:
            raise UserError(f"--target {text}: expected pack:DIR, the folder for {NAME}.zip")
        self.file = Path(folder) / f"{NAME}.zip"
        if self.file.parent.exists() and not self.file.parent.is_dir():
            raise UserError(f"--target {text}: {folder} is no folder")

    def check_runtime(self, name: str) -> None:
        """Refuses a runtime that other machines are not expected to have."""
        check_remote_runtime(name, f"--target {self.text}")


def pack(
    target: Pack,
    artefacts: Sequence[Artefact],
    *,
    threads: Sequence[int | Literal["all"]],
    batch: Sequence[int],
    rounds: int,
    baseline: str | None,
    protocol: Protocol,
    images: NDArray[np.float32] | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the zip.

    Args:
        target: The zip's place.
        artefacts: The files to time.
        threads: Thread counts, or "all"; they are capped on the machine.
        batch: Batch sizes.
        rounds: Number of rounds.
        baseline: Name of the artefact that the others are compared with, or None.
        protocol: Durations and counts.
        images: `[N, C, H, W]` float32 in [0, 1]; None: noise.
        warnings: Sentences for the document.

    Returns:
        `{schema, file, sha256, bytes, artefacts, warnings}`.

    Raises:
        UserError: The artefacts cannot be measured, or a file of theirs lies outside of their folder.
        WorldError: The disk is full.
    """
    artefacts = check_artefacts(
        artefacts, threads=threads, batch=batch, rounds=rounds, baseline=baseline, target=target
    )
    needs = needs_of(artefacts)
    cells = cells_of(artefacts, [_ALL if n == "all" else n for n in threads], batch, baseline)
    with tempfile.TemporaryDirectory(prefix="kdcompress-bench-") as folder:
        plan_here = plan(cells, protocol, rounds, shape=None, images=images, folder=Path(folder))
        for entry in plan_here["cells"]:
            entry["threads"] = entry["threads"] or "all"
        files = bundle(plan_here)
        job = files.job(
            tool={"name": "kdcompress", "version": __version__},
            artefacts=describe_artefacts(artefacts),
            baseline=baseline,
            protocol=protocol_block(protocol, rounds=rounds, batch=batch, baseline=baseline),
            warnings=list(warnings),
        )
        texts = {NEEDS: to_text(needs), JOB: to_text(job), "README.txt": _README.format(version=__version__)}
        content = _zip({**PREFLIGHT_FILES, **DRIVER_FILES, **files.sources}, texts)
    create_folder(target.file.parent, "--target pack:DIR")
    write_bytes(target.file, content)
    return {
        "schema": SCHEMA,
        "file": str(target.file),
        "sha256": sha256_of(target.file),
        "bytes": len(content),
        "artefacts": job["artefacts"],
        "warnings": job["warnings"],
    }


def read_result(path: Path) -> dict[str, Any]:
    """Reads the result.json that run.py wrote and makes its benchmark document.

    Args:
        path: The result.json.

    Returns:
        A document of schema `kdcompress.bench/1`, as `measure` gives it.

    Raises:
        UserError: It is no such file, damaged, or of another version.
    """
    body = _body(path)
    try:
        document = _document(body)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path}: is no result of a packed benchmark ({error!r})") from None
    check_document(document, f"--merge {path}", Bench)
    return document


def _document(body: dict[str, Any]) -> dict[str, Any]:
    job, raw = body["job"], body["raw"]
    artefacts = {
        name: Artefact(name, Path(entry["file"]), precision=entry["precision"])
        for name, entry in job["artefacts"].items()
    }
    entries, counts, _ = run.with_granted_threads(job["plan"]["cells"], body["before"]["granted_cores"])
    cells = [
        Cell(
            artefacts[entry["artefact"]],
            entry["runtime"],
            entry["threads"],
            entry["batch"],
            CellRole.CONTROL if entry["control"] else CellRole.MEASURED,
        )
        for entry in entries
    ]
    return make_document(
        target={"kind": "pack"},
        artefacts=job["artefacts"],
        cells=cells,
        baseline=job["baseline"],
        before=environment.env_block(body["before"], job["tool"]["version"]),
        result=RawResult(raw, body["after"]),
        protocol={**job["protocol"], "threads": counts},
        warnings=[*job["warnings"], *body["warnings"]],
    )


def _body(path: Path) -> dict[str, Any]:
    what = "expected the result.json that run.py of a pack wrote"
    document = parse_json(read_text(path, MOST_BYTES), f"--merge {path}", advice=what)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != run.SCHEMA:
        is_other_version = re.fullmatch(r"kdcompress\.bench-result/\d+", str(schema))
        why = f"this version of kdcompress reads {run.SCHEMA!r}" if is_other_version else what
        raise UserError(f"--merge {path}: schema {schema!r}; {why}")
    body = document.get("body")
    if not isinstance(body, dict) or run.digest(body) != document.get("sha256"):
        raise UserError(f"--merge {path}: is damaged: its content is not what was written; copy it again")
    check_document(body, f"--merge {path}", PackedResult, advice=what)
    return body


def _zip(files: dict[str, Path], texts: dict[str, str]) -> bytes:
    """Makes a zip; the same content gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted([*files, *texts]):
            entry = zipfile.ZipInfo(f"{NAME}/{name}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            content = texts[name].encode() if name in texts else files[name].read_bytes()
            archive.writestr(entry, content)
    return buffer.getvalue()
