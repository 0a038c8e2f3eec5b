"""Smaller files for a run that is over: made from the `student.onnx` it shipped, and added to its folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_json
from kdcompress.cores import granted_cores
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.derived import derived_files, failure, place
from kdcompress.deploy.gate import GATES
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.variants import NAMES
from kdcompress.documents import read_document
from kdcompress.errors import UserError
from kdcompress.export.compressed import CompressedFiles, time_compressed, verdict_entries
from kdcompress.export.derived import DerivedRequest
from kdcompress.export.reexport import check_single, data_of, export_document, images_of, timing_images
from kdcompress.progress import Progress
from kdcompress.recipe import Recipe
from kdcompress.report.pages import PAGES, write_pages
from kdcompress.run_folder import RunFolder, check_writable
from kdcompress.schemas.bench import Bench
from kdcompress.schemas.results import Results

_LATER = "timed after the run, in rounds of their own"
_AGAIN = "student (beside {})"
"""The float32 file, timed once more."""


def add_to_run(
    source: Path,
    request: DerivedRequest,
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
        request: Which files.
        progress: Progress display.
        root: Folder of the data; None: the recipe's.
        allow_code: True: a `python:` student may be built.

    Raises:
        UserError: It is no such run.
        GateFailed: A file failed a gate; it is under `failed/`.
    """
    run, recipe = _opened(source)
    spec = read_config(source / CONFIG).spec
    data = data_of(recipe, root, (spec.height, spec.width), spec.channels, progress, spec.known_fit)
    workers = granted_cores()
    test = functools.partial(images_of, data.test, workers=workers)
    makers = request.makers(
        data.train, data.test, test, held_out=data.held_out, workers=workers, allow_code=allow_code
    )
    with run.held():
        results = read_document(source / "results.json", Results)
        with derived_files(source, makers, results["student"], progress, data.test_name) as files:
            made = CompressedFiles.of(files)
            assert made is not None
            section = request.timing(recipe.bench)
            bench = time_compressed(made, timing_images(data.test), section, results["student"], progress)
            names = {NAMES[variant.precision] for variant in made.variants}
            # Written one by one: whoever is killed in between leaves a run that can be asked again.
            run.update_manifest_hashes([], {GATES, "bench.json", "results.json", *PAGES, *names})
            made = CompressedFiles(made.exact, tuple(place(made.variants, source)))
            entries = verdict_entries(made, bench)
        new = {variant.precision for variant in made.variants}
        others = {name: entry for name, entry in (results.get("variants") or {}).items() if name not in new}
        write_json(source / "results.json", {**results, "variants": {**others, **entries}})
        write_json(source / "bench.json", _joined(source / "bench.json", bench, new))
        shipped = [variant.path.name for variant in made.passed]
        run.update_manifest_hashes([GATES, "bench.json", "results.json", *shipped])
        # The pages read the manifest, and the manifest holds their hashes: it is written before and after
        # them.
        run.update_manifest_hashes(write_pages(source))
    failed = failure(made.variants)
    if failed is not None:
        raise failed
    return {**export_document(source, made.variants, results["student"]), "variants": entries}


def _opened(source: Path) -> tuple[RunFolder, Recipe]:
    """Opens the run and its recipe, if smaller files can be made of what it shipped.

    Raises:
        UserError: They cannot.
    """
    if not source.is_dir():
        what = "is a file; expected a run folder" if source.exists() else "no such run folder"
        raise UserError(f"{source}: {what}")
    check_single(source)
    run = RunFolder(source)
    recipe = run.recorded_recipe(allow_code=True)
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
    """Adds the new timings to the run's benchmark, beside the student's in the same rounds."""
    if not path.is_file():
        return bench
    document = read_document(path, Bench)
    new_names = {f"student ({precision})" for precision in made}
    # The student's time of another day would say more of the machine than of the files.
    again = _AGAIN.format(", ".join(sorted(made)))
    names = {*new_names, *(_AGAIN.format(others) for others in (*made, "fp16, int8"))}
    new = [_renamed(result, "student", again) for result in bench["results"]]
    env, before = bench["env"], document["env"]
    remark = _LATER
    if env["cpu"] != before["cpu"] or env["runtimes"] != before["runtimes"]:
        remark += f", on {env['cpu']} with onnxruntime {env['runtimes']['onnxruntime']}"
    warnings = [warning for warning in document["warnings"] if _LATER not in warning]
    if new:
        warnings.append(f"{'; '.join(dict.fromkeys(result['artefact'] for result in new))}: {remark}")
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
    """Returns a result in which an artefact has another name."""
    versus = result["vs_baseline"]
    if versus is not None and versus["name"] == name:
        versus = {**versus, "name": other}
    artefact = other if result["artefact"] == name else result["artefact"]
    return {**result, "artefact": artefact, "vs_baseline": versus}
