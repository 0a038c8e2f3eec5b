"""Loads a recipe: reads the file, applies `--method`, `--preset` and `--set` in this order, and checks it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from kdcompress.errors import RecipeError, UserError, suggest
from kdcompress.listing import shipped_recipes
from kdcompress.plain_text import printable
from kdcompress.problems import describe, keys
from kdcompress.recipe import checks
from kdcompress.recipe.draft import RecipeDraft
from kdcompress.recipe.old_names import OLD_NAMES
from kdcompress.recipe.schema import Recipe
from kdcompress.strict_yaml import read_yaml


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A checked recipe and where its values come from.

    Args:
        recipe: The recipe.
        sources: {dotted path of a value: recipe, --method, preset NAME, --set, method default, command
            default, or why a network was added or left out}; all values of the recipe.
        notices: One line for the user about each change that no option names: an old recipe name, a teacher
            that was left out, peers that were added.
    """

    recipe: Recipe
    sources: dict[str, str]
    notices: tuple[str, ...]


def write_notice(notice: str) -> None:
    """Writes a notice as one line on stderr."""
    sys.stderr.write(f"Note: {printable(notice, keep=chr(10))}\n")


def load_recipe(
    name_or_file: str,
    overrides: Sequence[str] = (),
    *,
    method: str | None = None,
    preset: str | None = None,
    allow_code: bool = False,
    notify: Callable[[str], object] = write_notice,
) -> Recipe:
    """Loads a recipe like `resolve_recipe` and passes its notices on.

    Args:
        name_or_file: A shipped name, or the path of a YAML file.
        overrides: `key.path=value`, parsed as YAML, later ones win.
        method: Method that replaces the recipe's.
        preset: Published settings of the method.
        allow_code: Allow `python:package.module:function` networks.
        notify: Called with each notice.

    Raises:
        RecipeError: With every problem found.
        UserError: No such recipe.
    """
    resolved = resolve_recipe(name_or_file, overrides, method=method, preset=preset, allow_code=allow_code)
    for notice in resolved.notices:
        notify(notice)
    return resolved.recipe


