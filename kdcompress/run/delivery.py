"""The end of a run: strip, prove, write, time, compare, and make the pages."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from kdcompress import __version__
from kdcompress.atomic import write_bytes, write_json
from kdcompress.bench.measure import Artefact, measure
from kdcompress.deploy.derived import failure
from kdcompress.deploy.files import formats
from kdcompress.deploy.ship import Shipped, ship
from kdcompress.export import image_file as image_input
from kdcompress.export.compressed import Made, Wanted, artefacts, judged, make
from kdcompress.export.image_file import ImageFile
from kdcompress.export.int8_inputs import load_qat_student
from kdcompress.methods.base import Method
from kdcompress.networks.from_recipe import LoadedNetwork
from kdcompress.report import documents, verdict
from kdcompress.report.documents import read_json as read_json
from kdcompress.report.pages import write_pages
from kdcompress.run.context import Run, TestSplit
from kdcompress.run.teacher import OnTest, Teaching, figures, manifest_entry, read_test_split, unchanged_gate
from kdcompress.tasks.classification import Predictions
from kdcompress.train.job import Outcome

PREDICTIONS = "test_predictions.safetensors"
"""Classes that the exported file gave on the test split, kept to compare runs image by image."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a run shipped, and what its teacher gives on the same images.

    Args:
        shipped: The student.
        taught: None: there is no teacher.
        made: Of the smaller files; None: none was asked for.
        image: The file that takes images as they are decoded; None: it was not asked for.
    """

    shipped: Shipped
    taught: OnTest | None
    made: Made | None
    image: ImageFile | None = None


def deliver(
    run: Run,
    start: LoadedNetwork,
    method: Method,
    outcome: Outcome,
    teaching: Teaching | None,
    test: TestSplit,
) -> Delivery:
    """Strips the chosen candidate, writes it in every format and proves the files."""
    # Before the teacher is read in float32, which takes a fresh copy of it.
    gates = [] if teaching is None else [teaching.gate, unchanged_gate(teaching.teacher)]
    trained = copy.deepcopy(outcome.like.network)
    trained.load_state_dict(outcome.state)
    taught = None if teaching is None else read_test_split(run, teaching, test, pooled=start.backbone)
    beside = None if taught is None else (taught.pooled if start.backbone else taught.logits)
    shipped = ship(
        trained.cpu(),
        outcome.model,
        outcome.like.input_spec,
        () if start.backbone else run.data.class_names,
        test,
        run.folder.path,
        formats=run.recipe.export.formats,
        metadata=documents.file_metadata(run.recipe, manifest_entry(run, teaching)),
        allow_code=run.allow_code,
        extra_gates=gates,
        teacher_outputs=beside,
    )
    found = shipped.predictions
    if isinstance(found, Predictions):
        predictions = {"classes": found.classes, "labels": found.labels}
        write_bytes(run.folder.checkpoints / PREDICTIONS, safetensors.torch.save(predictions))
    made, wanted = None, Wanted.of(run.recipe.export)
    if wanted:
        folder, held_out = run.folder.path, run.data.held_out
        tuned = load_qat_student(folder, folder, held_out, workers=run.workers, allow_code=run.allow_code)
        made = make(folder, wanted, run.data.train, test, run.progress, workers=run.workers, tuned=tuned)
    image = None
    if run.recipe.export.embed_preprocess == "resize":
        image = image_input.make(run.folder.path, run.data.test, run.progress, image_input.KEY)
    return Delivery(shipped, taught, made, image)


def _bench(
    run: Run, delivery: Delivery, teacher: dict[str, Any] | None, teacher_file: Path, test: TestSplit
) -> dict[str, Any]:
    """Times the student against its teacher on this machine, on real images."""
    student = delivery.shipped.student
    recipe, folder = run.recipe, run.folder
    facts = {key: student[key] for key in ("params", "macs")}
    timed = []
    if teacher is not None:
        known = {key: teacher[key] for key in ("params", "macs")}
        timed.append(Artefact("teacher", teacher_file, ("onnxruntime",), **known))
    for kind in formats():
        own_code = kind.name == "safetensors" and recipe.student.model.startswith("python:")
        if kind.name in recipe.export.formats and not own_code:
            file = folder / f"student{kind.suffix}"
            timed.append(Artefact(kind.artefact, file, (kind.runtime,), network="student", **facts))
    if delivery.made is not None:
        timed += artefacts(delivery.made, student)
    image = delivery.image
    if image is not None and image.passed:
        called = "student (image)"
        timed.append(Artefact(called, image.path, ("onnxruntime",), shape=image.shape, pixels=True, **facts))
    with contextlib.closing(test()) as batches:
        images = next(batches)[0].numpy()
    with run.progress.counter() as tell:
        document = measure(
            timed,
            threads=recipe.bench.threads,
            batch=recipe.bench.batch,
            rounds=recipe.bench.rounds,
            baseline=timed[0].name,
            images=images,
            progress=lambda done, total, what: tell(f"bench: {what.split()[0]}", done, total),
        )
    write_json(folder / "bench.json", document)
    return document


def report(
    run: Run, outcome: Outcome, delivery: Delivery, teaching: Teaching | None, test: TestSplit
) -> dict[str, Any]:
    """Compares, times, and writes what a person looks at."""
    folder, shipped = run.folder, delivery.shipped
    teacher = None
    teacher_file = folder.checkpoints / "teacher.onnx"
    if teaching is not None:
        assert delivery.taught is not None
        teacher = figures(run, teaching, teacher_file, delivery.taught)
    bench = _bench(run, delivery, teacher, teacher_file, test)
    teacher_file.unlink(missing_ok=True)
    baseline = gain = None
    if (folder / "baseline" / "manifest.json").exists():
        baseline = read_json(folder / "baseline" / "results.json")["student"]
        # A backbone has no classes to be right about, and without labels nobody knows what is right.
        if shipped.student["top1"] is not None:
            gain = verdict.gain(
                *(_right(path) for path in (folder.checkpoints, folder / "baseline" / "checkpoints"))
            )
    training = {
        "candidate": outcome.candidate,
        "epoch": outcome.epoch,
        "best": outcome.best,
        "last": outcome.last,
        "seconds": round(outcome.seconds, 1),
        "teacher_held_out": teaching and teaching.held_out,
    }
    results = documents.results(shipped.student, teacher, baseline, gain, training)
    smaller, image = delivery.made, delivery.image
    if smaller is not None:
        results["variants"] = judged(smaller, bench)
    failed = failure([*(smaller.variants if smaller else ()), *([image] if image else ())])
    write_json(folder / "results.json", results)
    manifest = {
        "kdcompress": __version__,
        "versions": documents.versions(),
        "seed": run.recipe.seed,
        "threads": run.recipe.train.threads,
        "device": _device_name(run.device),
        "processes": run.processes.world,
        "precision": run.precision,
        "teacher": manifest_entry(run, teaching),
        "data": {
            "name": run.data.name,
            "listing_sha256": run.data.listing_sha256,
            "counts": run.data.counts,
            "license": run.data.license,
            "warnings": list(run.data.warnings),
            "extra": run.data.extra and run.data.extra.to_json(),
        },
        "command": run.command,
    }
    # The pages read the manifest, and the manifest vouches for the pages: it comes before and after them.
    files = {*shipped.files, *(variant.path.name for variant in (smaller.passed if smaller else ()))}
    if image is not None and image.passed:
        files.add(image.path.name)
    folder.finish(manifest, sorted(files), done=False)
    pages = write_pages(folder.path)
    named = ["recipe.yaml", "gates.json", "bench.json", "results.json", *pages]
    folder.finish(manifest, sorted({*files, *named}), done=failed is None)
    if failed is not None:
        raise failed
    return {**read_json(folder / "results.json"), "folder": str(folder.path)}


def _right(checkpoints: Path) -> Tensor:
    """Which test images a run's exported file got right."""
    tensors = safetensors.torch.load_file(checkpoints / PREDICTIONS)
    return tensors["classes"] == tensors["labels"]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
