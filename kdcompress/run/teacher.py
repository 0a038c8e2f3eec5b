"""The teacher: trained or fine-tuned where the recipe says so, and tested before the student's training."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompress import discovery
from kdcompress.atomic import sha256_of
from kdcompress.data.source import Source
from kdcompress.deploy.accuracy import scored, spread
from kdcompress.deploy.gate import Gate, relative
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.documents import read_document
from kdcompress.errors import RunFailed, WeakTeacher
from kdcompress.methods.base import find_method
from kdcompress.metrics.split_rows import SplitRows, mean_absolute
from kdcompress.networks.activations import POOLED, Want
from kdcompress.networks.from_recipe import LoadedNetwork, teacher_needs_training
from kdcompress.networks.networks import Networks
from kdcompress.networks.output_cache.stored_teacher import StoredTeacher
from kdcompress.networks.own_weights import fingerprint
from kdcompress.networks.teacher import FrozenTeacher, Teacher, teacher_network
from kdcompress.recipe import TeacherSection
from kdcompress.report import documents
from kdcompress.report.cause import HARDLY_BETTER
from kdcompress.run.context import Run, TestSplit
from kdcompress.run.networks import info, load_teacher_network, tapped
from kdcompress.run.teacher_gate import chance_level, percent_text, teacher_gate, weak_top1_limit
from kdcompress.run.teacher_record import read_record, stands_in, write_record
from kdcompress.run.training import Training, for_method, stored_training
from kdcompress.schemas.results import Results
from kdcompress.tasks import CLASSIFICATION, EMBEDDING
from kdcompress.tasks.figures import selection_metric
from kdcompress.train import result_store
from kdcompress.train.evaluate import predict_teacher

CLASSIFIER_FIRST = 0.2
"""Share of a fine-tuning in which only the new classifier is trained: its random start spoils features."""
TRAINING_SAMPLE = 2_000
"""Training images that the teacher is tested on if nothing is held out: at least as many (all, if there are
fewer), fewer than twice as many."""


@dataclass(frozen=True, slots=True)
class TestedTeacher:
    """A teacher that has been tested.

    Args:
        teacher: Frozen.
        start: The network and weights that it was loaded from.
        trained: True if this run, or an earlier one, trained or fine-tuned it on this data.
        held_out: Its held-out figures before the student's training.
        gate: Result of comparing them with the least that is accepted.
    """

    teacher: Teacher
    start: LoadedNetwork
    trained: bool
    held_out: dict[str, Any]
    gate: Gate


def load_teacher(run: Run, networks: dict[str, LoadedNetwork]) -> TestedTeacher | None:
    """Trains or loads the teacher, tests it on held-out data, and freezes it; None: the recipe has none.

    With `teacher.cache.mode: read` nothing is built: facts, classifier and figures come from the cache.
    """
    section = run.recipe.teacher
    if section is None:
        return None
    if stands_in(run):
        record = read_record(run)
        gate = _judge(run, section, record.held_out, *_tested_images(run))
        return TestedTeacher(record.teacher(run), networks["teacher"], record.trained, record.held_out, gate)
    start = networks["teacher"]
    teacher, trained = _built(run, section, start)
    where, images = _tested_images(run)
    held_out = _tested(run, section, teacher, where, images)
    gate = _judge(run, section, held_out, where, images)
    write_record(run, teacher, start, held_out, trained=trained)
    return TestedTeacher(teacher, start, trained, held_out, gate)


def with_network(run: Run, teaching: TestedTeacher | None) -> TestedTeacher | None:
    """Builds the teacher that a training with `teacher.cache.mode: read` did without.

    Args:
        run: The run; all its processes call it.
        teaching: From `load_teacher`.

    Raises:
        RunFailed: It is another one than the cache was filled by.
    """
    section = run.recipe.teacher
    if teaching is None or section is None or not isinstance(teaching.teacher, StoredTeacher):
        return teaching
    start = load_teacher_network(run)
    teacher, trained = _built(run, section, start)
    if teacher.fingerprint != teaching.teacher.fingerprint:
        raise RunFailed(
            f"teacher {section.model}: its weights are not those that filled the cache, so the student "
            "learned from another teacher; put them back, or run it again with teacher.cache.mode: fill"
        )
    teaching.teacher.take(teacher)
    return dataclasses.replace(teaching, teacher=teacher, start=start, trained=trained)


def _built(run: Run, section: TeacherSection, start: LoadedNetwork) -> tuple[FrozenTeacher, bool]:
    """Trains or loads the teacher and freezes it; True: this run, or an earlier one, trained it."""
    trained = teacher_needs_training(section, start)
    if trained:
        _train_or_load_teacher(run, start)
    size = None if trained else own_size(run, section, start)
    teacher = FrozenTeacher(tapped(run, section, start, frozen=True), size=size)
    if teacher.foldable and not teacher.folded and run.processes.first:
        run.progress.warn(
            f"teacher {section.model}: none of its {teacher.foldable} batch norms was folded, since its "
            "outputs would change; it teaches as before, only slower"
        )
    return teacher, trained


def compare_with_baseline(run: Run, teaching: TestedTeacher) -> None:
    """Warns before the student's training if the teacher is hardly better than the finished baseline.

    Args:
        run: The run; its baseline is trained.
        teaching: The tested teacher.
    """
    training = read_document(run.folder / "baseline" / "results.json", Results).get("training") or {}
    plain, metric = training.get("best") or {}, selection_metric(teaching.held_out)
    if metric is None or plain.get(metric) is None or teaching.held_out["split"] != "held-out":
        return
    lead = teaching.held_out[metric] - plain[metric]
    if lead <= HARDLY_BETTER:
        run.progress.warn(
            f"teacher {teaching.teacher.model}: {percent_text(teaching.held_out[metric])} on the held-out "
            f"images; the student without it reaches {percent_text(plain[metric])}, so there is hardly "
            "anything to learn. More teacher.epochs, other teacher.weights or a larger teacher.model may help"
        )


def own_size(run: Run, section: TeacherSection, start: LoadedNetwork) -> tuple[int, int] | None:
    """Returns the (H, W) that a pretrained teacher's images are resized to; None: they are not resized."""
    size: int | tuple[int, int] | None = section.input.size
    if size is None and start.weights is not None:
        size = start.weights.size
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else size
    return None if pair == run.data.image_size else pair


