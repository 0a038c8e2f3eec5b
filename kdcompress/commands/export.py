"""`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcompress.commands.complete import complete_recipe, complete_students
from kdcompress.commands.options import F, checkpoint_options, common, overrides, print_result
from kdcompress.commands.strip import print_stripped


def _per_channel(ctx: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Returns the numbers of `--mean` and `--std`."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0.485,0.456,0.406, got {text!r}") from None
    if not all(0 <= value <= 1 for value in values) or (option.name == "std" and 0 in values):
        raise click.BadParameter(f"{text}: is not of images in [0, 1]; divide what is of 0 to 255 by 255")
    return values


_OF_INT8 = {
    "int8_target": "target",
    "int8_images": "images",
    "int8_ranges": "ranges",
    "int8_rescue": "rescue",
    "max_drop": "max_drop",
}
"""Options that go before the values of `export.int8`."""


def _of_smaller(command: F) -> F:
    """Returns the options that ask for smaller files."""
    options = (
        click.option(
            "--int8",
            is_flag=True,
            help="Also student.int8.onnx, calibrated on training images, and a verdict.",
        ),
        click.option(
            "--int8-target",
            type=click.Choice(["auto", "x86", "x86-novnni", "arm"]),
            help="Processor that the int8 file is made for. [default: this machine's]",
        ),
        click.option(
            "--int8-images",
            type=click.IntRange(min=1),
            metavar="N",
            help="Training images to calibrate with. [default: 128]",
        ),
        click.option(
            "--int8-rescue",
            type=click.IntRange(min=0),
            metavar="K",
            help="Keep the K layers with the largest error in float.",
        ),
        click.option(
            "--int8-ranges",
            type=click.Choice(["minmax", "percentile"]),
            help="Ranges of activations: minimum to maximum, or cut at the 99.999th percentile.",
        ),
        click.option(
            "--max-drop",
            type=click.FloatRange(0, 100),
            metavar="P",
            help="Points of top-1 that int8 may lose; beyond, exit code 3. [default: 3]",
        ),
        click.option("--fp16", is_flag=True, help="Also student.fp16.onnx, half the size."),
        click.option(
            "--rounds",
            type=click.IntRange(1, 1000),
            metavar="N",
            help="Rounds of the timing; below 6 there is no verdict. [default: bench.rounds]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(short_help="Write and prove the files of a run or a checkpoint.")
@click.argument("source", metavar="RUN|CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder to write to. [default: RUN/export, or CHECKPOINT-export]",
)
@click.option(
    "--format",
    "formats",
    metavar="LIST",
    default="onnx,safetensors",
    show_default=True,
    help="Formats to write: onnx, safetensors, openvino, executorch.",
)
@click.option(
    "--opset", type=int, metavar="N", help="Version of the ONNX operators. [default: the exporter's choice]"
)
@_of_smaller
@click.option(
    "--embed-preprocess",
    "embed",
    type=click.Choice(["normalize", "resize"]),
    default="normalize",
    show_default=True,
    help="resize: also student.image.onnx, which takes images as they are decoded, of any size.",
)
@click.option(
    "--data",
    "root",
    metavar="DIR",
    help="Images to prove the files on: a folder, a table of labels, or tar shards.",
)
@click.option(
    "--student",
    metavar="FAMILY/NAME",
    shell_complete=complete_students,
    help="CHECKPOINT: the plain network that is in it.",
)
@checkpoint_options
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=complete_recipe,
    help="CHECKPOINT: its data section says which images.",
)
@overrides
@click.option(
    "--labels",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="CHECKPOINT: class names in the order of its logits, a JSON list or one per line.",
)
@click.option(
    "--mean",
    metavar="LIST",
    callback=_per_channel,
    help="CHECKPOINT: mean of each channel of its images, whose values are in [0, 1].",
)
@click.option(
    "--std", metavar="LIST", callback=_per_channel, help="CHECKPOINT: standard deviation of each channel."
)
@click.option("--allow-code", is_flag=True, help="Let the network be python:package.module:function.")
@common
def export(
    source: Path,
    out: Path | None,
    formats: str,
    opset: int | None,
    root: str | None,
    int8: bool,
    fp16: bool,
    rounds: int | None,
    embed: str,
    allow_code: bool,
    as_json: bool,
    quiet: bool,
    **others: Any,
) -> None:
    """Write and prove the files of a run again, or of the student in a checkpoint.

    --int8 and --fp16 make smaller files of a run's student.onnx and add them to the run; with --out,
    --format, --opset or --embed-preprocess they go where the other files go.
    """
    from kdcompress.progress import Progress

    names = [name.strip() for name in formats.split(",")]
    progress = Progress(quiet)
    int8_options = {option: others.pop(option) for option in _OF_INT8}
    changes = {_OF_INT8[option]: value for option, value in int8_options.items() if value is not None}
    if changes and not int8:
        first = next(option for option, value in int8_options.items() if value is not None)
        raise click.UsageError(f"--{first.replace('_', '-')}: belongs to --int8")
    if rounds is not None and not (int8 or fp16):
        raise click.UsageError("--rounds: belongs to --int8 and --fp16, which are timed")
    from kdcompress.export.derived import derived_request

    derived = derived_request(
        source,
        names,
        int8=int8,
        fp16=fp16,
        image=embed == "resize",
        changes=changes,
        rounds=rounds,
    )
    if source.is_file():
        from kdcompress.export import foreign as foreign_export
        from kdcompress.export.checkpoint_student import StripRequest

        which = {"side": "input_size", "student": "student", "at": "at", "drop": "drop"}
        asked = StripRequest(**{k: others.pop(v) for k, v in which.items()}, allow_code=allow_code)
        on = foreign_export.ProofDataOptions(root=root, **others)
        summary = foreign_export.export(source, out, names, progress, asked, on, opset=opset, derived=derived)
    else:
        from kdcompress.export.reexport import export

        for name, value in others.items():
            if value and source.is_dir():
                option = {"overrides": "set"}.get(name, name.replace("_", "-"))
                raise click.UsageError(f"--{option}: belongs to a checkpoint; a run knows it by itself")
        given = click.get_current_context().get_parameter_source
        default = click.core.ParameterSource.DEFAULT
        if (int8 or fp16) and all(given(name) is default for name in ("out", "formats", "opset", "embed")):
            from kdcompress.export.add_compressed import add_to_run

            summary = add_to_run(source, derived, progress, root=root, allow_code=allow_code)
        else:
            summary = export(
                source,
                out,
                names,
                progress,
                root=root,
                opset=opset,
                derived=derived,
                allow_code=allow_code,
            )
    print_result(summary, as_json, _print_files)


def _print_files(summary: dict[str, Any]) -> None:
    if "stripped" in summary:
        print_stripped(summary["stripped"], summary["stripped"]["checkpoint"]["file"])
    for name, entry in summary["files"].items():
        click.echo(f"{Path(summary['folder']) / name}  {entry['bytes']:,} bytes")
    top1 = summary["student"].get("top1")
    scored = "" if top1 is None else f"; top-1 {100 * top1:.2f} % on {summary['student']['n']:,} images"
    click.echo(f"{len(summary['gates'])} gates passed{scored}")
    if "variants" in summary:
        from kdcompress.export.compressed import lines

        for line in lines(summary["variants"]):
            click.echo(line)
