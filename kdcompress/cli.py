"""The command line: parses, calls the pipeline, and gives each error of ours its message and exit code.

Nothing heavy is imported at the top, so that `--help` and the listings start at once.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

import click

from kdcompress import __version__, listing
from kdcompress.cores import MAX_THREADS
from kdcompress.errors import Interrupted, KdcompressError, RunFailed, UserError, WorldError

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """Runs a command and maps its errors to the exit codes of the contract."""

    def invoke(self, ctx: click.Context) -> Any:
        """One message a mistake; a traceback only for a bug of ours."""
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except click.MissingParameter as error:
            if error.param is None or error.param.name != "recipe":
                raise
            hint = "`kdcompress recipes` lists the shipped ones; a YAML file is fine too."
            raise click.MissingParameter(hint, error.ctx, error.param) from None
        except (KdcompressError, KeyboardInterrupt, MemoryError, OSError, RuntimeError) as error:
            ours = _translated(error)
            if ours is None:
                raise
            click.echo(f"Error: {ours}", err=True)
            sys.exit(ours.exit_code)
        finally:
            signal.signal(signal.SIGTERM, before)


def _translated(error: BaseException) -> KdcompressError | None:
    """The error as one of ours, or None if it is a bug."""
    if isinstance(error, KdcompressError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted; what was saved before stays, go on with --resume")
    # torch's own class is not imported here; its name is stable.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return WorldError("out of memory; lower data.batch_size (train.accumulate keeps the effective batch)")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return WorldError(
                f"{place}the disk is full ({error.strerror}); free some and go on with --resume"
            )
        if error.errno in {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE}:
            return WorldError(f"{place}{error.strerror}; what was saved before stays")
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            return UserError(f"{place}{error.strerror}; choose another folder with --out")
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            return UserError(f"{place}{error.strerror}")
    if "can't allocate memory" in str(error):
        return _translated(MemoryError())
    return None


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _common(command: F) -> F:
    command = click.option("-q", "--quiet", is_flag=True, help="No progress.")(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(command)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdcompress")
def main() -> None:
    """A recipe goes in, a small network that can be trusted comes out."""


@main.command()
@click.option("--recipe", required=True, metavar="NAME|FILE", help="A shipped recipe, or a YAML file.")
@click.option("--data", metavar="DIR", help="Folder of the data; goes before data.root of the recipe.")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Run folder. [default: runs/RECIPE]"
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change a value of the recipe."
)
@click.option("--resume", is_flag=True, help="Go on where the run in this folder stopped.")
@click.option("--overwrite", is_flag=True, help="Throw away the run in this folder first.")
@click.option("--baseline", is_flag=True, help="Train the same student without distillation beside it.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Repeat with N seeds.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="CPU threads; part of the run."
)
@click.option(
    "--allow-code", is_flag=True, help="Let the recipe name python:package.module:function networks."
)
@_common
def distill(as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a student, strip it, prove it, export it and time it."""
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from kdcompress.pipeline import Request, distill
    from kdcompress.progress import Progress

    command = shlex.join(["kdcompress", *sys.argv[1:]])
    summary = distill(Request(command=command, **options), Progress(quiet))
    if summary is None:  # a process of torchrun that is not the first
        return
    _give(summary, as_json, lambda: _print_summary(summary))


