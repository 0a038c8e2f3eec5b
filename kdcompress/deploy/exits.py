"""`exits.onnx`: the student with its early exits as further outputs, each proved, scored and measured.

The output `logits` is the plain student; `logits_exit1`, `logits_exit2`, ... are those of the heads that its
method trained on earlier stages, shallowest first. Whoever stops at an exit saves the layers behind it:
`onnx.utils.extract_model` cuts the file at an output, as the timings here do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompress import __version__
from kdcompress.atomic import write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.accuracy import Batches, Run, as_input, spread
from kdcompress.deploy.derived import DerivedFile, first_latencies
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.formats.onnx import OnnxModel
from kdcompress.deploy.gate import Gate, at_most, equal, relative, with_prefix
from kdcompress.deploy.graph_gates import graph_gates
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.macs import count_macs, count_macs_until, count_parameters
from kdcompress.deploy.network_gates import strict_load
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.strip import fresh_student, load_strictly
from kdcompress.deploy.verify import (
    INVARIANCE_LIMIT,
    ROUNDING,
    first_images,
    largest_difference,
    parity_gates,
    split_gates,
)
from kdcompress.errors import NetworkError, UserError
from kdcompress.metrics.split_rows import SplitRows, largest_absolute
from kdcompress.networks.exits import WithExits
from kdcompress.networks.tap_points import Tap
from kdcompress.tasks import CLASSIFICATION

NAME = "exits.onnx"
PREFIX = "exits_"
PLAIN = CLASSIFICATION.output


@dataclass(frozen=True, slots=True)
class ExitHead:
    """A head on a stage of the student.

    Args:
        stage: Name of the stage.
        tap: Place of its map in the student's plain class.
        layers: Map to logits; on the CPU.
    """

    stage: str
    tap: Tap
    layers: nn.Module


@dataclass(frozen=True)
class ExitsFile(DerivedFile):
    """`exits.onnx`, its gates and its figures.

    Args:
        path: The file.
        gates: All of them, by names that begin with `exits_`.
        facts: For `results.json`: `file`, `params`, `macs`, `bytes` of the whole, and `exits`, a list from
            shallow to deep: `name` (exit1, ...), `output`, `stage`, the figures of that output of the file on
            the test split (`top1`, `per_class`, ...), `params` and `macs` of all that leads to it, and `cost`
            (its multiply-accumulates over the student's). Empty if the file was not made.
    """

    path: Path
    gates: list[Gate]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """See the base."""
        return PREFIX


def write_exits(
    student: nn.Module,
    model: str,
    spec: InputSpec,
    heads: Sequence[ExitHead],
    folder: Path,
    shipped: Path,
    *,
    class_names: Sequence[str],
    test_batches: Callable[[], Batches],
    metadata: dict[str, str],
    opset: int | None = None,
    allow_code: bool = False,
) -> ExitsFile:
    """Exports a student with its exits as one ONNX file and proves every output.

    The student is loaded strictly into a fresh network of its class. Each output is compared with PyTorch on
    the whole test split and at batch sizes 1, 2 and 3, `logits` also with `student.onnx`, and each graph that
    is cut at an exit with that output of the file.

    Args:
        student: The trained network; takes normalised images. It is not changed.
        model: The `FAMILY/NAME` whose plain class it is.
        spec: Its input.
        heads: At least one, shallowest first.
        folder: Destination.
        shipped: Folder of the proven `student.onnx`.
        class_names: K names, by class number.
        test_batches: Opens the test split, which is not empty; called several times.
        metadata: For the file, under `kdcompress.*`, such as the recipe.
        opset: ONNX opset; None: the exporter's choice.
        allow_code: True: a `python:` network may be built.

    Raises:
        NetworkError: No such network.
        WorldError: The disk is full or fails.
    """
    path = folder / NAME
    plain = fresh_student(
        model,
        num_classes=len(class_names),
        channels=spec.channels,
        image_size=(spec.height, spec.width),
        allow_code=allow_code,
    )
    fits = strict_load(student, plain)
    if not fits.passed:
        return ExitsFile(path, with_prefix([fits], PREFIX))
    load_strictly(plain, student.state_dict(), model)
    whole = WithExits(plain, [(head.tap, head.layers) for head in heads]).eval()
    names = [PLAIN, *(f"{PLAIN}_exit{number}" for number in range(1, len(heads) + 1))]
    listed = [{"output": name, "stage": head.stage} for name, head in zip(names[1:], heads, strict=True)]
    described = {
        **metadata,
        "version": __version__,
        "model": model,
        "exits": json.dumps(listed),
        "labels": json.dumps(list(class_names), ensure_ascii=False),
        "input": json.dumps(spec.to_json()),
        "normalisation": "in the graph: images in [0, 1]",
    }
    try:
        onnx_format.write(whole, spec, path, metadata=described, opset=opset, outputs=names)
    except NetworkError as error:
        failed = Gate(f"{PREFIX}onnx_written", False, None, None, str(error))
        return ExitsFile(path, [*with_prefix([fits], PREFIX), failed])
    gates, figures = _proof(path, whole, spec, names, shipped / GRAPH, test_batches, opset)
    gates = with_prefix([fits, *gates], PREFIX)
    if len(figures) < len(names):
        return ExitsFile(path, gates)
    sizes = _sizes(whole, spec, heads)
    student_macs = count_macs(plain, spec.channels, spec.height, spec.width)
    exits = [
        {
            "name": f"exit{number}",
            "output": name,
            "stage": head.stage,
            **figures[name],
            "params": parameters,
            "macs": macs,
            "cost": macs / student_macs,
            "file": NAME,
        }
        for number, (name, head, (parameters, macs)) in enumerate(
            zip(names[1:], heads, sizes, strict=True), start=1
        )
    ]
    facts = {
        "file": NAME,
        "exits": exits,
        "params": count_parameters(whole),
        "macs": count_macs(whole, spec.channels, spec.height, spec.width),
        "bytes": path.stat().st_size,
    }
    return ExitsFile(path, gates, facts)


def with_timings(facts: Mapping[str, Any], bench: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the latency of each exit, cut out of the file, and a sentence about it.

    Args:
        facts: Facts of an `ExitsFile`.
        bench: `bench.json`, whose artefacts have the names of the exits; the first timing of each counts.
    """
    latencies = first_latencies(bench)
    exits = [{**entry, "latency_ms": latencies.get(entry["name"])} for entry in facts["exits"]]
    exits = [{**entry, "sentence": _sentence(entry, latencies.get("student"))} for entry in exits]
    return {**facts, "exits": exits}


def _sentence(entry: Mapping[str, Any], student_ms: float | None) -> str:
    parts = [f"{entry['name']} ({entry['stage']})"]
    top1 = "" if entry.get("top1") is None else f"top-1 {100 * entry['top1']:.2f} %, "
    parts.append(f"{top1}{entry['cost']:.2f} times the student's multiply-accumulates ({entry['macs']:,})")
    if entry["latency_ms"] is not None:
        own = f"{entry['latency_ms']:.3f} ms"
        parts.append(own if student_ms is None else f"{own} against the student's {student_ms:.3f} ms")
    return ": ".join(parts[:2]) + "".join(f", {part}" for part in parts[2:])


def write_cut(path: Path, output: str, target: Path) -> None:
    """Writes the part of a file that one of its outputs needs; that output stays the only one.

    Raises:
        WorldError: The disk is full or fails.
    """
    model = onnx.load(path)
    images = [value.name for value in model.graph.input]
    part = onnx.utils.Extractor(model).extract_model(images, [output])
    write_bytes(target, part.SerializeToString(deterministic=True))


def _proof(
    path: Path,
    whole: WithExits,
    spec: InputSpec,
    names: Sequence[str],
    student: Path,
    batches: Callable[[], Batches],
    opset: int | None,
) -> tuple[list[Gate], dict[str, dict[str, Any]]]:
    """Returns the gates of a file, and the figures of its outputs that could be scored, by name."""
    threads = torch.get_num_threads()
    file = OnnxModel(path, threads, several=True)
    expected = ", ".join(names)
    gates = [*graph_gates(file, opset), equal("outputs", ", ".join(file.output_names), expected, "by name")]
    if not gates[-1].passed:
        return gates, {}
    deployed = Deployed(whole, spec).eval()

    def reference(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        with torch.no_grad():
            outputs = deployed(torch.from_numpy(images))
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

    images = first_images(batches())
    references = _split_outputs(reference, batches(), names)
    try:
        exported = _split_outputs(file.outputs, batches(), names)
    except UserError as error:
        return [*gates, Gate("runs", False, None, None, str(error))], {}
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        compared, more = split_gates(references[name], _replay(exported[name]), batches())
        run, expects = partial(_output, file.outputs, name), partial(_output, reference, name)
        more += parity_gates(expects, run, images, references[name])
        graph, gate = student, "as_student"
        if name != PLAIN:
            graph, gate = path.with_name(f"{name}.onnx"), "cut"
            write_cut(path, name, graph)
        more.append(_same_outputs(gate, OnnxModel(graph, threads), run, images, references[name]))
        gates += with_prefix(more, "" if name == PLAIN else f"{name.removeprefix(PLAIN + '_')}_")
        if compared is not None:
            figures[name] = compared.exported.result()
    return gates, figures


def _split_outputs(
    run: Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]],
    batches: Batches,
    names: Sequence[str],
) -> dict[str, Tensor]:
    """Runs a whole split once; returns `[N, K]` of every output."""
    rows = {name: SplitRows() for name in names}
    for images, _ in batches:
        outputs = run(as_input(images))
        for name in names:
            rows[name].add(torch.from_numpy(outputs[name]))
    return {name: collected.tensor() for name, collected in rows.items()}


