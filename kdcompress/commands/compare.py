"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcompress.commands.complete import complete_methods, complete_recipe, complete_students
from kdcompress.commands.options import (
    allow_code,
    common,
    data,
    device,
    license_policy,
    overrides,
    print_result,
)


def _list(ctx: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Splits a list at its commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()


@click.command(short_help="Train a recipe with several methods, students and seeds, and compare them.")
@click.argument("recipe", metavar="RECIPE", shell_complete=complete_recipe)
@click.option(
    "--methods",
    metavar="LIST",
    callback=_list,
    shell_complete=complete_methods,
    help="Methods: NAME or NAME:KEY=VALUE,... The first is what the others are compared with; none is plain "
    "training. [default: the recipe's]",
)
@click.option(
    "--students",
    metavar="LIST",
    callback=_list,
    shell_complete=complete_students,
    help="FAMILY/NAME,... [default: the recipe's]",
)
@click.option(
    "--teachers",
    metavar="LIST",
    callback=_list,
    shell_complete=complete_students,
    help="FAMILY/NAME or FAMILY/NAME@WEIGHTS,... One of them is taken, after a short run with each. "
    "[default: the recipe's]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Runs of each method and student; five find a difference of a point.",
)
@data
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the runs and the page. [default: runs/RECIPE-grid]",
)
@overrides
@click.option("--resume", is_flag=True, help="Continue the interrupted comparison in the folder.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Runs side by side. [default: one per core or GPU, as far as memory allows]",
)
@click.option("--ray", metavar="ADDRESS|local", help="Run on a Ray cluster that sees the same folders.")
@click.option(
    "--target",
    default="local",
    show_default=True,
    metavar="local|ssh://USER@HOST[:PORT]",
    help="The device to time the students on.",
)
@device
@license_policy
@allow_code
@common
def compare(as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a recipe with several methods, students and seeds, and compare them on one page.

    Every run is an ordinary run of distill with the same number of epochs, below the folder. Each method is
    compared with the first one, for the same student and the same seeds. Latencies are measured together.
    """
    from kdcompress.commands.pages import print_comparison
    from kdcompress.progress import Progress
    from kdcompress.tools.compare_grid import check_shipped, compare
    from kdcompress.tools.grid_plan import GridRequest

    result = compare(GridRequest(**options), Progress(quiet))
    print_result(result, as_json, lambda shown: _print(shown, print_comparison))
    check_shipped(result)


def _print(result: dict[str, Any], print_comparison: Any) -> None:
    for entry in result["teachers"]:
        told = entry["failed"] or f"student {100 * entry['held_out']:.2f} % on held-out images"
        click.echo(f"teacher {entry['teacher']}: {told}{', taken' if entry['taken'] else ''}")
    for failure in result["failed"]:
        click.echo(failure)
    print_comparison(result)
