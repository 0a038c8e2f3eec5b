"""The commands `report` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcompress.commands.complete import complete_recipe
from kdcompress.commands.options import allow_code, common, print_result, recipe_changes
from kdcompress.plain_text import printable


@click.command(short_help="Rewrite the report and model card of a run, or compare runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="FILE.html",
    type=click.Path(path_type=Path),
    help="File of the comparison. [default: comparison.html beside the first run]",
)
@common
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool, quiet: bool) -> None:
    """Rewrite the HTML report and the model card of a run, or compare several runs on one page.

    The folder of a run with --seeds counts as one run with its mean and spread; given alone, its student is
    compared with its baseline, or if it has none seed with seed. The other runs are compared with the first.
    """
    if len(runs) > 1 or (runs[0] / "seeds").is_dir():
        from kdcompress.tools.compare_runs import compare

        comparison = compare(runs, out)
        print_result(comparison, as_json, print_comparison)
        return
    if out is not None:
        raise click.UsageError("--out: belongs to the comparison of several runs; a run's report is in it")
    from kdcompress.tools.report import report

    written = report(runs[0])
    lines = "\n".join(printable(runs[0] / name) for name in written["files"])
    print_result(written, as_json, lambda _: click.echo(lines))


@click.command()
@click.argument("recipe", metavar="RECIPE", shell_complete=complete_recipe)
@recipe_changes
@allow_code
@common
def show(recipe: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Print the resolved recipe as YAML, with the source of each value.

    Sources: the recipe, --method, the preset, --set, the default of the method or of the command.
    """
    from kdcompress.recipe import resolve_recipe, write_notice
    from kdcompress.strict_yaml import to_commented_yaml

    resolved = resolve_recipe(recipe, **options)
    for notice in resolved.notices:
        write_notice(notice)
    values = resolved.recipe.model_dump(mode="json")
    document = {"schema": "kdcompress.recipe/1", **values, "sources": resolved.sources}
    text = to_commented_yaml(values, resolved.sources)
    print_result(document, as_json, lambda _: click.echo(text, nl=False))


def print_comparison(comparison: dict[str, Any]) -> None:
    """Prints the rows of a comparison and the path of its page."""
    figure = comparison["figure"].replace("top1", "top-1").replace("_", " ")
    width = max(len(run["name"]) for run in comparison["runs"])
    click.echo(f"{'':<{width}}  {figure + ' %':>15}  against {comparison['reference']}")
    for run in comparison["runs"]:
        share = f"{100 * run['mean']:.2f}" + ("" if run["sd"] is None else f" ± {100 * run['sd']:.2f}")
        click.echo(f"{run['name']:<{width}}  {share:>15}  {_against(run)}".rstrip())
    for advice in comparison.get("advice", ()):
        click.echo(printable(advice))
    click.echo(comparison["file"])


def _against(run: dict[str, Any]) -> str:
    difference = run["difference"]
    if difference is None:
        return run["why_not"] or ""
    low, high = difference["ci95"]
    seeds = f", {difference['n']} pairs of seeds" if "n" in difference else ", with this seed"
    return f"{difference['points']:+.2f} points ({low:+.2f} to {high:+.2f}): {difference['verdict']}{seeds}"
