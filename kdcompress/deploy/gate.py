"""Ship gates: a figure, its limit, and whether it passed; and the file `gates.json` that lists them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_json
from kdcompress.data.split_name import name_split
from kdcompress.documents import read_document
from kdcompress.schemas.run import Gates

SCHEMA = "kdcompress.gates/1"
GATES = "gates.json"

Figure = float | int | str | None


@dataclass(frozen=True, slots=True)
class Gate:
    """One check that can fail a run.

    Args:
        gate: Its name.
        passed: True: the figure keeps the limit.
        figure: The measured value.
        limit: The allowed value.
        detail: One sentence: what was compared, and on what.
    """

    gate: str
    passed: bool
    figure: Figure
    limit: Figure
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Builds an entry of `gates.json`; NaN and infinity, which JSON lacks, become text."""
        return {key: _json(value) for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.gate}: {_short(self.figure)} (limit {_short(self.limit)}): {self.detail}"


def at_most(gate: str, figure: float, limit: float, detail: str) -> Gate:
    """Makes a gate that passes if the figure is at most the limit; NaN never passes."""
    return Gate(gate, bool(figure <= limit), figure, limit, detail)


def equal(gate: str, figure: Figure, limit: Figure, detail: str) -> Gate:
    """Makes a gate that passes if figure and limit are equal."""
    return Gate(gate, figure == limit, figure, limit, detail)


def relative(figure: float, scale: float) -> float:
    """Divides the figure by the scale; without a scale, 0 stays 0 and the rest is infinite."""
    return figure / scale if scale > 0 else (0.0 if figure == 0 else math.inf)


def format_prefix(name: str) -> str:
    """Returns the beginning of the names of a format's gates: that of `my-format` is `my_format_`."""
    return name.replace("-", "_") + "_"


def with_prefix(gates: Iterable[Gate], prefix: str) -> list[Gate]:
    """Puts a prefix before the gates' names."""
    return [replace(gate, gate=f"{prefix}{gate.gate}") for gate in gates]


def with_split_name(gates: Iterable[Gate], name: str) -> list[Gate]:
    """Names the test split in the gates' sentences; see `data.split_name`."""
    return [replace(gate, detail=name_split(gate.detail, name)) for gate in gates]


def document(gates: Sequence[Gate]) -> dict[str, Any]:
    """Builds the content of `gates.json`."""
    return {"schema": SCHEMA, "gates": [gate.to_json() for gate in gates]}


def merge(folder: Path, prefix: str, gates: Sequence[Gate]) -> None:
    """Puts gates into a folder's `gates.json`, in place of the earlier ones with the same prefix.

    Args:
        folder: Holds a `gates.json`.
        prefix: Beginning of the names of the gates that are replaced.
        gates: The new ones.
    """
    file = folder / GATES
    keys = [field.name for field in fields(Gate)]
    known = [Gate(**{key: gate[key] for key in keys}) for gate in read_document(file, Gates)["gates"]]
    others = [gate for gate in known if not gate.gate.startswith(prefix)]
    write_json(file, document([*others, *gates]))


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Figure) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