def _per_channel(ctx: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """The numbers of `--mean` and `--std`."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0.485,0.456,0.406, got {text!r}") from None
    if not all(0 <= value <= 1 for value in values) or (option.name == "std" and 0 in values):
        raise click.BadParameter(f"{text}: is not of images in [0, 1]; divide what is of 0 to 255 by 255")
    return values


def _of_checkpoint(command: F) -> F:
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


@main.command()
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.option("--student", required=True, metavar="FAMILY/NAME", help="The plain network that is in it.")
@click.option(
    "--out", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The .safetensors to write."
)
@_of_checkpoint
@click.option(
    "--allow-code", is_flag=True, help="Let the network be one of your own: python:package.module:function."
)
@_common
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
    from kdcompress.steps.stripping import Asked, strip

    told = strip(checkpoint, out, Asked(student, at, drop, input_size, allow_code))
    _give(told, as_json, lambda: _print_stripped(told, told["file"]))


def _of_smaller(command: F) -> F:
    """The options that ask for smaller files."""
    options = (
        click.option(
            "--int8",
            is_flag=True,
            help="Also student.int8.onnx, calibrated on training images, and a verdict.",
        ),
        click.option(
            "--int8-rescue",
            type=click.IntRange(min=0),
            metavar="K",
            help="Leave the K layers that lose most in float.",
        ),
        click.option(
            "--int8-ranges",
            type=click.Choice(["minmax", "percentile"]),
            help="Of the activations: to the extremes, or cut at the 99.999th percentile.",
        ),
        click.option(
            "--max-drop",
            type=click.FloatRange(0, 100),
            metavar="P",
            help="Points of top-1 that int8 may lose; beyond, exit code 3. [default: 3]",
        ),
        click.option("--fp16", is_flag=True, help="Also student.fp16.onnx, half the size."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("source", metavar="RUN|CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder to write to. [default: RUN/export, or CHECKPOINT-export]",
)
@click.option("--format", "formats", metavar="LIST", default="onnx,safetensors", show_default=True)
@click.option("--opset", type=int, metavar="N", help="Of the ONNX file. [default: the exporter's choice]")
@_of_smaller
@click.option("--data", "root", metavar="DIR", help="Folder of the images that the files are proved on.")
@click.option("--student", metavar="FAMILY/NAME", help="CHECKPOINT: the plain network that is in it.")
@_of_checkpoint
@click.option("--recipe", metavar="NAME|FILE", help="CHECKPOINT: its data section says which images.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change a value of the recipe."
)
@click.option(
    "--labels",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="CHECKPOINT: class names in the order of its logits, a JSON list or one per line.",
)
@click.option(
    "--mean", metavar="LIST", callback=_per_channel, help="CHECKPOINT: of its images in [0, 1], per channel."
)
@click.option(
    "--std", metavar="LIST", callback=_per_channel, help="CHECKPOINT: of its images in [0, 1], per channel."
)
@click.option("--allow-code", is_flag=True, help="Let the network be python:package.module:function.")
@_common
def export(
    source: Path,
    out: Path | None,
    formats: str,
    opset: int | None,
    root: str | None,
    int8: bool,
    int8_rescue: int | None,
    int8_ranges: str | None,
    max_drop: float | None,
    fp16: bool,
    allow_code: bool,
    as_json: bool,
    quiet: bool,
    **of_checkpoint: Any,
) -> None:
    """Write and prove the files of a run again, or of the student in a checkpoint.

    --int8 and --fp16 make smaller files of a run's student.onnx and add them to the run; with --out, --format
    or --opset they go where the other files go.
    """
    from kdcompress.progress import Progress

    names = [name.strip() for name in formats.split(",")]
    progress = Progress(quiet)
    told = {"int8-rescue": int8_rescue, "int8-ranges": int8_ranges, "max-drop": max_drop}
    changes = {name.removeprefix("int8-").replace("-", "_"): v for name, v in told.items() if v is not None}
    if changes and not int8:
        first = next(name for name, value in told.items() if value is not None)
        raise click.UsageError(f"--{first}: belongs to --int8")
    smaller = None
    if int8 or fp16:
        from kdcompress.steps import adding

        wanted = adding.wanted_of(
            source, int8=int8, fp16=fp16, changes=changes, formats=names, allow_code=allow_code
        )
        smaller = functools.partial(adding.add_beside, wanted=wanted, progress=progress)
    if source.is_file():
        from kdcompress.steps import foreign_export
        from kdcompress.steps.stripping import Asked

        which = {"side": "input_size", "student": "student", "at": "at", "drop": "drop"}
        asked = Asked(**{k: of_checkpoint.pop(v) for k, v in which.items()}, allow_code=allow_code)
        on = foreign_export.OnData(root=root, **of_checkpoint)
        summary = foreign_export.export(source, out, names, progress, asked, on, opset=opset, smaller=smaller)
    else:
        from kdcompress.steps.afterwards import export

        for name, value in of_checkpoint.items():
            if value and source.is_dir():
                option = {"overrides": "set"}.get(name, name.replace("_", "-"))
                raise click.UsageError(f"--{option}: belongs to a checkpoint; a run knows it by itself")
        given = click.get_current_context().get_parameter_source
        default = click.core.ParameterSource.DEFAULT
        if smaller is not None and all(given(name) is default for name in ("out", "formats", "opset")):
            summary = adding.add_to_run(source, wanted, progress, root=root, allow_code=allow_code)
        else:
            summary = export(
                source, out, names, progress, root=root, opset=opset, smaller=smaller, allow_code=allow_code
            )
    _give(summary, as_json, lambda: _print_files(summary))


@main.command()
@click.argument("source", metavar="FILE|RUN")
@click.option("--recipe", required=True, metavar="NAME|FILE", help="Which data, cut how.")
@click.option("--data", metavar="DIR", help="Folder of the data.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change a value of the recipe."
)
@click.option("--split", type=click.Choice(["test", "held_out"]), default="test", show_default=True)
@click.option(
    "--probe",
    type=click.Choice(["linear", "knn"]),
    help="Score the frozen features: a linear classifier, or nearest neighbours, of the labelled images.",
)
@click.option(
    "--knowledge",
    is_flag=True,
    help="Compare what a run's teacher, student and baseline keep of an image; draws RUN/knowledge.png.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images that --knowledge looks at. [default: 16]",
)
@click.option(
    "--allow-code", is_flag=True, help="Let the recipe name python:package.module:function networks."
)
@_common
def evaluate(
    source: str,
    probe: str | None,
    knowledge: bool,
    images: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Top-1 of a .onnx or .safetensors file, or of a run's exported student."""
    if probe is not None and knowledge:
        raise click.UsageError("--probe and --knowledge exclude each other")
    if images is not None and not knowledge:
        raise click.UsageError("--images: belongs to --knowledge")
    from kdcompress.progress import Progress

    if knowledge:
        from kdcompress.steps import probing

        told = probing.knowledge(Path(source), Progress(quiet), images=images or probing.IMAGES, **options)
        _give(told, as_json, lambda: _print_knowledge(told))
        return
    if probe is not None:
        from kdcompress.steps import probing

        result = probing.probe(Path(source), Progress(quiet), kind=probe, **options)
        _give(result, as_json, lambda: _print_probe(result))
        return
    from kdcompress.steps.afterwards import evaluate

    result = evaluate(Path(source), Progress(quiet), **options)
    _give(result, as_json, lambda: _print_evaluation(result))


def _counts(ctx: click.Context, option: click.Parameter, text: str) -> tuple[int | Literal["all"], ...]:
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


_CONDITIONS = """
\b
--fail-if EXPR, for example:
  p50 > 5ms                        any median call above 5 ms
  student.p50 > 1.1 * old          10 % above the file of --compare
  ratio_high < 2 and rss > 200MB   surely not twice as fast, and large
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
"""Of bench/conditions.py; here it is known without importing that."""


@main.command(epilog=_CONDITIONS)
@click.argument("files", metavar="[NAME=]FILE...", nargs=-1, required=True)
@click.option(
    "--baseline", metavar="FILE", help="What the others are compared with; one of FILE or one more."
)
@click.option(
    "--threads", metavar="LIST", default="1,all", show_default=True, callback=_counts, help="Of each runtime."
)
@click.option(
    "--batch", metavar="LIST", default="1", show_default=True, callback=_counts, help="Images per call."
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="LIST",
    help="Of onnxruntime, openvino, openvino-bf16 (.onnx), torch, torch-compile (.safetensors), or your own: "
    "FILE.py:CLASS. [default: onnxruntime, torch]",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=21,
    show_default=True,
    metavar="N",
    help="Of half a second each; below 6 no difference can be shown.",
)
@click.option("--recipe", metavar="NAME|FILE", help="Time on its data, and tell the top-1. [default: noise]")
@click.option("--data", metavar="DIR", help="Folder of the recipe's data.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change a value of the recipe."
)
@click.option(
    "--input-size",
    type=click.IntRange(8, 4096),
    metavar="N",
    help="Side of the images in pixels, where a file leaves it open.",
)
@click.option("--out", metavar="FILE.json", type=click.Path(path_type=Path), help="Write the document.")
@click.option("--plot", metavar="FILE.svg|.png", type=click.Path(path_type=Path), help="Draw it.")
@click.option(
    "--compare",
    metavar="OLD.json",
    type=click.Path(path_type=Path),
    help="What has changed since an earlier --out, or since a run's bench.json.",
)
@click.option("--fail-if", multiple=True, metavar="EXPR", help="Exit with 3 if it holds; see below.")
@click.option(
    "--target",
    type=click.Choice(["local"]),
    default="local",
    show_default=True,
    help="Where to measure; for now this machine alone.",
)
@click.option("--allow-code", is_flag=True, help="Let a file's network be python:package.module:function.")
@_common
def bench(target: str, runtimes: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Time files against each other so that a difference is a difference.

    Every file, runtime, thread count and batch size is a process of its own; they take turns in shuffled
    rounds, and ratios are taken round by round. One file runs twice (the A/A control): what lies within what
    identical things differ by, and within 2 %, is no difference.
    """
    from kdcompress.progress import Progress
    from kdcompress.steps.timing import Asked, bench

    names = tuple(name.strip() for text in runtimes for name in text.split(",") if name.strip())
    document = bench(Asked(runtimes=names, **options), Progress(quiet))
    _give(document, as_json, lambda: _print_bench(document))
    if document["not_met"]:
        raise RunFailed("\n  ".join(document["not_met"]))


@main.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@_common
def report(run: Path, as_json: bool, quiet: bool) -> None:
    """Write the HTML report and the model card of a run again."""
    from kdcompress.steps.afterwards import report

    written = report(run)
    lines = "\n".join(str(run / name) for name in written["files"])
    _give(written, as_json, lambda: click.echo(lines))


@main.command()
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change a value of the recipe."
)
@click.option(
    "--allow-code", is_flag=True, help="Let the recipe name python:package.module:function networks."
)
@_common
def show(recipe: str, overrides: tuple[str, ...], allow_code: bool, as_json: bool, quiet: bool) -> None:
    """The resolved recipe, as valid YAML."""
    from kdcompress.recipe import load_recipe

    resolved = load_recipe(recipe, overrides, allow_code=allow_code)
    document = {"schema": "kdcompress.recipe/1", **resolved.model_dump(mode="json")}
    _give(document, as_json, lambda: click.echo(resolved.to_yaml(), nl=False))


