"""The end of a run: strip, prove, write and time the files, compare, and write the pages."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcompress import __version__
from kdcompress.atomic import write_json
from kdcompress.bench.measure import Artefact, measure
from kdcompress.data.split_name import TEST, name_split
from kdcompress.deploy.derived import DerivedFile, DerivedMaker, failure
from kdcompress.deploy.ensemble import EnsembleFile, with_timing
from kdcompress.deploy.exits import ExitsFile, with_timings, write_cut
from kdcompress.deploy.files import formats
from kdcompress.deploy.ship import Shipped, Subject
from kdcompress.documents import read_document
from kdcompress.export.compressed import CompressedFiles, artefacts, verdict_entries
from kdcompress.export.derived import DerivedRequest
from kdcompress.export.image_file import KEY, ImageFile
from kdcompress.export.subject import write_subject
from kdcompress.methods.base import Method
from kdcompress.networks.from_recipe import LoadedNetwork
from kdcompress.networks.load_state import load_state
from kdcompress.report import documents, verdict
from kdcompress.report.cause import find_cause
from kdcompress.report.evaluation import NAME as DETAILS
from kdcompress.report.evaluation import SplitOutputs, temperature_of
from kdcompress.report.pages import write_pages
from kdcompress.report.predictions import compared_predictions, write_predictions
from kdcompress.run.context import Run, TestSplit
from kdcompress.run.evaluation import evaluate_student, held_out_outputs, with_evaluation
from kdcompress.run.joint_files import ensemble_file, exits_file
from kdcompress.run.teacher import (
    TeacherTestOutputs,
    TestedTeacher,
    figures,
    manifest_entry,
    read_test_split,
    unchanged_gate,
)
from kdcompress.schemas.results import Results
from kdcompress.tasks import Task
from kdcompress.tasks.classification import Predictions
from kdcompress.tasks.figures import selection_metric
from kdcompress.train.job import Outcome


@dataclass(frozen=True, slots=True)
class Delivery:
    """The files that a run shipped, and the teacher's outputs on the same images.

    Args:
        shipped: The student.
        teacher_outputs: None: there is no teacher.
        derived: The files beside the student's own formats, those that failed a gate among them.
        held_out: The student's outputs on held-out images; None: there are none, or no classes.
        temperature: Fitted on them; None: not fitted.
        task: Kind of the student's outputs.
    """

    shipped: Shipped
    teacher_outputs: TeacherTestOutputs | None
    derived: list[DerivedFile]
    held_out: SplitOutputs | None
    temperature: float | None
    task: Task

    @property
    def compressed(self) -> CompressedFiles | None:
        """The smaller files; None: the recipe names none."""
        return CompressedFiles.of(self.derived)

    @property
    def image(self) -> ImageFile | None:
        """The file that takes images as they are decoded; None: the recipe does not name it."""
        return next((file for file in self.derived if isinstance(file, ImageFile)), None)

    @property
    def ensemble(self) -> EnsembleFile | None:
        """The mean prediction of several networks; None: the recipe does not name it."""
        return next((file for file in self.derived if isinstance(file, EnsembleFile)), None)

    @property
    def exits(self) -> ExitsFile | None:
        """The student with its early exits; None: the recipe does not name it."""
        return next((file for file in self.derived if isinstance(file, ExitsFile)), None)


def deliver(
    run: Run,
    start: LoadedNetwork,
    method: Method,
    outcome: Outcome,
    teaching: TestedTeacher | None,
    test: TestSplit,
    task: Task | None = None,
) -> Delivery:
    """Strips the chosen candidate, writes it in every format and proves the files.

    Args:
        run: The run.
        start: The student before its training.
        method: Names the members of an ensemble, and the early exits.
        outcome: Result of the training.
        teaching: The teacher; None: there is none.
        test: Opens the test split.
        task: Kind of the student's outputs; None: as it was built.
    """
    # Before the teacher is read in float32, which takes a fresh copy of it.
    gates = [] if teaching is None else [teaching.gate, unchanged_gate(teaching.teacher)]
    trained = copy.deepcopy(outcome.like.network)
    load_state(trained, outcome.state)
    on_test = outputs = None
    if teaching is not None:
        with run.progress.announce(
            f"Testing the teacher {teaching.teacher.model} on the {run.data.test_name} images"
        ):
            on_test = read_test_split(run, teaching, test, pooled=not start.task.has_classes)
        outputs = on_test.logits if start.task.has_classes else on_test.pooled
    kind = task or start.task
    held_out = None
    if kind.numbers_are_labels:
        held_out = held_out_outputs(run, trained, outcome.like.input_spec)
    temperature = temperature_of(held_out)
    subject = Subject(
        trained.cpu(),
        outcome.model,
        outcome.like.input_spec,
        start.task.class_names(run.data.class_names),
        test,
        documents.file_metadata(run.recipe, manifest_entry(run, teaching)),
        outputs,
        gates,
        task,
        run.data.test_name,
        temperature,
        run.recipe.export.calibrate,
    )
    folder, data = run.folder.path, run.data
    makers = DerivedRequest.of(run.recipe.export, folder, KEY).makers(
        data.train, data.test, test, held_out=data.held_out, workers=run.workers, allow_code=run.allow_code
    )
    if outcome.ensemble:
        makers.append(DerivedMaker("ensemble", functools.partial(ensemble_file, run, method, outcome, test)))
    if outcome.exits:
        makers.append(DerivedMaker("exits", functools.partial(exits_file, run, method, outcome, test)))
    shipped, derived = write_subject(
        subject, folder, run.recipe.export.formats, makers, run.progress, allow_code=run.allow_code
    )
    if isinstance(shipped.predictions, Predictions) and kind.numbers_are_labels:
        write_predictions(run.folder.checkpoints, shipped.predictions.classes, shipped.predictions.labels)
    return Delivery(shipped, on_test, derived, held_out, temperature, kind)


def _bench(
    run: Run, delivery: Delivery, teacher: dict[str, Any] | None, teacher_file: Path, test: TestSplit
) -> dict[str, Any]:
    """Times the student's files against the teacher on this machine, on real images."""
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
    if delivery.compressed is not None:
        timed += artefacts(delivery.compressed, student)
    image = delivery.image
    if image is not None and image.passed:
        called = "student (image)"
        timed.append(Artefact(called, image.path, ("onnxruntime",), shape=image.shape, pixels=True, **facts))
    ensemble = delivery.ensemble
    if ensemble is not None and ensemble.passed:
        known = {key: ensemble.facts[key] for key in ("params", "macs")}
        timed.append(Artefact("ensemble", ensemble.path, ("onnxruntime",), **known))
    cuts = []
    exits = delivery.exits
    if exits is not None and exits.passed:
        known = {key: exits.facts[key] for key in ("params", "macs")}
        timed.append(Artefact("exits", exits.path, ("onnxruntime",), network="student", **known))
        for entry in exits.facts["exits"]:
            cuts.append(folder.checkpoints / f"{entry['name']}.onnx")
            write_cut(exits.path, entry["output"], cuts[-1])
            known = {key: entry[key] for key in ("params", "macs")}
            timed.append(Artefact(entry["name"], cuts[-1], ("onnxruntime",), **known))
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
    for path in cuts:
        path.unlink()
    write_json(folder / "bench.json", document)
    return document


