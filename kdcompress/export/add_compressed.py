"""Smaller files for a run that is over: made from the `student.onnx` it shipped, and added to its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_json
from kdcompress.cores import granted_cores
from kdcompress.data.source import Source
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.derived import failure
from kdcompress.deploy.gate import GATES
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.qat_int8 import QatStudent
from kdcompress.deploy.quantize import check_rescue
from kdcompress.deploy.variants import NAMES
from kdcompress.errors import UserError
from kdcompress.export.compressed import (
    CompressedFiles,
    CompressionRequest,
    compress_and_time,
    verdict_entries,
)
from kdcompress.export.int8_inputs import load_qat_student
from kdcompress.export.reexport import EXPORT_SCHEMA, check_single, data_of, images_of
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection, Int8Section, Recipe
from kdcompress.report.documents import read_json
from kdcompress.report.pages import PAGES, write_pages
from kdcompress.run_folder import RunFolder, check_writable

_LATER = "timed after the run, in rounds of their own"
_AGAIN = "student (beside {})"
"""The float32 file, timed once more."""


def compression_request(
    source: Path,
    *,
    int8: bool,
    fp16: bool,
    changes: dict[str, Any],
    rounds: int | None,
    formats: Sequence[str],
    allow_code: bool,
) -> CompressionRequest:
    """Makes the request from a command line; what it leaves open is as in the run's recipe.

    Args:
        source: A run folder, or a checkpoint, which has no recipe.
        int8: True: an int8 file.
        fp16: True: an fp16 file.
        changes: Values of `export.int8` that go before the recipe's.
        rounds: Rounds of the timing; None: the recipe's `bench.rounds`.
        formats: That are written with it.
        allow_code: True: the run's recipe may name `python:` networks.

    Raises:
        UserError: It cannot be had.
    """
    if "onnx" not in formats:
        asked = "--int8" if int8 else "--fp16"
        raise UserError(f"{asked}: is made from {GRAPH}; add onnx to --format")
    if not int8:
        return CompressionRequest(None, fp16, rounds)
    recipe = RunFolder(source).recorded_recipe(allow_code) if source.is_dir() else None
    section = (recipe and recipe.export.int8) or Int8Section()
    section = section.model_copy(update=changes)
    if (source / GRAPH).is_file():
        check_rescue(source / GRAPH, section.rescue)
    return CompressionRequest(section, fp16, rounds, source if source.is_dir() else None)


def add_to_run(
    source: Path,
    wanted: CompressionRequest,
    progress: Progress,
    *,
    root: str | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Adds smaller files to a run, with their gates, their timings and a verdict on each.

    `gates.json`, `bench.json`, `results.json`, the pages and the manifest speak of them afterwards. What an
    earlier export made of the same kind is replaced, also where the new one fails.

    Args:
        source: A run folder that has come to results.
        wanted: Which files.
        progress: Progress display.
        root: Folder of the data; None: the recipe's.
        allow_code: True: the run's recipe may name `python:` networks.

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
        with compress_and_time(
            source,
            wanted,
            data.train,
            lambda: images_of(data.test, workers=workers),
            recipe.bench,
            results["student"],
            progress,
            workers=workers,
            tuned=load_qat_student(source, source, data.held_out, workers=workers, allow_code=allow_code),
        ) as (made, bench):
            names = {NAMES[variant.precision] for variant in made.variants}
            # Written one by one: whoever is killed in between leaves a run that can be asked again.
            run.update_manifest_hashes([], {GATES, "bench.json", "results.json", *PAGES, *names})
            made = made.move_to(source)
            entries = verdict_entries(made, bench)
        new = {variant.precision for variant in made.variants}
        others = {name: entry for name, entry in results.get("variants", {}).items() if name not in new}
        write_json(source / "results.json", {**results, "variants": {**others, **entries}})
        write_json(source / "bench.json", _joined(source / "bench.json", bench, new))
        files = [variant.path.name for variant in made.passed]
        run.update_manifest_hashes([GATES, "bench.json", "results.json", *files])
        # The pages read the manifest, and it vouches for them: it comes before and after.
        run.update_manifest_hashes(write_pages(source))
    failed = failure(made.variants)
    if failed is not None:
        raise failed
    return document_of_files(source, made, entries, results["student"])


def add_beside(
    document: dict[str, Any],
    train: Source,
    test: Source,
    bench: BenchSection,
    *,
    wanted: CompressionRequest,
    progress: Progress,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Adds smaller files to what `export` has just written, with a `bench.json` of their own.

    Args:
        document: Document of the export.
        train: The training images, to calibrate with.
        test: The images that the files were proved on.
        bench: How they are timed.
        wanted: Which files.
        progress: Progress display.
        allow_code: True: the network may be built where it is a `python:` one.

    Returns:
        The document with them in it.

    Raises:
        GateFailed: A file failed a gate; it is under `failed/`.
    """
    folder, workers = Path(document["folder"]), granted_cores()
    with compress_and_time(
        folder,
        wanted,
        train,
        lambda: images_of(test, workers=workers),
        bench,
        document["student"],
        progress,
        workers=workers,
        tuned=_qat_student_of(wanted.tuned_in, folder, workers, allow_code),
    ) as (made, timed):
        made = made.move_to(folder)
        entries = verdict_entries(made, timed)
    write_json(folder / "bench.json", timed)
    failed = failure(made.variants)
    if failed is not None:
        raise failed
    more = document_of_files(folder, made, entries, document["student"])
    return {
        **document,
        "files": {**document["files"], **more["files"]},
        "gates": [*document["gates"], *more["gates"]],
        "variants": more["variants"],
    }