@main.command()
@_common
def recipes(as_json: bool, quiet: bool) -> None:
    """The recipes that come with kdcompress."""
    _list("recipes", listing.recipes(listing.shipped_recipes()), as_json)


@main.command()
@_common
def methods(as_json: bool, quiet: bool) -> None:
    """The distillation methods."""
    _list("methods", listing.methods(), as_json)


@main.command()
@_common
def students(as_json: bool, quiet: bool) -> None:
    """The networks, as FAMILY/NAME; any of them may be student, teacher or peer."""
    _list("students", listing.students(), as_json)


@main.command()
@_common
def datasets(as_json: bool, quiet: bool) -> None:
    """The data sets."""
    _list("datasets", listing.datasets(), as_json)


def _list(kind: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    def lines() -> None:
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            group = f"{row['kind']:<8}" if "kind" in row else ""
            click.echo(f"{row['name']:<{width}}  {group}{row['summary']}")

    _give({"schema": "kdcompress.listing/1", kind: rows}, as_json, lines)


def _give(document: Any, as_json: bool, person: Callable[[], Any]) -> None:
    try:
        if as_json:
            click.echo(json.dumps(document, indent=2, sort_keys=False))
        else:
            person()
    except BrokenPipeError:  # `kdcompress students | head` is no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_summary(summary: dict[str, Any]) -> None:
    from kdcompress.summary import print_summary

    print_summary(summary)


def _print_stripped(told: dict[str, Any], file: str) -> None:
    kept, dropped = told["kept"], told["dropped"]
    classes = "" if kept["classes"] is None else f", {kept['classes']:,} classes"
    size = f"{kept['parameters']:,} parameters in {kept['tensors']:,} tensors"
    click.echo(f"{file}: {told['student']}{classes}, {size}")
    same = f" (the same at {', '.join(kept['also_at'])})" if kept["also_at"] else ""
    click.echo(f"kept: {kept['at']}{same}")
    if told["set_aside"]:
        click.echo(f"set aside: {', '.join(told['set_aside'])}, which fits too but is named a teacher")
    rows = [(part["at"], f"{part['tensors']:,} tensors", f"{part['parameters']:,}") for part in dropped]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for at, tensors, parameters in rows:
        click.echo(
            f"dropped: {at:<{widths[0]}}  {tensors:>{widths[1]}}  {parameters:>{widths[2]}} parameters"
        )
    if told["values"]:
        click.echo(f"dropped: {', '.join(told['values'])}")


def _print_files(summary: dict[str, Any]) -> None:
    if "stripped" in summary:
        _print_stripped(summary["stripped"], summary["stripped"]["checkpoint"]["file"])
    for name, entry in summary["files"].items():
        click.echo(f"{Path(summary['folder']) / name}  {entry['bytes']:,} bytes")
    top1 = summary["student"].get("top1")
    scored = "" if top1 is None else f"; top-1 {100 * top1:.2f} % on {summary['student']['n']:,} images"
    click.echo(f"{len(summary['gates'])} gates passed{scored}")
    if "variants" in summary:
        from kdcompress.steps.variants import lines

        for line in lines(summary["variants"]):
            click.echo(line)


def _print_bench(document: dict[str, Any]) -> None:
    from rich.console import Console

    from kdcompress.bench.table import print_table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has room, and a figure that is broken in two cannot be read
    print_table(document, console)


def _print_evaluation(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['file']}: top-1 {100 * result['top1']:.2f} %, "
        f"balanced {100 * result['balanced_top1']:.2f} %, "
        f"loss {result['loss']:.4f} on {result['n']:,} images of {result['split']}"
    )


