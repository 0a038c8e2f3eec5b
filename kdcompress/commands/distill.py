"""`distill`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from kdcompress.commands.options import allow_code, common, give, overrides
from kdcompress.cores import MAX_THREADS


@click.command()
@click.option("--recipe", required=True, metavar="NAME|FILE", help="A shipped recipe, or a YAML file.")
@click.option("--data", metavar="DIR", help="Folder of the data; goes before data.root of the recipe.")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Run folder. [default: runs/RECIPE]"
)
@overrides
@click.option("--resume", is_flag=True, help="Go on where the run in this folder stopped.")
@click.option("--overwrite", is_flag=True, help="Throw away the run in this folder first.")
@click.option("--baseline", is_flag=True, help="Train the same student without distillation beside it.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Repeat with N seeds.")
@click.option(
    "--qat-epochs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also student.int8.onnx, of a student tuned for it: N more epochs in int8 (export.int8.qat_epochs).",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="CPU threads; part of the run."
)
@allow_code
@common
def distill(as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a student, strip it, prove it, export it and time it."""
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    epochs = options.pop("qat_epochs")
    if epochs is not None:
        options["overrides"] = (*options["overrides"], f"export.int8.qat_epochs={epochs}")
    from kdcompress.pipeline import Request, distill
    from kdcompress.progress import Progress
    from kdcompress.summary import print_summary

    command = shlex.join(["kdcompress", *sys.argv[1:]])
    summary = distill(Request(command=command, **options), Progress(quiet))
    if summary is None:  # a process of torchrun that is not the first
        return
    give(summary, as_json, lambda: print_summary(summary))
