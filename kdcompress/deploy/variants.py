"""The smaller files made from a proven `student.onnx`: int8 and fp16, each with its gates."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor

from kdcompress.atomic import write_bytes
from kdcompress.deploy import half
from kdcompress.deploy.accuracy import Batches, as_input, outputs_of, scored
from kdcompress.deploy.calibration import Calibration
from kdcompress.deploy.derived import DerivedFile
from kdcompress.deploy.float_graph import Ranges, layers_of
from kdcompress.deploy.formats.onnx import PREFIX, OnnxModel, open_
from kdcompress.deploy.gate import Gate, equal
from kdcompress.deploy.graph_gates import graph_gates
from kdcompress.deploy.layer_noise import CANDIDATES, LayerNoise, snr_db
from kdcompress.deploy.probabilities import (
    probabilities_gate,
    temperature_in,
    with_probabilities,
    without_probabilities,
)
from kdcompress.deploy.quantize import Quantiser, Target, in_int8
from kdcompress.deploy.speed_verdict import worst_layers
from kdcompress.deploy.variant_gates import (
    MAX_DROP,
    invariance_gate,
    loss_gate,
    range_gate,
    rounding_gates,
    size_gate,
    vary_gate,
)
from kdcompress.deploy.verify import first_images
from kdcompress.errors import UserError
from kdcompress.tasks import Task
from kdcompress.tasks.classification import NEARLY_CONSTANT

NAMES = {"int8": "student.int8.onnx", "fp16": "student.fp16.onnx"}


class Fp32Reference:
    """The float32 file, and what it gives on the test split.

    Args:
        path: `student.onnx`.
        batches: Opens the test split, which is not empty; called several times, for the same images.

    Attributes:
        outputs_NK: On the test split.
        labels_N: Of it; -1 means no label.
        images: `[PARITY_IMAGES, C, H, W]` of it.
        temperature: Temperature of its output `probabilities`; None: it has no such output.

    Raises:
        UserError: It cannot be opened, or does not take these images.
    """

    def __init__(self, path: Path, batches: Callable[[], Batches]) -> None:
        self.path, self.batches = path, batches
        self.file = open_(path, torch.get_num_threads())
        self.temperature = temperature_in(onnx.load(path, load_external_data=False), PREFIX, str(path))
        self.outputs_NK, self.labels_N = outputs_of(self.file, batches())
        self.images = first_images(batches())

    @property
    def task(self) -> Task:
        """Returns the task of its outputs."""
        return self.file.task

    @contextmanager
    def plain_graph(self) -> Iterator[Path]:
        """Gives a file of its graph without the output `probabilities`, whose numbers tools may change."""
        if self.temperature is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="kdcompress-") as folder:
            plain = Path(folder) / self.path.name
            onnx.save(without_probabilities(onnx.load(self.path)), plain)
            yield plain

    @cached_property
    def score(self) -> dict[str, Any]:
        """Computes its own figures."""
        return self.score_of(self.outputs_NK)

    def score_of(self, outputs_NK: Tensor) -> dict[str, Any]:
        """Computes the figures of outputs on the same images."""
        return scored(self.task, outputs_NK, self.labels_N).result()

    def right(self, outputs_NK: Tensor) -> Tensor | None:
        """Returns `[N]`, True for each labelled image that is classified rightly; None if unknown."""
        known = self.labels_N >= 0
        if not self.task.numbers_are_labels or not bool(known.any()):
            return None
        return (outputs_NK.argmax(1) == self.labels_N)[known]


@dataclass(frozen=True)
class Variant(DerivedFile):
    """A file made from the float32 one, and what was found out about it.

    Args:
        precision: int8 or fp16.
        path: Its path; nothing is there if it could not be made.
        gates: All of them.
        making: How it was made; stands in the file too.
        score: On the test split: the keys of `accuracy` (of a backbone `knn_top1` too), `drop` (points lost
            against fp32, None without labels), `snr_db` (None where nothing differs) and, of a classifier,
            `agreement_fp32` and, of a nearly constant one, `constant_fp32`: the share of the images that fp32
            gives one class. Empty if the file cannot be run.
        outputs_NK: On the test split; None if it cannot be run.
        losses: The layers that lose most, the worst first; of int8 only.
        tuning: Result of quantisation-aware training, and whether this file has its weights; or None.
        exact: The float32 file; set by `export.compressed`.
    """

    precision: str
    path: Path
    gates: list[Gate]
    making: dict[str, Any]
    score: dict[str, Any] = field(default_factory=dict)
    outputs_NK: Tensor | None = field(default=None, repr=False)
    losses: tuple[LayerNoise, ...] = ()
    tuning: dict[str, Any] | None = None
    exact: Fp32Reference | None = field(default=None, repr=False)

    @property
    def prefix(self) -> str:
        """See the base."""
        return f"{self.precision}_"

    @property
    def title(self) -> str:
        """See the base."""
        return f"the {self.precision} file"

    def advice(self) -> Iterator[str]:
        """See the base."""
        if all(gate.passed for gate in self.gates if gate.gate == "int8_drop"):
            return
        yield worst_layers(self.losses)
        more = len(self.making["in_float"]) + 3
        others = "" if self.making["ranges"] == "percentile" else ", --int8-ranges percentile"
        yield (
            f"try --int8-rescue {more}{others}, or accept the loss with --max-drop (options of kdcompress "
            "export; in a recipe export.int8.rescue, ranges, max_drop)"
        )


def to_int8(
    exact: Fp32Reference,
    images: Calibration,
    folder: Path,
    *,
    target: Target,
    ranges: Ranges = "minmax",
    rescue: int = 0,
    max_drop: float = MAX_DROP,
    source: Path | None = None,
    qat: dict[str, Any] | None = None,
) -> Variant:
    """Makes `student.int8.onnx` and proves it.

    Args:
        exact: The float32 file.
        images: To calibrate with.
        folder: Destination.
        target: Processor kind it is made for.
        ranges: How the activations' ranges are taken.
        rescue: So many of the layers that lose most stay in float.
        max_drop: Points of top-1 that may be lost.
        source: The graph it is made from; None: the float32 file, which it is held against in any case.
        qat: How the weights of `source` were tuned; stands in the file.
    """
    with exact.plain_graph() as plain:
        quantiser = Quantiser(source or plain, images, target, ranges)
    count = len(quantiser.layers)
    if rescue >= count:
        facts = f"{rescue} layers are to stay in float, and the network has {count} with weights"
        return Variant("int8", folder / NAMES["int8"], [Gate("int8_layers", False, 0, 1, facts)], {})
    losses = quantiser.measure_layers(max(CANDIDATES, 2 * rescue))
    in_float = [loss.layer for loss in losses[:rescue]]
    model = quantiser.graph(in_float)
    making = {
        "format": "QDQ",
        "target": target,
        "activations": "int8" if target == "arm" else "uint8",
        "weights": "int8",
        "weight_bits": 7 if target == "x86-novnni" else 8,
        "per_channel": True,
        "ranges": ranges,
        "calibration": images.to_json(),
        "in_float": in_float,
        **({} if qat is None else {"qat": qat}),
    }
    detail = f"layers with int8 weights, of {count} with weights"
    if in_float:
        detail += f"; to stay in float: {', '.join(in_float)}"
    made = equal("int8_layers", len(in_int8(model)), count - len(in_float), detail)
    path, gates, score, outputs_NK = _proved(model, "int8", making, folder, exact)
    if outputs_NK is not None:
        gates.append(loss_gate(score, len(outputs_NK), max_drop))
    return Variant("int8", path, [made, *gates], making, score, outputs_NK, tuple(losses))


def to_fp16(exact: Fp32Reference, images: Calibration, folder: Path) -> Variant:
    """Makes `student.fp16.onnx` and proves it.

    Args:
        exact: The float32 file.
        images: On which the activations must keep to what float16 holds.
        folder: Destination.
    """
    with exact.plain_graph() as plain:
        model = half.convert_to_fp16(plain)
        largest = half.largest_activation(plain, images)
        layers = len(list(layers_of(onnx.load(plain))))
    made = [
        equal("fp16_layers", len(half.in_float16(model)), layers, "layers with float16 weights"),
        range_gate(largest, len(images)),
    ]
    making = {"input": "float32", "output": "float32", "normalisation": "float32"}
    path, gates, score, outputs_NK = _proved(model, "fp16", making, folder, exact)
    if outputs_NK is not None:
        noise = snr_db(exact.outputs_NK.numpy(), outputs_NK.numpy())
        gates += rounding_gates(exact.outputs_NK, outputs_NK, noise, task=exact.task)
    return Variant("fp16", path, [*made, *gates], making, score, outputs_NK)


def _proved(
    model: ModelProto, precision: str, making: dict[str, Any], folder: Path, exact: Fp32Reference
) -> tuple[Path, list[Gate], dict[str, Any], Tensor | None]:
    """Writes the file; gives the gates that every such file has, its figures, and its outputs if it runs."""
    path = folder / NAMES[precision]
    if exact.temperature is not None:
        model = with_probabilities(model, exact.temperature)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    facts[PREFIX + "precision"] = precision
    facts[PREFIX + precision] = json.dumps(making, sort_keys=True)
    facts.pop(PREFIX + "accuracy", None)  # that of the float32 file
    _write(model, facts, path)
    try:
        file = open_(path, torch.get_num_threads())
        outputs_NK, _ = outputs_of(file, exact.batches())
    except UserError as error:
        return path, [Gate(f"{precision}_runs", False, None, None, str(error))], {}, None
    score = _score(exact, outputs_NK)
    if score["drop"] is not None:
        _write(model, {**facts, PREFIX + "accuracy": json.dumps(_accuracy(exact, score))}, path)
        file = open_(path, torch.get_num_threads())
    gates = [
        *_of_the_graph(precision, file, exact),
        # With layers left in float the file is as large as was asked for.
        *([] if making.get("in_float") else [size_gate(precision, path, exact.path)]),
        vary_gate(precision, outputs_NK),
        invariance_gate(precision, file, exact.images, exact.outputs_NK),
    ]
    return path, gates, score, outputs_NK


def _score(exact: Fp32Reference, outputs_NK: Tensor) -> dict[str, Any]:
    figure = exact.task.metrics[0]
    score, before = exact.score_of(outputs_NK), exact.score[figure]
    noise = snr_db(exact.outputs_NK.numpy(), outputs_NK.numpy())
    score["drop"] = None if before is None else 100 * (before - score[figure])
    score["snr_db"] = noise if math.isfinite(noise) else None
    if exact.task.has_classes:
        same = outputs_NK.argmax(1) == exact.outputs_NK.argmax(1)
        score["agreement_fp32"] = float(same.double().mean())
        share = torch.bincount(exact.outputs_NK.argmax(1)).max().item() / len(same)
        if share >= NEARLY_CONSTANT:
            score["constant_fp32"] = share
    return score


def _accuracy(exact: Fp32Reference, score: dict[str, Any]) -> dict[str, Any]:
    figure = exact.task.metrics[0]
    before = {f"{figure}_fp32": exact.score[figure]}
    return {"split": "test", figure: score[figure], **before, "n": score["n"]}


def _of_the_graph(precision: str, file: OnnxModel, exact: Fp32Reference) -> Iterator[Gate]:
    for gate in graph_gates(file, exact.file.opset):
        yield Gate(f"{precision}_{gate.gate}", gate.passed, gate.figure, gate.limit, gate.detail)
    if exact.temperature is not None:
        outputs = file.outputs(as_input(exact.images))
        yield probabilities_gate(outputs, exact.temperature, prefix=f"{precision}_")


def _write(model: ModelProto, facts: dict[str, str], path: Path) -> None:
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(facts.items())))
    write_bytes(path, model.SerializeToString(deterministic=True))