def _output(
    run: Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]],
    name: str,
    images: NDArray[np.float32],
) -> NDArray[np.float32]:
    return run(images)[name]


def _replay(outputs_NK: Tensor) -> Run:
    """Returns the outputs of a split again, batch by batch, for a second look at one pass."""
    rows = iter(outputs_NK.numpy())
    return lambda images: np.stack([next(rows) for _ in images])


def _same_outputs(gate: str, other: Run, own: Run, images: Tensor, reference_NK: Tensor) -> Gate:
    """Compares an output of the file with the same output of another file."""
    array, signal = as_input(images), spread(reference_NK)
    figure = relative(largest_difference(own(array), other(array)), signal)
    limit = max(INVARIANCE_LIMIT, relative(ROUNDING * largest_absolute(reference_NK), signal))
    whose = {"cut": "the graph cut at this output", "as_student": GRAPH}[gate]
    return at_most(gate, figure, limit, f"largest difference to {whose} over the spread between images")


def _sizes(whole: WithExits, spec: InputSpec, heads: Sequence[ExitHead]) -> list[tuple[int, int]]:
    """Returns parameters and multiply-accumulates of all that leads to each exit."""
    images = torch.zeros(1, spec.channels, spec.height, spec.width)
    until = count_macs_until(whole.network, images, [head.tap for head in heads])
    total = count_macs(whole.network, spec.channels, spec.height, spec.width)
    sizes = []
    for number, (head, macs) in enumerate(zip(heads, until, strict=True), start=1):
        alone = WithExits(whole.network, [(head.tap, head.layers)])
        own = count_macs(alone, spec.channels, spec.height, spec.width) - total
        sizes.append((_parameters_to(whole, images, number), macs + own))
    return sizes


def _parameters_to(whole: WithExits, images: Tensor, number: int) -> int:
    """Counts the parameters that an output depends on."""
    parameters = [parameter.requires_grad_() for parameter in whole.parameters()]
    with torch.enable_grad():
        output = whole(images)[number]
        gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return sum(parameter.numel() for parameter, gradient in pairs if gradient is not None)