def report(
    run: Run,
    start: LoadedNetwork,
    outcome: Outcome,
    delivery: Delivery,
    teaching: TestedTeacher | None,
    test: TestSplit,
    pretraining: dict[str, Any] | None = None,
    *,
    peers: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Compares with teacher and baseline, times the files, and writes the documents and pages.

    Args:
        run: The run.
        start: The student before its training.
        outcome: Result of the training.
        delivery: The files that shipped.
        teaching: The teacher; None: there is none.
        test: Opens the test split.
        pretraining: Figures of the student before its training on clusters; None: there was none.
        peers: Entries of the manifest for peers that started from weights (`documents.peer_entries`).
    """
    folder, shipped = run.folder, delivery.shipped
    teacher = None
    teacher_file = folder.checkpoints / "teacher.onnx"
    if teaching is not None:
        assert delivery.teacher_outputs is not None
        with run.progress.announce("Exporting the teacher, to time it beside the student"):
            teacher = figures(run, teaching, teacher_file, delivery.teacher_outputs)
    bench = _bench(run, delivery, teacher, teacher_file, test)
    teacher_file.unlink(missing_ok=True)
    baseline = gain = None
    if (folder / "baseline" / "manifest.json").exists():
        baseline = read_document(folder / "baseline" / "results.json", Results)["student"]
        # There is no top-1 for a backbone or without labels.
        if shipped.student["top1"] is not None:
            own = compared_predictions(folder.checkpoints)
            plain = compared_predictions(folder / "baseline" / "checkpoints", like=own)
            train, figure = run.recipe.train, selection_metric(shipped.student)
            labels = own.labelled().labels if figure == "balanced_top1" else None
            gain = verdict.gain(own.right(), plain.right(), labels)
            assert figure is not None, "there is a top-1"
            likely = find_cause(
                gain, shipped.student, teacher, baseline, figure=figure, steps=outcome.steps,
                epochs=run.recipe.epochs, cut_short=train.max_steps == outcome.steps,
            )  # fmt: skip
            gain["cause"] = None
            if likely is not None:
                name = run.data.test_name
                gain["cause"] = {key: name_split(text, name) for key, text in likely.to_json().items()}
    training = {
        "candidate": outcome.candidate,
        "epoch": outcome.epoch,
        "steps": outcome.steps,
        "best": outcome.best,
        "last": outcome.last,
        "candidates": outcome.candidates,
        "bn_statistics": outcome.bn_statistics,
        "seconds": round(outcome.seconds, 1),
        "teacher_held_out": teaching and teaching.held_out,
    }
    results = documents.results(shipped.student, teacher, baseline, gain, training)
    if pretraining is not None:
        results["pretraining"] = pretraining
    if delivery.compressed is not None:
        results["variants"] = verdict_entries(delivery.compressed, bench)
    if delivery.ensemble is not None and delivery.ensemble.passed:
        results["ensemble"] = with_timing(delivery.ensemble.facts, bench)
    if delivery.exits is not None and delivery.exits.passed:
        results["exits"] = with_timings(delivery.exits.facts, bench)
    failed = failure(delivery.derived)
    evaluation = evaluate_student(
        run, shipped.predictions, delivery.held_out, delivery.temperature,
        None if delivery.teacher_outputs is None else delivery.teacher_outputs.logits,
        numbers_are_labels=delivery.task.numbers_are_labels,
    )  # fmt: skip
    write_json(folder / "results.json", with_evaluation(results, evaluation))
    manifest = {
        "kdcompress": __version__,
        "versions": documents.versions(),
        "seed": run.recipe.seed,
        "threads": run.recipe.train.threads,
        "device": _device_name(run.device),
        "processes": run.processes.world,
        "precision": run.precision_of(start.network),
        "student": documents.student_entry(run.recipe, start.weights),
        "teacher": manifest_entry(run, teaching),
        **({"peers": list(peers)} if peers else {}),
        "data": {
            "name": run.data.name,
            "listing_sha256": run.data.listing_sha256,
            "counts": run.data.counts,
            **({} if run.data.test_name == TEST else {"test_split": run.data.test_name}),
            "license": run.data.license,
            "warnings": list(run.data.warnings),
            "extra": run.data.extra and run.data.extra.to_json(),
        },
        "command": run.command,
    }
    # The pages read the manifest, and the manifest holds the hashes of the pages: it is written twice.
    files = {*shipped.files, *(file.path.name for file in delivery.derived if file.passed)}
    folder.finish(manifest, sorted(files), done=False)
    pages = write_pages(folder.path)
    named = ["recipe.yaml", "gates.json", "bench.json", "results.json", DETAILS, *pages]
    folder.finish(manifest, sorted({*files, *named}), done=failed is None)
    if failed is not None:
        raise failed
    return {**read_document(folder / "results.json", Results), "folder": str(folder.path)}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
