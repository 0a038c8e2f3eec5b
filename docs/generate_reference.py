"""Writes the command reference, reference.md, from the help text of every command, and recipe.md.

python docs/generate_reference.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kdcompress.cli import main

sys.path.insert(0, str(Path(__file__).parent))

import recipe_page

FILE = Path(__file__).with_name("reference.md")
INTRODUCTION = """# Command reference

Generated from `--help` by `python docs/generate_reference.py`;
`tests/test_docs.py` checks that it is current. The [README](../README.md#exit-codes) lists the exit codes.
"""


def reference() -> str:
    """Returns the reference page: the help text of the program and of each command, in their order."""
    group = _context(main, "kdcompress")
    parts = [INTRODUCTION, _section("kdcompress", main, group)]
    for name, command in main.commands.items():
        parts.append(_section(f"kdcompress {name}", command, _context(command, name, group)))
    return "\n".join(parts)


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    # The width is fixed, so that the page does not depend on the terminal.
    settings = {**command.context_settings, "terminal_width": 100}
    return click.Context(command, parent, info_name=name, **settings)


def _section(title: str, command: click.Command, context: click.Context) -> str:
    return f"## {title}\n\n```\n{command.get_help(context).rstrip()}\n```\n"


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    recipe_page.FILE.write_text(recipe_page.page(), encoding="utf-8")
