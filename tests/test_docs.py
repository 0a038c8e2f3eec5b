"""The pages for users: short enough, current, with links that resolve and commands that parse."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from kdcompress import discovery, listing
from kdcompress.cli import main
from kdcompress.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page):
    """The `kdcompress` commands that a page shows: in blocks for the shell, after a `$`, and in the text."""
    text = PAGES[page]
    lines = [
        line for language, block in FENCE.findall(text) if language == "sh" for line in block.splitlines()
    ]
    lines += re.findall(r"^(?:\$ |    )(kdcompress .*)$", text, re.MULTILINE)
    lines += re.findall(r"`(kdcompress [^`\n]*)`", FENCE.sub("", text))
    lines = [line.removeprefix("torchrun --nproc-per-node 4 -m ") for line in lines]
    lines = [re.sub(r" > \S+\.yaml$", "", line) for line in lines]
    return [line for line in dict.fromkeys(lines) if line.startswith("kdcompress ") and "…" not in line]


SHOWN = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page}: {line}" for page, line in SHOWN])
def test_every_command_that_is_shown_parses_and_names_a_recipe_and_a_method_that_exist(page, line):
    name, *arguments = shlex.split(line, comments=True)[1:]
    parent = click.Context(main, info_name="kdcompress", **main.context_settings)
    options = main.commands[name].make_context(name, arguments, parent=parent).params
    recipe, method = options.get("recipe"), options.get("method")
    assert method is None or method.isupper() or method in discovery.names("method")
    if recipe in listing.shipped_recipes() and method is None:
        code = bool(options.get("allow_code"))
        assert load_recipe(recipe, options.get("overrides", ()), allow_code=code).name == recipe
    elif recipe is not None and "/" not in recipe and not recipe.isupper():
        assert recipe in listing.shipped_recipes()


def test_the_readme_shows_commands():
    assert len(commands("README.md")) > 5


def without_code(text):
    return re.sub(r"`[^`\n]*`", "`code`", FENCE.sub("", text))


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_resolves(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page]))
    for link in (link for link in links if "://" not in link):
        place, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / place).resolve() if place else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_every_page_of_the_documentation_is_linked_from_the_readme():
    links = re.findall(r"\]\((docs/[^)#\s]+\.md)", PAGES["README.md"])
    assert {page for page in PAGES if page.startswith("docs/")} == set(links)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 160


def test_the_command_reference_is_current():
    file = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = PAGES["docs/reference.md"]
    assert written == module.reference(), "run: python docs/generate_reference.py"
    assert PAGES["docs/recipe.md"] == module.recipe_page.page(), "run: python docs/generate_reference.py"
    assert "| `optim.name` | `sgd`, `adamw` | `sgd` |" in PAGES["docs/recipe.md"]
    assert all(f"\n## kdcompress {command}\n" in written for command in main.commands)
