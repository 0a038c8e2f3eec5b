"""Options that several commands share, and the output of their results."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar, cast

import click

from kdcompress.commands.complete import complete_method, complete_setting
from kdcompress.cores import MAX_THREADS
from kdcompress.plain_text import printable_tree

F = TypeVar("F", bound=Callable[..., Any])
_RESULT_STREAMS: list[TextIO] = []
"""The real stdout of the commands that run now, the innermost last."""

overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    shell_complete=complete_setting,
    help="Change a value of the recipe; may be repeated.",
)
_method = click.option(
    "--method",
    metavar="NAME",
    shell_complete=complete_method,
    help="Replace the recipe's method (see `kdcompress methods`).",
)
_preset = click.option(
    "--preset",
    metavar="NAME",
    help="Published settings of the method: cifar100, imagenet. [default: the method's defaults]",
)
data = click.option(
    "--data",
    metavar="DIR",
    help="Folder of the data, a table of labels, or tar shards; overrides data.root.",
)
device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device of the training.",
)
allow_code = click.option(
    "--allow-code", is_flag=True, help="Allow networks given as python:package.module:function."
)
license_policy = click.option(
    "--license-policy",
    type=click.Choice(["any", "permissive"]),
    default="any",
    show_default=True,
    help="permissive: stop before the training if a licence of images or weights forbids commercial use or "
    "is not known.",
)


def common(command: F) -> F:
    """Adds `--json` and `-q`, which every command takes; stdout is kept for the command's result."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        with stdout_for_result():
            return command(*args, **options)

    quiet = click.option("-q", "--quiet", is_flag=True, help="No progress.")(run)
    with_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(quiet)
    return cast(F, with_json)


@contextmanager
def stdout_for_result() -> Iterator[None]:
    """Sends to stderr whatever is printed meanwhile, by networks of the user's or by libraries in C.

    `result_stream` gives the real stdout.
    """
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stdout
        with contextlib.suppress(OSError, ValueError):  # in a test stdout is no file
            sys.stdout.flush()
            number, errors = sys.stdout.fileno(), sys.stderr.fileno()
            stream = stack.enter_context(os.fdopen(os.dup(number), "w", encoding=sys.stdout.encoding))
            os.dup2(errors, number)
            stack.callback(os.dup2, stream.fileno(), number)
            stack.callback(ctypes.CDLL(None).fflush, None)  # else what C has buffered would follow the result
        _RESULT_STREAMS.append(stream)
        stack.callback(_RESULT_STREAMS.pop)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def result_stream() -> TextIO:
    """Returns the stream that a command's result is written to."""
    return _RESULT_STREAMS[-1] if _RESULT_STREAMS else sys.stdout


def recipe_changes(command: F) -> F:
    """Adds the options that change a recipe, in the order in which they apply."""
    return _method(_preset(overrides(command)))


def ssh_options(command: F) -> F:
    """Adds the options of a target over ssh."""
    options = (
        click.option(
            "--remote-python",
            default="python3",
            show_default=True,
            metavar="NAME|PATH",
            help="ssh: Python on the device, 3.8 or newer, with numpy and onnxruntime.",
        ),
        click.option(
            "--ssh-config",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="ssh: configuration file to use instead of ~/.ssh/config.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def checkpoint_options(command: F) -> F:
    """Adds the options that select a network in a checkpoint."""
    options = (
        click.option("--at", metavar="PLACE", help="Place of the network in the checkpoint, if several fit."),
        click.option(
            "--drop", multiple=True, metavar="MODULE", help="Module used in training only, to leave out."
        ),
        click.option(
            "--input-size",
            type=click.IntRange(8, 4096),
            metavar="N",
            help="Side of the network's images in pixels.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def parse_counts(ctx: click.Context, option: click.Parameter, text: str) -> tuple[int | Literal["all"], ...]:
    """Parses the counts of --threads (`1,4,all`) or --batch (`1,8`)."""
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


def print_result(document: Any, as_json: bool, print_text: Callable[[Any], Any]) -> None:
    """Prints the result of a command on stdout, as JSON or as text.

    Args:
        document: The result.
        as_json: `--json` was given.
        print_text: Prints the result as text; called with the document without its control characters.
    """
    stream = result_stream()
    try:
        with contextlib.redirect_stdout(stream):
            if as_json:
                click.echo(json.dumps(document, indent=2, sort_keys=False))
            else:
                print_text(printable_tree(document))
        stream.flush()
    except BrokenPipeError:  # `kdcompress students | head` is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