def _train_or_load_teacher(run: Run, start: LoadedNetwork) -> None:
    """Trains or fine-tunes the teacher, or loads it from an earlier run with the same inputs."""
    section = run.recipe.teacher
    assert section is not None
    note = {"model": section.model, "fine_tuned": start.pretrained}
    training = functools.partial(teacher_training, run, section, start)
    fits = result_store.fits_network(start.network)
    stored = stored_training(run, result_store.TEACHER, _key(run, start), training, note, fits)
    result_store.fill(start.network, stored.state)


def teacher_is_stored(run: Run, start: LoadedNetwork) -> bool:
    """Returns True if an earlier run with the same inputs trained the teacher and kept it."""
    fits = result_store.fits_network(start.network)
    return result_store.find(run.folder.checkpoints, _key(run, start), fits=fits) is not None


def _key(run: Run, start: LoadedNetwork) -> str:
    return result_store.teacher_key(
        run.recipe,
        listing_sha256=run.data.listing_sha256,
        weights_sha256=_start_sha256(start),
        environment={**run.environment, "precision": run.precision_of(start.network)},
    )


def _start_sha256(start: LoadedNetwork) -> str | None:
    """Returns a hash of the weights that the teacher starts from; None: drawn from its seed."""
    if start.weights is not None:
        return start.weights.sha256
    return fingerprint(start.network) if start.own_weights else None


def teacher_training(run: Run, section: TeacherSection, start: LoadedNetwork) -> Training:
    """Describes the training or fine-tuning of the teacher."""
    recipe, fine_tuned, epochs = run.recipe, start.pretrained, section.epochs
    assert isinstance(epochs, int), "resolved when the data is known"
    rate = section.lr or recipe.optim.lr * (0.1 if fine_tuned else 1.0)
    plain = find_method("none")
    in_two = fine_tuned and epochs > 1
    config = plain.Config.model_validate({"classifier_first": CLASSIFIER_FIRST if in_two else 0.0})
    data = info(for_method(run, plain, config), plain.needs(config))
    method = plain(config, Networks(tapped(run, section, start)), data).to(run.device)
    train = recipe.train.model_copy(update={"ema": None, "compile": False, "ship": "best"})
    optim = recipe.optim.model_copy(update={"lr": rate})
    return Training("teacher", method, section.seed, epochs, train, optim)