def document_of_files(
    folder: Path, made: CompressedFiles, entries: dict[str, dict[str, Any]], student: dict[str, Any]
) -> dict[str, Any]:
    """Returns the document of `export` for smaller files.

    Args:
        folder: Their folder.
        made: All of them, with their gates.
        entries: Their figures and verdicts.
        student: The float32 file's figures.
    """
    return {
        "schema": EXPORT_SCHEMA,
        "folder": str(folder),
        "files": {variant.path.name: variant.entry() for variant in made.passed},
        "gates": [gate.to_json() for variant in made.variants for gate in variant.gates],
        "student": student,
        "variants": entries,
    }


def _qat_student_of(run: Path | None, folder: Path, workers: int, allow_code: bool) -> QatStudent | None:
    """The weights that a run tuned for int8, unless they did worse there; None where it tuned none."""
    results = None if run is None else run / "results.json"
    if run is None or results is None or not results.is_file():
        return None
    known = read_json(results).get("variants", {}).get("int8", {}).get("qat")
    if known is not None and not known["kept"]:
        return None
    return load_qat_student(run, folder, None, workers=workers, allow_code=allow_code)


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


def _joined(path: Path, bench: dict[str, Any], made: set[str]) -> dict[str, Any]:
    """The run's benchmark with the new timings in it, beside the student's in the same rounds."""
    if not path.is_file():
        return bench
    document = read_json(path)
    new_names = {f"student ({precision})" for precision in made}
    # The student's time of another day would say more of the machine than of the files.
    again = _AGAIN.format(", ".join(sorted(made)))
    names = {*new_names, *(_AGAIN.format(others) for others in (*made, "fp16, int8"))}
    new = [_renamed(result, "student", again) for result in bench["results"]]
    env, before = bench["env"], document["env"]
    told = _LATER
    if env["cpu"] != before["cpu"] or env["runtimes"] != before["runtimes"]:
        told += f", on {env['cpu']} with onnxruntime {env['runtimes']['onnxruntime']}"
    warnings = [warning for warning in document["warnings"] if _LATER not in warning]
    if new:
        warnings.append(f"{'; '.join(dict.fromkeys(result['artefact'] for result in new))}: {told}")
    kept = {name: value for name, value in document["artefacts"].items() if name not in names}
    added = {again if name == "student" else name: value for name, value in bench["artefacts"].items()}
    return {
        **document,
        "artefacts": {**kept, **added},
        "results": [r for r in document["results"] if r["artefact"] not in names] + new,
        "warnings": list(dict.fromkeys([*warnings, *bench["warnings"]])),
        "failures": [f for f in document["failures"] if f["artefact"] not in names] + bench["failures"],
    }


def _renamed(result: dict[str, Any], name: str, other: str) -> dict[str, Any]:
    """A result in which an artefact is called otherwise."""
    versus = result["vs_baseline"]
    if versus is not None and versus["name"] == name:
        versus = {**versus, "name": other}
    artefact = other if result["artefact"] == name else result["artefact"]
    return {**result, "artefact": artefact, "vs_baseline": versus}
