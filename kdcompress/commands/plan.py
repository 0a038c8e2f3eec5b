"""The command `plan`."""

from __future__ import annotations

from typing import Any

import click

from kdcompress.commands.complete import complete_recipe
from kdcompress.commands.options import allow_code, common, data, device, print_result, recipe_changes


@click.command(short_help="Measure a few steps of a recipe and forecast its time, memory and cache.")
@click.argument("recipe", metavar="RECIPE", shell_complete=complete_recipe)
@data
@recipe_changes
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Steps to measure.",
)
@device
@allow_code
@common
def plan(as_json: bool, quiet: bool, steps: int, **options: Any) -> None:
    """Measure a few steps of a recipe and forecast its time, memory and cache.

    No teacher is trained and nothing is kept. The forecast says where the time goes, and which settings would
    make the training faster.
    """
    from kdcompress.commands.plan_table import print_plan
    from kdcompress.progress import Progress
    from kdcompress.run.opening import Request
    from kdcompress.tools.plan import plan

    found = plan(Request(**options), steps, Progress(quiet))
    print_result(found, as_json, print_plan)
