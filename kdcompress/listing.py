"""Listings of recipes, methods, networks and data sets, read from file headers without heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcompress import discovery


def shipped_recipes() -> dict[str, Path]:
    """Returns the files of the shipped recipes by name."""
    here = Path(__file__).parent
    # A wheel holds them inside the package; a checkout beside it.
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipes(files: dict[str, Path]) -> list[dict[str, Any]]:
    """Returns name and summary (first comment line) of each recipe file."""
    rows = []
    for name, path in files.items():
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        rows.append({"name": name, "summary": first.lstrip("# ").strip().rstrip(".")})
    return rows


def methods() -> list[dict[str, Any]]:
    """Returns name, kind (offline, online or self) and summary of each method."""
    headers = [discovery.header("method", name) for name in discovery.names("method")]
    headers.sort(key=lambda h: (("offline", "online", "self").index(h.group), h.name))
    return [{"name": h.name, "kind": h.group, "summary": h.summary} for h in headers]


def students() -> list[dict[str, Any]]:
    """Returns every network as FAMILY/NAME; an open family has one row that says what to write."""
    rows = []
    for family in discovery.names("family"):
        header = discovery.header("family", family)
        listed = header.constants.get("NAMES")
        if listed is None:
            name = "python:package.module:function" if family == "python" else f"{family}/NAME"
            rows.append({"name": name, "summary": header.summary})
            continue
        rows += [{"name": f"{family}/{name}", "summary": summary} for name, summary in listed.items()]
    return rows


def datasets() -> list[dict[str, Any]]:
    """Returns name and summary of each data set."""
    headers = [discovery.header("dataset", name) for name in discovery.names("dataset")]
    return [{"name": h.name, "summary": h.summary} for h in headers]
