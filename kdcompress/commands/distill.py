"""The command `distill`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from kdcompress.commands.complete import complete_recipe
from kdcompress.commands.options import (
    allow_code,
    common,
    data,
    device,
    license_policy,
    print_result,
    recipe_changes,
)
from kdcompress.cores import MAX_THREADS


@click.command()
@click.option(
    "--recipe",
    required=True,
    metavar="NAME|FILE",
    shell_complete=complete_recipe,
    help="A shipped recipe or a YAML file.",
)
@data
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Run folder. [default: runs/RECIPE]"
)
@recipe_changes
@click.option("--resume", is_flag=True, help="Continue the interrupted run in the run folder.")
@click.option("--overwrite", is_flag=True, help="Delete the run in the run folder first.")
@click.option("--baseline", is_flag=True, help="Also train the same student without distillation.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Repeat the run with N seeds.")
@click.option(
    "--qat-epochs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also write student.int8.onnx after N epochs of quantisation-aware training.",
)
@device
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    metavar="N",
    help="CPU threads per process. [default: train.threads, else the available cores]",
)
@license_policy
@allow_code
@common
def distill(as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a student, verify it, export it and measure its latency.

    The recipe is changed by --method, then --preset, then --set. A method without a teacher leaves out the
    recipe's teacher; a method with peers adds copies of the student.
    """
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    epochs = options.pop("qat_epochs")
    if epochs is not None:
        options["overrides"] = (*options["overrides"], f"export.int8.qat_epochs={epochs}")
    from kdcompress.commands.summary import print_summary
    from kdcompress.pipeline import distill
    from kdcompress.progress import Progress
    from kdcompress.run.opening import Request

    command = shlex.join(["kdcompress", *sys.argv[1:]])
    summary = distill(Request(command=command, **options), Progress(quiet))
    if summary is None:  # a torchrun process other than the first
        return
    if summary.get("figure") is not None and (options["baseline"] or options["seeds"] > 1):
        from kdcompress.tools.compare_runs import compare

        summary["page"] = compare([Path(summary["folder"])], None)["file"]
    print_result(summary, as_json, lambda shown: print_summary(shown, Path(summary["folder"])))
