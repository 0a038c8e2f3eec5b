"""What the commands share: their options, and how they hand a document over."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from kdcompress.cores import MAX_THREADS

F = TypeVar("F", bound=Callable[..., Any])

overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change a value of the recipe."
)
allow_code = click.option(
    "--allow-code", is_flag=True, help="Let the recipe name python:package.module:function networks."
)


def common(command: F) -> F:
    """`--json` and `-q`, which every command takes."""
    command = click.option("-q", "--quiet", is_flag=True, help="No progress.")(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(command)


def of_target(command: F) -> F:
    """The options that belong to a target over ssh."""
    options = (
        click.option(
            "--remote-python",
            default="python3",
            show_default=True,
            metavar="NAME|PATH",
            help="ssh: the Python there, 3.8 or newer, with numpy and onnxruntime.",
        ),
        click.option(
            "--ssh-config",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="ssh: in the place of ~/.ssh/config.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def of_checkpoint(command: F) -> F:
    """The options that say which network of a checkpoint is meant."""
    options = (
        click.option(
            "--at", metavar="PLACE", help="Where in the checkpoint it is; a message about several lists them."
        ),
        click.option(
            "--drop", multiple=True, metavar="MODULE", help="Among its own layers, but for training alone."
        ),
        click.option(
            "--input-size", type=click.IntRange(8, 4096), metavar="N", help="Side of its images in pixels."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def counts(ctx: click.Context, option: click.Parameter, text: str) -> tuple[int | Literal["all"], ...]:
    """`1,4,all` of --threads, `1,8` of --batch."""
    counts: list[int | Literal["all"]] = []
    for word in text.split(","):
        if word.strip() == "all" and option.name == "threads":
            counts.append("all")
        elif word.strip().isdecimal() and 1 <= int(word) <= MAX_THREADS:
            counts.append(int(word))
        else:
            example = "1,all" if option.name == "threads" else "1,8"
            raise click.BadParameter(f"expected counts up to {MAX_THREADS} such as {example}, got {text!r}")
    return tuple(dict.fromkeys(counts))


def give(document: Any, as_json: bool, person: Callable[[], Any]) -> None:
    """Hands a document over: as JSON on stdout, or the way a person reads it.

    Args:
        document: What the command found out.
        as_json: Whether `--json` was given.
        person: Prints it for one.
    """
    try:
        if as_json:
            click.echo(json.dumps(document, indent=2, sort_keys=False))
        else:
            person()
    except BrokenPipeError:  # `kdcompress students | head` is no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
