"""Smaller files for a run that is over: made from the `student.onnx` it shipped, and added to its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcompress.atomic import sha256_of, write_json
from kdcompress.cores import granted_cores
from kdcompress.data.source import Source
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.quantize import check_rescue
from kdcompress.deploy.ship import GATES
from kdcompress.deploy.variants import NAMES
from kdcompress.errors import UserError
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection, Int8Section, Recipe
from kdcompress.run_folder import RunFolder, check_writable
from kdcompress.steps.afterwards import EXPORT_SCHEMA, check_single, data_of, images_of
from kdcompress.steps.deliver import read_json, write_pages
from kdcompress.steps.variants import Made, Wanted, add, failure, judged

_LATER = "timed after the run, in rounds of their own"


def wanted_of(
    source: Path,
    *,
    int8: bool,
    fp16: bool,
    changes: dict[str, Any],
    rounds: int | None,
    formats: Sequence[str],
    allow_code: bool,
) -> Wanted:
    """What a command line asks for, over what the run's recipe says of int8.

    Args:
        source: A run folder, or a checkpoint, which has no recipe.
        int8: Whether that file is wanted.
        fp16: Whether that is.
        changes: Values of `export.int8` that go before the recipe's.
        rounds: Of the timing; None: the recipe's `bench.rounds`.
        formats: That are written with it.
        allow_code: Whether the run's recipe may name `python:` networks.

    Raises:
        UserError: It cannot be had.
    """
    if "onnx" not in formats:
        asked = "--int8" if int8 else "--fp16"
        raise UserError(f"{asked}: is made from {GRAPH}; add onnx to --format")
    if not int8:
        return Wanted(None, fp16, rounds)
    recipe = RunFolder(source).recorded_recipe(allow_code) if source.is_dir() else None
    section = (recipe and recipe.export.int8) or Int8Section()
    section = section.model_copy(update=changes)
    if (source / GRAPH).is_file():
        check_rescue(source / GRAPH, section.rescue)
    return Wanted(section, fp16, rounds)


def add_to_run(
    source: Path, wanted: Wanted, progress: Progress, *, root: str | None = None, allow_code: bool = False
) -> dict[str, Any]:
    """Adds smaller files to a run, with their gates, their timings and a verdict on each.

    `gates.json`, `bench.json`, `results.json`, the pages and the manifest speak of them afterwards. What an
    earlier export made of the same kind is replaced, also where the new one fails.

    Args:
        source: A run folder that has come to results.
        wanted: Which files.
        progress: What a watcher sees.
        root: Folder of the data; None: the recipe's.
        allow_code: Whether the run's recipe may name `python:` networks.

    Raises:
        UserError: It is no such run.
        GateFailed: A file failed a gate; it is under `failed/`.
    """
    run, recipe = _opened(source, allow_code)
    spec = read_config(source / CONFIG).spec
    data = data_of(recipe, root, (spec.height, spec.width), spec.channels, progress)
    workers = granted_cores()
    with run.held():
        results = read_json(source / "results.json")
        made, bench = add(
            source,
            wanted,
            data.train,
            lambda: images_of(data.test, workers=workers),
            recipe.bench,
            results["student"],
            progress,
            workers=workers,
        )
        entries = judged(made, bench)
        tried = {variant.precision for variant in made.variants}
        others = {name: entry for name, entry in results.get("variants", {}).items() if name not in tried}
        write_json(source / "results.json", {**results, "variants": {**others, **entries}})
        write_json(source / "bench.json", _joined(source / "bench.json", bench, tried))
        files = [variant.path.name for variant in made.passed]
        gone = [NAMES[variant.precision] for variant in made.failed]
        run.vouch_again([GATES, "bench.json", "results.json", *files], gone)
        # The pages read the manifest, and it vouches for them: it comes before and after.
        run.vouch_again(write_pages(source))
    failed = failure(made)
    if failed is not None:
        raise failed
    return told(source, made, entries, results["student"])


def add_beside(
    document: dict[str, Any],
    train: Source,
    test: Source,
    bench: BenchSection,
    *,
    wanted: Wanted,
    progress: Progress,
) -> dict[str, Any]:
    """Adds smaller files to what `export` has just written, with a `bench.json` of their own.

    Args:
        document: What `export` says of it.
        train: The training images, to calibrate with.
        test: The images that the files were proved on.
        bench: How they are timed.
        wanted: Which files.
        progress: What a watcher sees.

    Returns:
        The document with them in it.

    Raises:
        GateFailed: A file failed a gate; it is under `failed/`.
    """
    folder, workers = Path(document["folder"]), granted_cores()
    made, timed = add(
        folder,
        wanted,
        train,
        lambda: images_of(test, workers=workers),
        bench,
        document["student"],
        progress,
        workers=workers,
    )
    write_json(folder / "bench.json", timed)
    failed = failure(made)
    if failed is not None:
        raise failed
    more = told(folder, made, judged(made, timed), document["student"])
    return {
        **document,
        "files": {**document["files"], **more["files"]},
        "gates": [*document["gates"], *more["gates"]],
        "variants": more["variants"],
    }


def told(
    folder: Path, made: Made, entries: dict[str, dict[str, Any]], student: dict[str, Any]
) -> dict[str, Any]:
    """What `export` says of smaller files.

    Args:
        folder: Where they are.
        made: All of them, with their gates.
        entries: Their figures and verdicts.
        student: The float32 file's figures.
    """
    return {
        "schema": EXPORT_SCHEMA,
        "folder": str(folder),
        "files": {
            variant.path.name: {"sha256": sha256_of(variant.path), "bytes": variant.path.stat().st_size}
            for variant in made.passed
        },
        "gates": [gate.to_json() for variant in made.variants for gate in variant.gates],
        "student": student,
        "variants": entries,
    }


def _opened(source: Path, allow_code: bool) -> tuple[RunFolder, Recipe]:
    """The run and its recipe, if smaller files can be made of what it shipped.

    Raises:
        UserError: They cannot.
    """
    if not source.is_dir():
        what = "is a file; expected a run folder" if source.exists() else "no such run folder"
        raise UserError(f"{source}: {what}")
    check_single(source)
    run = RunFolder(source)
    recipe = run.recorded_recipe(allow_code)
    if recipe is None:
        raise UserError(f"{source}: holds no recipe.yaml, so it is no run of kdcompress")
    needed = (GRAPH, CONFIG, GATES, "results.json", "manifest.json")
    missing = [name for name in needed if not (source / name).is_file()]
    if missing == [GRAPH]:
        raise UserError(
            f"{source}: shipped no {GRAPH}, from which they are made; name a folder with --out, and all is "
            "written there"
        )
    if missing:
        raise UserError(f"{source}: holds no {missing[0]}; finish the run with --resume first")
    run.finished()  # its files are as they were proved
    check_writable(source)
    return run, recipe


def _joined(path: Path, bench: dict[str, Any], tried: set[str]) -> dict[str, Any]:
    """The run's benchmark with the new timings in it, each against the student's in the same rounds."""
    if not path.is_file():
        return bench
    document = read_json(path)
    names = {f"student ({precision})" for precision in tried}
    new = [result for result in bench["results"] if result["artefact"] in names]
    env, before = bench["env"], document["env"]
    told = _LATER
    if env["cpu"] != before["cpu"] or env["runtimes"] != before["runtimes"]:
        told += f", on {env['cpu']} with onnxruntime {env['runtimes']['onnxruntime']}"
    warnings = [warning for warning in document["warnings"] if _LATER not in warning]
    if new:
        warnings.append(f"{', '.join(sorted(result['artefact'] for result in new))}: {told}")
    kept = {name: value for name, value in document["artefacts"].items() if name not in names}
    added = {name: value for name, value in bench["artefacts"].items() if name in names}
    return {
        **document,
        "artefacts": {**kept, **added},
        "results": [r for r in document["results"] if r["artefact"] not in names] + new,
        "warnings": list(dict.fromkeys([*warnings, *bench["warnings"]])),
        "failures": [f for f in document["failures"] if f["artefact"] not in names] + bench["failures"],
    }
