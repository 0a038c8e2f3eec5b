"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcompress.commands.complete import complete_recipe
from kdcompress.commands.options import common, overrides, parse_counts, print_result, ssh_options
from kdcompress.errors import RunFailed

_CONDITIONS = """
\b
--fail-if EXPR, for example:
  p50 > 5ms                        any median call above 5 ms
  student.p50 > 1.1 * old          10 % above the file of --compare
  ratio_high < 2 and rss > 200MB   certainly not twice as fast, and large
  student.p50 > teacher.p50 / 4    of the same threads and batch
\b
EXPR     sums compared by < <= > >= == !=, joined by 'and', 'or'
sums     numbers and metrics with + - * / ( ); spaces around the minus
metrics  METRIC (of every result), ARTEFACT.METRIC, 'odd name'.METRIC;
         old, old.METRIC: the same in the file of --compare
METRIC   p50 p50_low p50_high p90 p99 min load first (ms), throughput
         (images/s), ratio ratio_low ratio_high (to --baseline),
         rss size (MB), params macs, agreement top1
units    us ms s, kB MB GB, %; none: ms and MB
"""
"""The language of bench/conditions.py; a copy, since importing that would be slow."""


@click.command(
    short_help="Compare the latency of model files, with confidence intervals.", epilog=_CONDITIONS
)
@click.argument("files", metavar="[NAME=]FILE...", nargs=-1)
@click.option(
    "--baseline",
    metavar="FILE",
    help="Baseline: one of FILE, or a further file. [default: the first of two files]",
)
@click.option(
    "--threads",
    metavar="LIST",
    default="1,all",
    show_default=True,
    callback=parse_counts,
    help="Thread counts of each runtime.",
)
@click.option(
    "--batch", metavar="LIST", default="1", show_default=True, callback=parse_counts, help="Images per call."
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="LIST",
    help="onnxruntime (.onnx), openvino, openvino-bf16 (.onnx, .xml), torch, torch-compile "
    "(.safetensors), executorch (.pte), or your own: FILE.py:CLASS. [default: the first for each suffix]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=21,
    show_default=True,
    metavar="N",
    help="Rounds of half a second each; below 6 no difference can be shown.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=complete_recipe,
    help="Time on its data, and measure the top-1. [default: noise]",
)
@click.option("--data", metavar="DIR", help="Folder of the recipe's data, a table of labels, or tar shards.")
@overrides
@click.option(
    "--input-size",
    type=click.IntRange(8, 4096),
    metavar="N",
    help="Side of the images in pixels, where a file leaves it open.",
)
@click.option(
    "--out", metavar="FILE.json", type=click.Path(path_type=Path), help="Write the results as JSON."
)
@click.option("--plot", metavar="FILE.svg|.png", type=click.Path(path_type=Path), help="Draw the results.")
@click.option(
    "--compare",
    metavar="OLD.json",
    type=click.Path(path_type=Path),
    help="Compare with an earlier --out, or with a run's bench.json.",
)
@click.option(
    "--fail-if", multiple=True, metavar="EXPR", help="Exit with 3 if the condition holds; see below."
)
@click.option(
    "--target",
    default="local",
    show_default=True,
    metavar="local|ssh://USER@HOST[:PORT]|pack:DIR",
    help="Machine to measure on; pack: write DIR/kdcompress-bench.zip, to run there by hand.",
)
@ssh_options
@click.option(
    "--merge",
    metavar="RESULT.json",
    type=click.Path(path_type=Path),
    help="Instead of FILE: the result of a pack.",
)
@click.option("--allow-code", is_flag=True, help="Let a file's network be python:package.module:function.")
@common
def bench(runtimes: tuple[str, ...], merge: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Compare the latency of model files, with confidence intervals and an A/A control.

    Every file, runtime, thread count and batch size is a process of its own; they take turns in shuffled
    rounds, and ratios are taken round by round. One file runs twice (the A/A control): a difference that is
    no larger than between these two, or below 2 %, counts as no difference.

    A target needs Python, numpy and onnxruntime. Over ssh (keys or an agent, known host keys) the outputs are
    first compared there with the golden.npz beside a file, and all files sent are removed afterwards.
    """
    _check_merge(merge)
    from kdcompress.progress import Progress
    from kdcompress.tools import bench as timing

    names = tuple(name.strip() for text in runtimes for name in text.split(",") if name.strip())
    request, progress = timing.BenchRequest(runtimes=names, **options), Progress(quiet)
    document = timing.bench(request, progress) if merge is None else timing.merge(merge, request, progress)
    if document["schema"] == "kdcompress.bench-pack/1":
        print_result(document, as_json, _print_pack)
        return
    print_result(document, as_json, _print_bench)
    if document["not_met"]:
        raise RunFailed("\n  ".join(document["not_met"]))


_WITH_MERGE = ("merge", "out", "plot", "compare", "fail_if", "as_json", "quiet")
"""Options that --merge accepts."""


def _check_merge(merge: Path | None) -> None:
    """Refuses --merge together with options about measuring, and a command with neither --merge nor FILE."""
    context = click.get_current_context()
    if merge is None:
        if not context.params["files"]:
            raise click.MissingParameter(ctx=context, param=context.command.params[0])
        return
    for name in context.params:
        default = context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT
        if not default and name not in _WITH_MERGE and context.params[name]:
            what = "FILE" if name == "files" else "--" + _OPTIONS.get(name, name).replace("_", "-")
            raise click.UsageError(f"{what}: was said when the pack was made; --merge takes it from there")


_OPTIONS = {"runtimes": "runtime", "overrides": "set"}


def _print_pack(document: dict[str, Any]) -> None:
    click.echo(f"{document['file']}  {document['bytes']:,} bytes")
    for warning in document["warnings"]:
        click.echo(f"warning: {warning}")
    click.echo("On the device: unzip the archive, change into its folder, and run `python3 run.py`")
    click.echo("(it needs Python 3.8 or newer, numpy and onnxruntime). Then, on this machine:")
    click.echo("  kdcompress bench --merge result.json")


def _print_bench(document: dict[str, Any]) -> None:
    from rich.console import Console

    from kdcompress.commands.bench_table import print_table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200  # a file has room, and a figure that is broken in two cannot be read
    print_table(document, console)
