"""`recipes`, `methods`, `students`, `datasets`: what there is, one line each."""

from __future__ import annotations

from typing import Any

import click

from kdcompress import listing
from kdcompress.commands.options import common, give


@click.command()
@common
def recipes(as_json: bool, quiet: bool) -> None:
    """The recipes that come with kdcompress."""
    _list("recipes", listing.recipes(listing.shipped_recipes()), as_json)


@click.command()
@common
def methods(as_json: bool, quiet: bool) -> None:
    """The distillation methods."""
    _list("methods", listing.methods(), as_json)


@click.command(short_help="The networks, as FAMILY/NAME.")
@common
def students(as_json: bool, quiet: bool) -> None:
    """The networks, as FAMILY/NAME; any of them may be student, teacher or peer."""
    _list("students", listing.students(), as_json)


@click.command()
@common
def datasets(as_json: bool, quiet: bool) -> None:
    """The data sets."""
    _list("datasets", listing.datasets(), as_json)


def _list(kind: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    def lines() -> None:
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            group = f"{row['kind']:<8}" if "kind" in row else ""
            click.echo(f"{row['name']:<{width}}  {group}{row['summary']}")

    give({"schema": "kdcompress.listing/1", kind: rows}, as_json, lines)
