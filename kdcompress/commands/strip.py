"""The `strip` command, and the text form of its document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcompress.commands.complete import complete_students
from kdcompress.commands.options import checkpoint_options, common, print_result
from kdcompress.plain_text import shortened


@click.command(short_help="Take the plain student out of a checkpoint.")
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--student",
    required=True,
    metavar="FAMILY/NAME",
    shell_complete=complete_students,
    help="The plain network that is in it.",
)
@click.option(
    "--out", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The .safetensors to write."
)
@checkpoint_options
@click.option(
    "--allow-code", is_flag=True, help="Let the network be one of your own: python:package.module:function."
)
@common
def strip(
    checkpoint: Path,
    student: str,
    out: Path,
    at: str | None,
    drop: tuple[str, ...],
    input_size: int | None,
    allow_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Take the plain student out of a checkpoint with heads, teachers, averages and wrappers."""
    from kdcompress.export.checkpoint_student import StripRequest
    from kdcompress.tools.strip import strip

    document = strip(checkpoint, out, StripRequest(student, at, drop, input_size, allow_code))
    print_result(document, as_json, lambda shown: print_stripped(shown, shown["file"]))


def print_stripped(document: dict[str, Any], file: str) -> None:
    """Prints the kept and the dropped tensors of a checkpoint.

    Args:
        document: `kdcompress.strip/1`.
        file: Named in the first line.
    """
    kept, dropped = document["kept"], document["dropped"]
    classes = "" if kept["classes"] is None else f", {kept['classes']:,} classes"
    size = f"{kept['parameters']:,} parameters in {kept['tensors']:,} tensors"
    click.echo(f"{file}: {document['student']}{classes}, {size}")
    same = f" (the same at {', '.join(kept['also_at'])})" if kept["also_at"] else ""
    click.echo(f"kept: {kept['at']}{same}")
    if kept["cast_from"]:
        click.echo(f"cast: {', '.join(kept['cast_from'])} to float32")
    if document["set_aside"]:
        click.echo(f"set aside: {', '.join(document['set_aside'])}, which fits too but is named a teacher")
    rows = [
        (shortened(part["at"]), f"{part['tensors']:,} tensors", f"{part['parameters']:,}") for part in dropped
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for at, tensors, parameters in rows:
        click.echo(
            f"dropped: {at:<{widths[0]}}  {tensors:>{widths[1]}}  {parameters:>{widths[2]}} parameters"
        )
    if document["values"]:
        click.echo(f"dropped: {', '.join(map(shortened, document['values']))}")
