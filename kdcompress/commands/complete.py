"""Shell completion of recipes, methods, networks and the keys of `--set`, without heavy imports."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from kdcompress import listing


def complete_recipe(ctx: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """Completes the shipped recipes, and the names of YAML files."""
    rows = listing.recipes(listing.shipped_recipes())
    items = [
        CompletionItem(row["name"], help=row["summary"]) for row in rows if row["name"].startswith(begin)
    ]
    return items or [CompletionItem(begin, type="file")]


def complete_method(ctx: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """Completes the methods."""
    rows = listing.methods()
    return [CompletionItem(row["name"], help=row["summary"]) for row in rows if row["name"].startswith(begin)]


def complete_methods(ctx: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """Completes the last method of a comma-separated list."""
    before, comma, last = begin.rpartition(",")
    return [CompletionItem(f"{before}{comma}{item.value}") for item in complete_method(ctx, option, last)]


def complete_students(ctx: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """Completes the last network of a comma-separated list."""
    before, comma, last = begin.rpartition(",")
    names = [name for name in _network_names() if name.startswith(last)]
    return [CompletionItem(f"{before}{comma}{name}") for name in names]


def complete_setting(ctx: click.Context, option: click.Parameter, begin: str) -> list[CompletionItem]:
    """Completes `KEY.PATH=VALUE`: the recipe's keys, and names of networks, methods and data sets."""
    key, equals, value = begin.partition("=")
    if equals:
        return [CompletionItem(f"{key}={name}") for name in _values(key) if name.startswith(value)]
    if key.startswith("method."):
        return [CompletionItem(f"{name}=") for name in _method_keys(ctx) if name.startswith(key)]
    from kdcompress.problems import keys
    from kdcompress.recipe.schema import Recipe

    paths = list(keys(Recipe))
    leaves = [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]
    return [CompletionItem(f"{path}=") for path in leaves if path.startswith(key)]


def _network_names() -> list[str]:
    return [row["name"] for row in listing.students() if "NAME" not in row["name"] and ":" not in row["name"]]


def _values(key: str) -> list[str]:
    if key.endswith(".model"):
        return _network_names()
    rows = {"data.dataset": listing.datasets, "method.name": listing.methods}.get(key)
    return [row["name"] for row in rows()] if rows else []


def _method_keys(ctx: click.Context) -> list[str]:
    """Returns the options of the method that the command line or its recipe names."""
    from kdcompress.recipe.checks import config_keys
    from kdcompress.strict_yaml import read_yaml

    name, recipe = ctx.params.get("method"), ctx.params.get("recipe")
    if not name and recipe:
        file = listing.shipped_recipes().get(recipe, Path(recipe))
        document = read_yaml(file) if file.is_file() else {}
        name = document.get("method", {}).get("name") if isinstance(document, dict) else None
    return ["method.name", *(f"method.{key}" for key in config_keys({"method": {"name": name}}))]
