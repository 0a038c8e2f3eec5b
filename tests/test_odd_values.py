"""Whatever value an option of a recipe is given, the answer is a recipe or a list of problems."""

from __future__ import annotations

import typing

import pytest
from pydantic import BaseModel

from kdcompress import discovery
from kdcompress.errors import RecipeError
from kdcompress.recipe import Recipe, load_recipe
from kdcompress.recipe.checks import method_class

ODD = (
    "[[1]]", "{a: [1]}", "[]", "{}", "null", "''", ".nan", "-.inf", "1e309", "-1", "9" * 5000, "2026-11-29",
    "true", "off", "'\\ud800'", "x" * 5000, "[null]", "{1: 2}", "{? [1] : 2}", "!!binary aGk=", "!!set {a}",
    "&a [*a]", "0x1p3", "\\0", "~", "<<: 1",
)  # fmt: skip


def paths(model, prefix=""):
    """Names every key of a section and of the sections within it."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models(field.annotation):
            yield from paths(inner, f"{prefix}{name}.")


def _models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in typing.get_args(annotation):
        yield from _models(each)


def answer(recipe, *overrides, method=None):
    """Reads a recipe; fails with anything but a recipe or its problems."""
    try:
        return load_recipe(recipe, list(overrides), method=method)
    except RecipeError:
        return None


@pytest.mark.parametrize("key", sorted(set(paths(Recipe))))
def test_an_option_of_the_recipe(key):
    for value in ODD:
        answer("sssd" if key.startswith("pseudo_labels") else "quickstart", f"{key}={value}")


@pytest.mark.parametrize("name", discovery.names("method"))
def test_an_option_of_a_method(name):
    for key in paths(method_class(name).Config):
        for value in ODD:
            answer("quickstart", f"method.{key}={value}", method=name)


@pytest.mark.parametrize(
    "key", ["9" * 5000, "peers." + "9" * 5000, "peers.0" * 2000, "a." * 5000 + "b", "peers.-1"]
)
def test_a_path_that_leads_nowhere(key):
    assert answer("quickstart", f"{key}=1") is None