def load_recipe_of_data(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe whose data is evaluated: other labels than its own leave its splits as they are.

    Otherwise `data.labels=none` would cut a set without official splits in another way, and the test images
    would be ones that the network was trained on. No network is built, so `python:` ones are allowed.

    Args:
        name_or_file: As in `load_recipe`.
        overrides: As there.

    Raises:
        RecipeError: As there.
        UserError: As there.
    """
    recipe = load_recipe(name_or_file, overrides, allow_code=True)
    if recipe.data.cut != "auto":
        return recipe
    others = [item for item in overrides if item.partition("=")[0] != "data.labels"]
    own = recipe if len(others) == len(overrides) else _own_data(name_or_file, others, recipe)
    cut = "by_class" if own.data.cut_by_class else "without_labels"
    return recipe.replace(data=recipe.data.model_copy(update={"cut": cut}))


def _own_data(name_or_file: str, overrides: Sequence[str], changed: Recipe) -> Recipe:
    """Reads the recipe with its own labels; where its other changes do not go with them, as it is changed."""
    try:
        return load_recipe(name_or_file, overrides, allow_code=True)
    except RecipeError:
        return changed


def resolve_recipe(
    name_or_file: str,
    overrides: Sequence[str] = (),
    *,
    method: str | None = None,
    preset: str | None = None,
    allow_code: bool = False,
) -> ResolvedRecipe:
    """Reads a recipe, applies the options and checks the result.

    Without a preset, a method other than the recipe's has its own defaults.

    Args:
        name_or_file: A shipped name, or the path of a YAML file.
        overrides: `key.path=value`, parsed as YAML, later ones win.
        method: Method that replaces the recipe's, with all of its keys.
        preset: Published settings of the method, applied before the overrides.
        allow_code: Allow `python:package.module:function` networks.

    Raises:
        RecipeError: With every problem found.
        UserError: No such recipe.
    """
    notices = []
    recipe_name = name_or_file
    old = OLD_NAMES.get(name_or_file)
    if old is not None:
        notices.append(f"the recipe {name_or_file!r} is now: {old.options()}")
        recipe_name = old.recipe
        if method is None:
            method, preset, overrides = old.method, preset or old.preset, (*old.overrides, *overrides)
    path = _find(recipe_name)
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise RecipeError(name_or_file, ["a recipe is a mapping of sections, such as 'student:', 'train:'"])
    document.setdefault("name", path.stem)
    if old is not None:
        document["name"] = name_or_file  # the run folder keeps its name, and a resume finds it
    draft = RecipeDraft(document)
    # Copies of the student become peers, so its settings come before, and `peers.0.weights=` after.
    peers = checks.settings_of("peers", overrides)
    problems = _apply_options(draft, [item for item in overrides if item not in peers], method, preset)
    if notice := draft.leave_out_weights_of_other_teacher():
        notices.append(notice)
    if draft.method_is_new and (notice := draft.fit_networks_to_method(overrides)):
        notices.append(notice)
    problems += filter(None, map(draft.override, peers))
    return ResolvedRecipe(*_check(draft, name_or_file, problems, overrides, allow_code), tuple(notices))


def _apply_options(
    draft: RecipeDraft, overrides: Sequence[str], method: str | None, preset: str | None
) -> list[str]:
    """Applies the options in their order; returns what is wrong with them."""
    # A new method drops the other method's keys, so its name comes before the preset and its own keys.
    names = [item for item in overrides if item.startswith("method.name=")]
    problems: list[str | None] = []
    if method is not None:
        draft.select_method(method, "--method")
        problems += [
            f"--set {item}: --method names {method} already; leave one of the two out"
            for item in names
            if item != f"method.name={method}"
        ]
    else:
        problems += [draft.override(item) for item in names]
    if preset is not None:
        problems.append(draft.apply_preset(preset))
    problems += [draft.override(item) for item in overrides if item not in names]
    return [problem for problem in problems if problem is not None]


def _check(
    draft: RecipeDraft, name: str, problems: list[str], overrides: Sequence[str], allow_code: bool
) -> tuple[Recipe, dict[str, str]]:
    """Checks the whole document; returns the recipe and the source of each of its values."""
    document = draft.document
    problems = [*problems, *checks.plugin_problems(document, allow_code), *checks.onnx_problems(document)]
    problems += checks.calibrate_problems(document)
    method, method_problems = checks.check_method(document, overrides)
    problems += method_problems
    pretraining, more = checks.pseudo_label_problems(document)
    problems += more
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        own = [f"method.{key}" for key in checks.config_keys(document)]
        problems += describe(error, Recipe, other_keys=[*keys(Recipe), *own])
    if problems:
        raise RecipeError(name, problems)
    recipe = recipe.replace(method=method)
    if recipe.pseudo_labels is not None:
        complete = recipe.pseudo_labels.model_copy(update={"method": pretraining})
        recipe = recipe.replace(pseudo_labels=complete)
    return recipe, draft.sources_of(recipe.model_dump(mode="json"))


def _find(name_or_file: str) -> Path:
    recipes = shipped_recipes()
    if name_or_file in recipes:
        return recipes[name_or_file]
    path = Path(name_or_file)
    if path.is_file():
        return path
    if name_or_file and path.is_dir():
        inside = path / "recipe.yaml"
        hint = f"did you mean {str(inside)!r}?" if inside.is_file() else "expected a shipped name or a file"
        raise UserError(f"{name_or_file}: is a folder, no recipe; {hint}")
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        shipped = f"; did you mean the shipped {path.stem!r}?" if path.stem in recipes else ""
        raise UserError(f"no recipe file {name_or_file!r}{shipped}")
    raise UserError(f"unknown recipe {name_or_file!r}{suggest(name_or_file, recipes)}")