def _tested_images(run: Run) -> tuple[str, Source]:
    """Returns the name of the images that a teacher is tested on, and the images."""
    data = run.data
    if data.held_out is not None:
        return "held-out", data.held_out
    # The labelled images if there are any: a sample of all might hold none of a few.
    known = data.for_method(labels=True, unlabelled=data.labelled == 0).train
    every = max(1, len(known) // TRAINING_SAMPLE)
    return "training", known.subset(torch.arange(0, len(known), every))


def _tested(
    run: Run, section: TeacherSection, teacher: Teacher, where: str, images: Source
) -> dict[str, Any]:
    """Computes the teacher's figures on images; the same in all processes."""
    figures = None
    if run.processes.first:
        what = f"Testing the teacher {section.model} on {len(images):,} {where} images"
        with run.progress.announce(what), run.evaluation(images) as batches:
            outputs, labels = predict_teacher(teacher, batches)
        figures = {**teacher.task.score(outputs, labels), "variation": _variation(outputs)}
    return {**run.processes.broadcast(figures), "n": len(images), "split": where}


def _judge(run: Run, section: TeacherSection, figures: dict[str, Any], where: str, images: Source) -> Gate:
    """Returns the gate that the figures have passed, and warns of a weak teacher.

    Raises:
        WeakTeacher: They have not.
    """
    on = f"on {len(images):,} {where} images, before training"
    counts = torch.bincount(images.labels[images.labels >= 0]).tolist()
    gate = teacher_gate(section, figures, on, counts)
    if not gate.passed:
        raise WeakTeacher(
            f"teacher {section.model}: {gate.detail}: {percent_text(gate.figure)}, at least "
            f"{percent_text(gate.limit)} is expected. Check its weights, its class order and its input "
            "(teacher.input), give it more teacher.epochs, or waive this with teacher.min_top1: 0"
        )
    metric = selection_metric(figures)
    if metric is not None and section.min_top1 is None and run.processes.first:
        usual = weak_top1_limit(chance_level(metric, counts))
        if figures[metric] < usual:
            run.progress.warn(
                f"teacher {section.model}: {gate.detail}: {percent_text(gate.figure)}. That is above chance, "
                f"but weak: below {percent_text(usual)} a student has little to learn from it. More "
                "teacher.epochs, or a teacher with pretrained weights, may help"
            )
    return gate


def _variation(outputs: Tensor) -> float:
    """Computes the outputs' spread over their mean size; about 0 if all images give the same outputs."""
    return relative(spread(outputs), mean_absolute(outputs))


def unchanged_gate(teacher: Teacher) -> Gate:
    """Checks that the teacher is bit for bit what it was before the student's training."""
    teacher.assert_unchanged()  # an AssertionError is our bug, and keeps its traceback
    return Gate(
        "teacher_unchanged", True, 0, 0, "tensors of the teacher that differ from before the training"
    )


@dataclass(frozen=True, slots=True)
class TeacherTestOutputs:
    """The teacher's outputs on the test split, in float32 and in the split's order.

    Args:
        logits: `[N, K]`; None: it has no classifier.
        pooled: `[N, D]`; None if both networks are classifiers, which are compared by classes.
        labels: `[N]`; -1 = none.
    """

    logits: Tensor | None
    pooled: Tensor | None
    labels: Tensor

    def figures(self, num_classes: int) -> dict[str, Any]:
        """Returns the figures in the form of the student's in `results.json`."""
        found: dict[str, Any] = {}
        for task, outputs in ((EMBEDDING, self.pooled), (CLASSIFICATION, self.logits)):
            if outputs is not None:
                found |= scored(task, outputs, self.labels, num_classes).result()
        return found


def read_test_split(
    run: Run, teaching: TestedTeacher, test: TestSplit, *, pooled: bool
) -> TeacherTestOutputs:
    """Computes the teacher's outputs on the test split; its precision is float32 from here on.

    Args:
        run: The run.
        teaching: The teacher.
        test: Opens the split.
        pooled: True reads its pooled features beside its logits.
    """
    teacher = teaching.teacher
    teacher.precision = None
    want: Want = frozenset({teacher.task.activation}) | (POOLED if pooled else frozenset())
    logits, features, labels = SplitRows(), SplitRows(), []
    found: set[str] = set()
    for images_BCHW, labels_B in test():
        read = teacher(images_BCHW.to(run.device), want)
        if read.logits is not None:
            logits.add(read.logits)
            found.add("logits")
        if read.pooled is not None:
            features.add(read.pooled)
            found.add("pooled")
        labels.append(labels_B)
    return TeacherTestOutputs(
        logits.tensor() if "logits" in found else None,
        features.tensor() if "pooled" in found else None,
        torch.cat(labels),
    )


def figures(run: Run, teaching: TestedTeacher, file: Path, on_test: TeacherTestOutputs) -> dict[str, Any]:
    """Returns the teacher's figures on the test split, and writes its ONNX file for the benchmark."""
    teacher = teaching.teacher
    network = teacher_network(teacher, "teacher").network
    height, width = teacher.size or run.data.image_size
    # The images' own channels: the file repeats grey ones, since its mean and std are per channel.
    spec = dataclasses.replace(
        run.data.input_spec(), mean=teacher.input_spec.mean, std=teacher.input_spec.std,
        height=height, width=width,
    )  # fmt: skip
    plugin = discovery.load("format", "onnx")
    plugin.write(network.cpu(), spec, file, metadata={}, task=teacher.task)
    return {
        **on_test.figures(len(run.data.class_names)),
        "params": count_parameters(network),
        "macs": count_macs(network, teacher.input_spec.channels, height, width),
        "bytes": file.stat().st_size,
    }


def manifest_entry(run: Run, teaching: TestedTeacher | None) -> dict[str, Any] | None:
    """Returns the manifest's `teacher` object."""
    if teaching is None:
        return None
    file = run.folder.checkpoints / f"{result_store.TEACHER}.safetensors"
    sha256 = sha256_of(file) if teaching.trained else None
    if sha256 is None and teaching.start.own_weights:
        sha256 = teaching.teacher.fingerprint
    return documents.teacher_entry(run.recipe, teaching.start, sha256)
