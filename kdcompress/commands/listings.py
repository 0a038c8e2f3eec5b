"""The commands `recipes`, `methods`, `students` and `datasets`: one line each, or the page of one method."""

from __future__ import annotations

from typing import Any

import click

from kdcompress import listing
from kdcompress.commands.complete import complete_method
from kdcompress.commands.options import common, print_result


@click.command(short_help="List the shipped recipes.")
@common
def recipes(as_json: bool, quiet: bool) -> None:
    """List the shipped recipes: a pair of networks and its training schedule each."""
    _list("recipes", listing.recipes(listing.shipped_recipes()), as_json)


@click.command(short_help="List the distillation methods, or describe one.")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_method)
@common
def methods(name: str | None, as_json: bool, quiet: bool) -> None:
    """List the distillation methods.

    With NAME: what the method does, its source, needs, options, presets, published and measured accuracy.
    """
    if name is None:
        _list("methods", listing.methods(), as_json)
        return
    from kdcompress.commands.method_page import describe_method, format_method

    document = describe_method(name)
    print_result(document, as_json, lambda shown: click.echo(format_method(shown)))


@click.command(short_help="List the networks, as FAMILY/NAME.")
@common
def students(as_json: bool, quiet: bool) -> None:
    """List the networks, as FAMILY/NAME; each can be student, teacher or peer."""
    _list("students", listing.students(), as_json)


@click.command()
@common
def datasets(as_json: bool, quiet: bool) -> None:
    """List the data sets."""
    _list("datasets", listing.datasets(), as_json)


def _list(kind: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    def print_lines(_: Any) -> None:
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            group = f" [{row['kind']}]" if row.get("kind", "offline") != "offline" else ""
            click.echo(f"{row['name']:<{width}}  {row['summary']}{group}")

    print_result({"schema": "kdcompress.listing/1", kind: rows}, as_json, print_lines)
