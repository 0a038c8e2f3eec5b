"""The command `suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from kdcompress.commands.complete import complete_recipe, complete_students
from kdcompress.commands.options import common, parse_counts, print_result, recipe_changes, ssh_options
from kdcompress.errors import RunFailed


def _one(ctx: click.Context, option: click.Parameter, text: str) -> int | Literal["all"]:
    """Reads the single count of --threads or --batch."""
    numbers = parse_counts(ctx, option, text)
    if len(numbers) != 1:
        raise click.BadParameter(f"a budget is for one count, got {text!r}")
    return numbers[0]


@click.command(short_help="Find the largest student within a latency budget, before any training.")
@click.option("--budget", required=True, metavar="TIME", help="Longest median call: 5ms, 800us, 0.2s.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Largest float32 file of a student, such as 8MB. [default: any]",
)
@click.option(
    "--peak-memory",
    metavar="SIZE",
    help="Most memory that running it may add to the loaded runtime. [default: any]",
)
@click.option(
    "--students",
    metavar="LIST",
    shell_complete=complete_students,
    help="Students to time: FAMILY/NAME,... [default: 14 that suit the image size]",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=complete_recipe,
    help="Take image size and classes from it, and time its student too.",
)
@click.option(
    "--data",
    metavar="DIR",
    help="Data of the recipe, to count its classes: a folder, a table of labels, or tar shards.",
)
@recipe_changes
@click.option(
    "--input-size", type=click.IntRange(8, 4096), metavar="N", help="Side of the images. [default: 224]"
)
@click.option(
    "--channels", type=click.Choice(["1", "3"]), help="Channels of the images; 1 is grey. [default: 3]"
)
@click.option("--classes", type=click.IntRange(1), metavar="N", help="Number of classes. [default: 1000]")
@click.option(
    "--threads",
    metavar="N|all",
    default="1",
    show_default=True,
    callback=_one,
    help="Thread count of the runtime.",
)
@click.option("--batch", metavar="N", default="1", show_default=True, callback=_one, help="Images per call.")
@click.option(
    "--rounds",
    type=click.IntRange(6, 500),
    default=21,
    show_default=True,
    metavar="N",
    help="Rounds of a fifth of a second each; more make the intervals narrower.",
)
@click.option(
    "--target",
    default="local",
    show_default=True,
    metavar="local|ssh://USER@HOST[:PORT]",
    help="The device to time on.",
)
@ssh_options
@click.option(
    "--opset", type=int, metavar="N", help="ONNX opset of the timed files, for a device with an old runtime."
)
@click.option(
    "--out",
    metavar="FILE.yaml",
    type=click.Path(path_type=Path),
    help="Write a copy of the recipe with the suggested student.",
)
@click.option("--allow-code", is_flag=True, help="Let students be python:package.module:function.")
@common
def suggest(
    students: str | None,
    channels: str | None,
    target: str,
    remote_python: str,
    ssh_config: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Find the largest student within a latency budget on the device, before any training.

    Untrained students are exported and timed there: latency does not depend on the values of the weights. A
    student fits if the whole 95 % interval of its median call is within the budget. The largest that fits is
    suggested, by parameters: the accuracy it can reach grows with them, and multiply-accumulates do not
    predict the latency. If nothing fits, the exit code is 3 and the nearest students are named.
    """
    from kdcompress.bench.targets import parse_target
    from kdcompress.progress import Progress
    from kdcompress.tools.suggest import SuggestRequest, suggest

    names = tuple(name.strip() for name in (students or "").split(",") if name.strip())
    if students is not None and not names:
        raise click.UsageError("--students: names none; `kdcompress students` lists them")
    request = SuggestRequest(
        students=names,
        channels=None if channels is None else int(channels),
        target=parse_target(target, remote_python=remote_python, ssh_config=ssh_config),
        **options,
    )
    document = suggest(request, Progress(quiet))
    print_result(document, as_json, _print)
    if document["answer"] is None:
        raise RunFailed(document["no_answer"])


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console

    from kdcompress.commands.suggest_table import print_suggestion

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200  # a file has room, and a figure that is broken in two cannot be read
    print_suggestion(document, console)