def _print_probe(result: dict[str, Any]) -> None:
    if result["probe"] == "knn":
        how = f"k = {result['k']}"
    else:
        how = f"C = {result['C']:g}" + (", chosen on held-out images" if result["chosen_on"] else "")
    click.echo(
        f"{result['file']}: {result['probe']} probe ({how}): top-1 {100 * result['top1']:.2f} %, "
        f"balanced {100 * result['balanced_top1']:.2f} % on {result['n']:,} images of {result['split']}; "
        f"{result['features']:,} features of {result['labelled']:,} labelled training images"
    )


def _print_knowledge(told: dict[str, Any]) -> None:
    rows = [("", "entropy nats", "distortion", "concepts", "IoU of two views", "model")]
    for name, row in told["networks"].items():
        spread = "" if row["sd"] is None else f" ± {row['sd']:.2f}"
        overlap = "" if row["iou"] is None else f"{row['iou']:.2f}"
        entropy, share = f"{row['entropy']:.2f}{spread}", f"{100 * row['concepts']:.1f} %"
        rows.append((name, entropy, f"{row['distortion']:.4f}", share, overlap, row["model"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *figures, last in rows:
        middle = "  ".join(f"{text:>{width}}" for text, width in zip(figures, widths[1:-1], strict=True))
        click.echo(f"{first:<{widths[0]}}  {middle}  {last}".rstrip())
    click.echo(
        f"{told['images']:,} images of {told['split']}; second view: {told['view']}. Maps: {told['picture']}"
    )
