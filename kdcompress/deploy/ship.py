"""Shipping: strip, export, prove, and only then the final names."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from kdcompress import __version__, discovery
from kdcompress.atomic import sha256_of, staging_folder, sync_folder, translated, write_bytes, write_json
from kdcompress.data.input_spec import InputSpec
from kdcompress.data.split_name import TEST
from kdcompress.deploy.accuracy import Batches, outputs_of, scored
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import write_config
from kdcompress.deploy.derived import FAILED
from kdcompress.deploy.files import gives_probabilities, parts_of
from kdcompress.deploy.gate import GATES, Gate, document, format_prefix, with_split_name
from kdcompress.deploy.golden_file import NAME as GOLDEN
from kdcompress.deploy.golden_file import Picker, write_golden
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.deploy.network_gates import strict_load
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.probabilities import KEY as TEMPERATURE
from kdcompress.deploy.strip import fresh_student, load_strictly
from kdcompress.deploy.verify import PARITY_LIMIT, prove, scored_format
from kdcompress.errors import GateFailed, NetworkError
from kdcompress.tasks import Task, task_of
from kdcompress.tasks.base import Scorer

LABELS = "labels.json"

_STAGING = ".staging"


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to write and prove, with the content of its files.

    Args:
        network: The trained network, or the candidate that ships; takes normalised images. Neither changed
            nor moved.
        model: The `FAMILY/NAME` whose plain class it is.
        spec: Its input.
        class_names: K names, by class number; none: it has no classifier, and its features ship.
        test_batches: Opens the test split, which is not empty; called several times, for the same images.
        metadata: What the exported file shall say under `kdcompress.*`, such as recipe and teacher; labels,
            input, model, version and accuracy are added. No path of this machine: a gate looks for them.
        teacher_outputs: The teacher's logits `[N, K]` on the test split, for an embedding its pooled
            features `[N, D']`; None: there is no teacher to agree with.
        task: Kind of its outputs; None: classification, or embedding without class names.
        temperature: Fitted on held-out images; goes into the metadata and `config.json`. None: not fitted.
        probabilities: True adds the output `probabilities`, at that temperature, to the files.
        extra_gates: Gates checked before the export (the teacher is unchanged, …); they join the others.
        test_name: Name of the test split in the gates' sentences and in the file.
    """

    network: nn.Module
    model: str
    spec: InputSpec
    class_names: Sequence[str]
    test_batches: Callable[[], Batches]
    metadata: dict[str, str]
    teacher_outputs: Tensor | None = None
    extra_gates: Sequence[Gate] = ()
    task: Task | None = None
    test_name: str = TEST
    temperature: float | None = None
    probabilities: bool = False

    @property
    def known_task(self) -> Task:
        """Returns the kind of its outputs."""
        return self.task or task_of(len(self.class_names))

    @property
    def output_temperature(self) -> float | None:
        """Temperature of the output `probabilities`; None: the files do not have it."""
        return self.temperature if self.probabilities else None


@dataclass(frozen=True, slots=True)
class Shipped:
    """The files, gates and figures of a shipped student.

    Args:
        files: `{name: {sha256, bytes}}` of every file that got its final name.
        gates: All passed.
        student: The `student` object of `results.json`; its accuracy is that of the exported file.
        predictions: The exported file's outputs on the test split, in its order.
    """

    files: dict[str, dict[str, Any]]
    gates: list[Gate]
    student: dict[str, Any]
    predictions: Scorer


def ship(
    subject: Subject,
    folder: Path,
    *,
    formats: Sequence[str],
    allow_code: bool = False,
    opset: int | None = None,
) -> Shipped:
    """Exports a trained student, proves the files, and gives them their final names in `folder`.

    Args:
        subject: The student.
        folder: The run folder; exists. Nobody else ships into it meanwhile.
        formats: Names from `discovery.names("format")`, at least one.
        allow_code: True: a `python:` network may be built.
        opset: ONNX opset; None: the exporter's choice.

    Returns:
        Names, hashes and figures. `gates.json` is written as well.

    Raises:
        GateFailed: At least one gate failed. The files are under `folder/failed/`, none under its final name.
        NetworkError: No such network.
        WorldError: The disk is full or fails.
    """
    trained, spec, class_names = subject.network, subject.spec, subject.class_names
    test_batches, teacher_outputs = subject.test_batches, subject.teacher_outputs
    fresh = functools.partial(
        fresh_student,
        subject.model,
        num_classes=len(class_names),
        channels=spec.channels,
        image_size=(spec.height, spec.width),
        allow_code=allow_code,
    )
    with staging_folder(folder / _STAGING) as staging:
        plain = fresh()
        loaded = strict_load(trained, plain)
        if not loaded.passed:
            tensors = {key: tensor.detach().cpu().clone() for key, tensor in trained.state_dict().items()}
            write_bytes(staging / "trained.safetensors", safetensors.torch.save(tensors))
            raise _failed(folder, staging, [loaded, *subject.extra_gates])
        load_strictly(plain, trained.state_dict(), subject.model)
        plain.eval()
        task = subject.known_task
        picker = Picker()
        deployed = Deployed(plain, spec).eval()
        reference_NK, labels_N = outputs_of(deployed.run, picker.through(test_batches()))
        score = _figures(scored(task, reference_NK, labels_N, len(class_names)), teacher_outputs)
        write_golden(staging / GOLDEN, picker, reference_NK, limit=PARITY_LIMIT, task=task)
        described = _describe(subject, score)
        features = _features(plain, len(class_names)) if task.has_classes else reference_NK.shape[1]
        _write_config(staging, subject, features)
        files, gates = _write_formats(plain, subject, staging, formats, described, opset)
        proof = prove(
            trained=trained,
            plain=plain,
            fresh=fresh,
            spec=spec,
            files=files,
            batches=test_batches,
            reference_NK=reference_NK,
            opset=opset,
            allow_code=allow_code,
            task=task,
            temperature=subject.output_temperature,
        )
        gates = with_split_name([*gates, *proof.gates, *subject.extra_gates], subject.test_name)
        if proof.exported is None or not all(gate.passed for gate in gates):
            raise _failed(folder, staging, gates)
        file = files[scored_format(files)]
        student = {
            **_figures(proof.exported, teacher_outputs),
            "params": count_parameters(plain),
            "macs": count_macs(plain, spec.channels, spec.height, spec.width),
            "bytes": sum(part.stat().st_size for part in parts_of(file)),
            "file": file.name,
            "top1_pytorch": score["top1"],
        }
        shipped = _give_final_names(staging, folder)
        write_json(folder / GATES, document(gates))
    return Shipped(shipped, gates, student, proof.exported)


