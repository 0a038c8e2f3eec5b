"""`evaluate`: a file's accuracy, its features, what a student keeps of its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcompress.commands.complete import complete_recipe
from kdcompress.commands.options import allow_code, common, overrides, print_result


@click.command(short_help="Top-1 of a file, or of a run's exported student.")
@click.argument("source", metavar="FILE|RUN")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=complete_recipe,
    help="Recipe of the data and its splits. [default: the run's own]",
)
@click.option("--data", metavar="DIR", help="Folder of the data, a table of labels, or tar shards.")
@overrides
@click.option(
    "--split",
    type=click.Choice(["test", "held_out", "val", "valid", "validation"]),
    default="test",
    show_default=True,
    help="Images to score on; val, where there is a folder of that name.",
)
@click.option(
    "--probe",
    type=click.Choice(["linear", "knn", "clusters"]),
    help="Score the frozen features: a linear classifier, or nearest neighbours, of the labelled images; "
    "or clusters of the scored images, found without labels.",
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
@allow_code
@common
def evaluate(
    source: str,
    recipe: str | None,
    probe: str | None,
    knowledge: bool,
    images: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Accuracy and loss of an exported file (.onnx, .safetensors, .xml, .pte), or of a run's student."""
    if probe is not None and knowledge:
        raise click.UsageError("--probe and --knowledge exclude each other")
    if images is not None and not knowledge:
        raise click.UsageError("--images: belongs to --knowledge")
    from kdcompress.progress import Progress

    options["recipe"] = recipe or _recipe_of(Path(source))
    if knowledge:
        from kdcompress.tools import probe as probing

        document = probing.knowledge(
            Path(source), Progress(quiet), images=images or probing.IMAGES, **options
        )
        print_result(document, as_json, _print_knowledge)
        return
    if probe is not None:
        from kdcompress.tools import probe as probing

        result = probing.probe(Path(source), Progress(quiet), kind=probe, **options)
        print_result(result, as_json, _print_probe)
        return
    from kdcompress.tools.evaluate import evaluate

    result = evaluate(Path(source), Progress(quiet), **options)
    print_result(result, as_json, _print_evaluation)


def _recipe_of(source: Path) -> str:
    """Returns the recipe of a run folder, or of the run that a file is in."""
    folders = [source] if not source.is_file() else list(source.absolute().parents)[:2]  # RUN/ or RUN/export/
    files = [folder / "recipe.yaml" for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None and source.is_file():
        hint = "It says which images, since the file is in no run."
        raise click.MissingParameter(hint, param_hint="'--recipe'", param_type="option")
    return str(found or files[0])  # a folder that is no run has a message of its own


def _print_evaluation(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['file']}: top-1 {100 * result['top1']:.2f} %, "
        f"balanced {100 * result['balanced_top1']:.2f} %, "
        f"loss {result['loss']:.4f} on {result['n']:,} images of {result['split']}"
    )


def _print_probe(result: dict[str, Any]) -> None:
    if result["probe"] == "clusters":
        click.echo(
            f"{result['file']}: {result['clusters']} clusters of {result['features']:,} features: "
            f"{_cluster_figures(result)}; whitened: {_cluster_figures(result['whitened'])}; "
            f"of the pixels: {_cluster_figures(result['pixels'])}; "
            f"{result['n']:,} images of {result['split']}"
        )
        return
    if result["probe"] == "knn":
        how = f"k = {result['k']}"
    else:
        how = f"C = {result['C']:g}" + (", chosen on held-out images" if result["chosen_on"] else "")
    click.echo(
        f"{result['file']}: {result['probe']} probe ({how}): top-1 {100 * result['top1']:.2f} %, "
        f"balanced {100 * result['balanced_top1']:.2f} % on {result['n']:,} images of {result['split']}; "
        f"{result['features']:,} features of {result['labelled']:,} labelled training images"
    )


def _cluster_figures(figures: dict[str, Any]) -> str:
    return (
        f"NMI {figures['nmi']:.3f}, ARI {figures['ari']:.3f}, accuracy {100 * figures['accuracy']:.2f} %, "
        f"purity {100 * figures['purity']:.2f} %"
    )


def _print_knowledge(result: dict[str, Any]) -> None:
    rows = [("", "entropy nats", "distortion", "concepts", "IoU of two views", "model")]
    for name, row in result["networks"].items():
        spread = "" if row["sd"] is None else f" ± {row['sd']:.2f}"
        overlap = "" if row["iou"] is None else f"{row['iou']:.2f}"
        entropy, share = f"{row['entropy']:.2f}{spread}", f"{100 * row['concepts']:.1f} %"
        rows.append((name, entropy, f"{row['distortion']:.4f}", share, overlap, row["model"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *figures, last in rows:
        middle = "  ".join(f"{text:>{width}}" for text, width in zip(figures, widths[1:-1], strict=True))
        click.echo(f"{first:<{widths[0]}}  {middle}  {last}".rstrip())
    click.echo(
        f"{result['images']:,} images of {result['split']}; second view: {result['view']}. "
        f"Maps: {result['picture']}"
    )
