"""`report` and `show`: what a run or a recipe is, written out again."""

from __future__ import annotations

from pathlib import Path

import click

from kdcompress.commands.options import allow_code, common, give, overrides


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@common
def report(run: Path, as_json: bool, quiet: bool) -> None:
    """Write the HTML report and the model card of a run again."""
    from kdcompress.steps.afterwards import report

    written = report(run)
    lines = "\n".join(str(run / name) for name in written["files"])
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