def _figures(scorer: Scorer, teacher_outputs: Tensor | None) -> dict[str, Any]:
    if teacher_outputs is None:
        return scorer.result()
    constant = scorer.constant(teacher_outputs)
    more = {} if constant is None else {"constant": constant}
    return {**scorer.result(), "agreement": scorer.agreement(teacher_outputs), **more}


def _describe(subject: Subject, score: dict[str, Any]) -> dict[str, str]:
    described = {
        **subject.metadata,
        "version": __version__,
        "model": subject.model,
        "labels": json.dumps(list(subject.class_names), ensure_ascii=False),
        # Mean and std are told for the record; the graph already applies them.
        "input": json.dumps(subject.spec.to_json()),
        "normalisation": "in the graph: images in [0, 1]",
    }
    # Without labels only the agreement with the teacher is known.
    known = ("top1", "knn_top1", "cluster_accuracy", "nmi") if score["n"] else ("agreement",)
    figures = {name: score[name] for name in known if score.get(name) is not None}
    if subject.temperature is not None:
        described[TEMPERATURE] = json.dumps(subject.temperature)
    if figures:
        described["accuracy"] = json.dumps({"split": subject.test_name, **figures, "n": score["n"]})
    return described


def _features(plain: nn.Module, num_classes: int) -> int | None:
    """Returns D, the inputs of the classifier, if that is a linear layer."""
    features = [
        part.in_features
        for part in plain.modules()
        if isinstance(part, nn.Linear) and part.out_features == num_classes
    ]
    return features[-1] if features else None


def _write_config(staging: Path, subject: Subject, features: int | None) -> None:
    extra: dict[str, Any] = {} if features is None else {"num_features": features}
    if subject.known_task is not task_of(len(subject.class_names)):
        extra["task"] = subject.known_task.name
    if subject.temperature is not None:
        extra[TEMPERATURE] = subject.temperature
    write_config(
        staging / CONFIG,
        model=subject.model,
        num_classes=len(subject.class_names),
        spec=subject.spec,
        class_names=tuple(subject.class_names),
        extra=extra,
    )
    write_json(staging / LABELS, list(subject.class_names))


def _write_formats(
    plain: nn.Module,
    subject: Subject,
    staging: Path,
    formats: Sequence[str],
    metadata: dict[str, str],
    opset: int | None,
) -> tuple[dict[str, Path], list[Gate]]:
    """Writes a file per format; a format that cannot take this network fails its gate, the others go on."""
    files: dict[str, Path] = {}
    gates: list[Gate] = []
    for name in formats:
        plugin = discovery.load("format", name)
        path = staging / f"student{plugin.SUFFIX}"
        try:
            more = {}
            if subject.output_temperature is not None and gives_probabilities(name):
                more["temperature"] = subject.output_temperature
            task = subject.known_task
            plugin.write(plain, subject.spec, path, metadata=metadata, opset=opset, task=task, **more)
        except NetworkError as error:
            gates.append(Gate(f"{format_prefix(name)}written", False, None, None, str(error)))
            continue
        files[name] = path
    return files, gates


def _give_final_names(staging: Path, folder: Path) -> dict[str, dict[str, Any]]:
    names = sorted(path.name for path in staging.iterdir())
    for name in names:
        if len(parts_of(staging / name)) > 1:
            # Of an earlier export: killed in between, there is no graph beside weights that are not its own.
            with translated(folder / name):
                (folder / name).unlink(missing_ok=True)
    # What belongs to a file gets its name before the file does.
    names.sort(key=lambda name: len(parts_of(staging / name)))
    facts = {
        name: {"sha256": sha256_of(staging / name), "bytes": (staging / name).stat().st_size}
        for name in names
    }
    for name in names:
        with translated(folder / name):
            os.replace(staging / name, folder / name)
    sync_folder(folder)
    return facts


def _failed(folder: Path, staging: Path, gates: Sequence[Gate]) -> GateFailed:
    """Puts the files where nobody takes them for good ones, and says what is wrong with them."""
    target = folder / FAILED
    with translated(target):
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
    write_json(folder / GATES, document(gates))
    lost = [gate for gate in gates if not gate.passed]
    count = f"{len(lost)} gate{'s' if len(lost) != 1 else ''} failed"
    lines = [f"the student does not ship: {count}; the files are under {target}", *map(str, lost)]
    return GateFailed("\n  ".join(lines))
