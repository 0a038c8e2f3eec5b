"""`pack:DIR`: a benchmark to carry to a machine by hand, and what it brings back.

The zip holds a folder with run.py, all that it needs, and a README.txt. Carried out there it writes
result.json, and that alone is what `merged` needs: the job stands in it.
"""

from __future__ import annotations

import io
import json
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
from kdcompress.bench import environment, run
from kdcompress.bench.measure import check, described, documented, protocol_told
from kdcompress.bench.parcel import JOB, NEEDS, SCOUTS, WORKMEN, needs, parcel, text
from kdcompress.bench.plan import Artefact, Protocol, cells_of, plan
from kdcompress.bench.results import Cell, Copy
from kdcompress.bench.ssh import check_travelling_runtime
from kdcompress.bench.target import PACK, Carried
from kdcompress.errors import UserError

NAME = "kdcompress-bench"
SCHEMA = "kdcompress.bench-pack/1"
_ALL = 0
"""Threads of a cell that is to have all cores, while they are not known."""

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
    """A machine that is not there yet.

    Args:
        text: `pack:DIR`.

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

    @property
    def described(self) -> dict[str, Any]:
        """What merged documents say."""
        return {"kind": "pack"}

    def check_runtime(self, name: str) -> None:
        """Refuses what is not expected there."""
        check_travelling_runtime(name, f"--target {self.text}")


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
        target: Where to.
        artefacts: As for `measure`, like the others.
        threads: See there; they are capped on the machine.
        batch: See there.
        rounds: See there.
        baseline: See there.
        protocol: See there.
        images: See there.
        warnings: Sentences for the document.

    Returns:
        `{schema, file, sha256, bytes, artefacts, warnings}`.

    Raises:
        UserError: As for `measure`.
        WorldError: The disk is full.
    """
    artefacts = check(
        artefacts, threads=threads, batch=batch, rounds=rounds, baseline=baseline, target=target
    )
    needed = needs(artefacts)
    cells = cells_of(artefacts, [_ALL if n == "all" else n for n in threads], batch, baseline)
    with tempfile.TemporaryDirectory(prefix="kdcompress-bench-") as folder:
        planned = plan(cells, protocol, rounds, shape=None, images=images, folder=Path(folder))
        for entry in planned["cells"]:
            entry["threads"] = entry["threads"] or "all"
        sent = parcel(planned)
        job = sent.job(
            tool={"name": "kdcompress", "version": __version__},
            artefacts=described(artefacts),
            baseline=baseline,
            protocol=protocol_told(protocol, rounds=rounds, batch=batch, baseline=baseline),
            warnings=list(warnings),
        )
        texts = {NEEDS: text(needed), JOB: text(job), "README.txt": _README.format(version=__version__)}
        content = _zip({**SCOUTS, **WORKMEN, **sent.files}, texts)
    target.file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target.file, content)
    return {
        "schema": SCHEMA,
        "file": str(target.file),
        "sha256": sha256_of(target.file),
        "bytes": len(content),
        "artefacts": job["artefacts"],
        "warnings": job["warnings"],
    }


def merged(path: Path) -> dict[str, Any]:
    """The benchmark document of a result that came back.

    Args:
        path: Of the result.json that run.py wrote.

    Returns:
        As from `measure`.

    Raises:
        UserError: It is none, damaged, or of another version.
    """
    body = _body(path)
    try:
        return _document(body)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: is no result of a packed benchmark ({error!r})") from None


def _document(body: dict[str, Any]) -> dict[str, Any]:
    job, raw = body["job"], body["raw"]
    artefacts = {
        name: Artefact(name, Path(entry["file"]), precision=entry["precision"])
        for name, entry in job["artefacts"].items()
    }
    entries, counts, _ = run.granted(job["plan"]["cells"], body["before"]["granted_cores"])
    cells = [
        Cell(
            artefacts[entry["artefact"]],
            entry["runtime"],
            entry["threads"],
            entry["batch"],
            Copy.CONTROL if entry["control"] else Copy.MEASURED,
        )
        for entry in entries
    ]
    return documented(
        target={"kind": "pack"},
        artefacts=job["artefacts"],
        cells=cells,
        baseline=job["baseline"],
        before=environment.own(body["before"], job["tool"]["version"]),
        carried=Carried(raw, body["after"]),
        protocol={**job["protocol"], "threads": counts},
        warnings=[*job["warnings"], *body["warnings"]],
    )


def _body(path: Path) -> dict[str, Any]:
    what = "expected the result.json that run.py of a pack wrote"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--merge {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"--merge {path}: is damaged, or no JSON; {what}") from None
    schema = told.get("schema") if isinstance(told, dict) else None
    if schema != run.SCHEMA:
        known = re.fullmatch(r"kdcompress\.bench-result/\d+", str(schema))
        why = f"this version of kdcompress reads {run.SCHEMA!r}" if known else what
        raise UserError(f"--merge {path}: schema {schema!r}; {why}")
    body = told.get("body")
    if not isinstance(body, dict) or run.digest(body) != told.get("sha256"):
        raise UserError(f"--merge {path}: is damaged: its content is not what was written; copy it again")
    return body


def _zip(files: dict[str, Path], texts: dict[str, str]) -> bytes:
    """The same content gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted([*files, *texts]):
            entry = zipfile.ZipInfo(f"{NAME}/{name}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            content = texts[name].encode() if name in texts else files[name].read_bytes()
            archive.writestr(entry, content)
    return buffer.getvalue()
