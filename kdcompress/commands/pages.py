"""`report` and `show`: what a run or a recipe is, written out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcompress.commands.options import allow_code, common, give, overrides


@click.command(short_help="Write a run's report and model card again, or compare runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="FILE.html",
    type=click.Path(path_type=Path),
    help="Of the comparison. [default: comparison.html beside the first run]",
)
@common
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool, quiet: bool) -> None:
    """Write the HTML report and the model card of a run again; of several runs, a page that compares them.

    The folder of a run with --seeds counts as one run with its mean and spread; alone, its seeds are
    compared. The first run is what the others are compared with.
    """
    if len(runs) > 1 or (runs[0] / "seeds").is_dir():
        from kdcompress.tools.compare_runs import compare

        told = compare(runs, out)
        give(told, as_json, lambda: _print_comparison(told))
        return
    if out is not None:
        raise click.UsageError("--out: belongs to the comparison of several runs; a run's report is in it")
    from kdcompress.export.reexport import report

    written = report(runs[0])
    lines = "\n".join(str(runs[0] / name) for name in written["files"])
    give(written, as_json, lambda: click.echo(lines))


@click.command()
@click.argument("recipe", metavar="RECIPE")
@overrides
@allow_code
@common
def show(recipe: str, overrides: tuple[str, ...], allow_code: bool, as_json: bool, quiet: bool) -> None:
    """The resolved recipe, as valid YAML."""
    from kdcompress.recipe import load_recipe

    resolved = load_recipe(recipe, overrides, allow_code=allow_code)
    document = {"schema": "kdcompress.recipe/1", **resolved.model_dump(mode="json")}
    give(document, as_json, lambda: click.echo(resolved.to_yaml(), nl=False))


def _print_comparison(told: dict[str, Any]) -> None:
    figure = told["figure"].replace("top1", "top-1").replace("_", " ")
    width = max(len(run["name"]) for run in told["runs"])
    click.echo(f"{'':<{width}}  {figure + ' %':>15}  against {told['reference']}")
    for run in told["runs"]:
        share = f"{100 * run['mean']:.2f}" + ("" if run["sd"] is None else f" ± {100 * run['sd']:.2f}")
        click.echo(f"{run['name']:<{width}}  {share:>15}  {_against(run)}".rstrip())
    click.echo(told["file"])


def _against(run: dict[str, Any]) -> str:
    difference = run["difference"]
    if difference is None:
        return run["why_not"] or ""
    if "sd" in difference:
        return (
            f"{difference['points']:+.2f} ± {difference['sd']:.2f} points ({difference['n']} pairs of seeds)"
        )
    low, high = difference["ci95"]
    return f"{difference['points']:+.2f} points ({low:+.2f} to {high:+.2f}): {difference['verdict']}"
