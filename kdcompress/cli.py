"""The command line: parses, calls the pipeline, and gives each error of ours its message and exit code.

Nothing heavy is imported at the top, so that `--help` and the listings start at once.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from kdcompress import __version__, listing
from kdcompress.cores import MAX_THREADS
from kdcompress.errors import Interrupted, KdcompressError, UserError, WorldError

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


@main.command()
@click.argument("source", metavar="RUN")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to. [default: RUN/export]"
)
@click.option("--format", "formats", metavar="LIST", default="onnx,safetensors", show_default=True)
@click.option("--allow-code", is_flag=True, help="Let the run's network be python:package.module:function.")
@_common
def export(source: str, out: Path | None, formats: str, allow_code: bool, as_json: bool, quiet: bool) -> None:
    """Write and prove the files of a finished or a failed run again."""
    from kdcompress.progress import Progress
    from kdcompress.steps.afterwards import export

    names = [name.strip() for name in formats.split(",")]
    summary = export(Path(source), out, names, Progress(quiet), allow_code=allow_code)
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


def _print_files(summary: dict[str, Any]) -> None:
    for name, entry in summary["files"].items():
        click.echo(f"{Path(summary['folder']) / name}  {entry['bytes']:,} bytes")
    click.echo(f"{len(summary['gates'])} gates passed")


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
