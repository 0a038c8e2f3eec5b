"""The ship gates: what is proved of a student before any file gets its final name.

The chain of proof: the trained module equals a plain network of the student's own class (strict load, equal
outputs), the plain network is no larger than a fresh one, and each exported file computes what the plain
network computes — on real images, at batch sizes it was not traced with, and on the whole test split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompress import discovery
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.accuracy import (
    Batches,
    Comparison,
    Run,
    as_input,
    compare,
    outputs_of,
    spread,
)
from kdcompress.deploy.files import gives_probabilities
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.deploy.gate import Gate, at_most, format_prefix, relative
from kdcompress.deploy.graph_gates import graph_gates
from kdcompress.deploy.network_gates import network_gates
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.probabilities import probabilities_gate
from kdcompress.deploy.strip import describe_misfits, misfits
from kdcompress.errors import UserError
from kdcompress.metrics.split_rows import blocks, largest_absolute
from kdcompress.tasks import CLASSIFICATION, Task
from kdcompress.tasks.base import Scorer

__all__ = [
    "Gate",
    "Proof",
    "first_images",
    "in_batches",
    "largest_difference",
    "parity_gates",
    "prove",
    "scored_format",
    "split_gates",
]

PARITY_LIMIT = 5e-3
"""Of S, the spread of the outputs between images. Deep networks were seen at 2e-3, shallow ones at 1e-5."""
VARY_LIMIT = 1e-4
"""Least spread over the mean output: below it the outputs do not depend on the image, and parity is empty."""
INVARIANCE_LIMIT = 1e-4
"""Of S: an image alone against the same image in a batch."""
ROUNDING = 16 * 2.0**-23
"""Of the largest output: what two orders of summation may differ by in float32, whatever S is."""
PARITY_BATCHES = (1, 2, 3)
"""The exporter traces with 2; a network that bakes its batch in is right there and wrong at 1 or 3."""
PARITY_IMAGES = 24
"""A multiple of each of `PARITY_BATCHES`."""


def _parity(task: Task) -> str:
    return f"largest error of {task.one_output} over the spread of the {task.outputs} between images"


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of the gates.

    Args:
        gates: Every gate, passed or not.
        exported: The exported file's outputs on the test split; None if it could not be
            run there.
        reference: PyTorch's, likewise.
    """

    gates: list[Gate]
    exported: Scorer | None
    reference: Scorer | None

    @property
    def passed(self) -> bool:
        """Returns whether every gate passed."""
        return all(gate.passed for gate in self.gates)


class SeveralOutputs(Protocol):
    """An opened file that can have the output `probabilities`."""

    def outputs(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Computes every output, by name."""


def prove(
    *,
    trained: nn.Module,
    plain: nn.Module,
    fresh: Callable[[], nn.Module],
    spec: InputSpec,
    files: dict[str, Path],
    batches: Callable[[], Batches],
    reference_NK: Tensor | None = None,
    opset: int | None = None,
    allow_code: bool = False,
    task: Task = CLASSIFICATION,
    temperature: float | None = None,
) -> Proof:
    """Runs every gate that applies to the files there are.

    Args:
        trained: The module that was trained (takes normalised images); neither changed nor moved.
        plain: The plain network with its weights, on the CPU.
        fresh: Builds an untrained network of the student's class.
        spec: The student's input.
        files: Format name to file; one of them, `scored_format`, is scored.
        batches: Opens the test split, which is not empty; called more than once, for the same images.
        reference_NK: The plain network's outputs on the test split (`outputs_of`), if they are known already.
        opset: Requested opset; None: any.
        allow_code: True: a `python:` network may be built.
        task: Kind of its outputs.
        temperature: Temperature of the output `probabilities`; None: no file has it.
    """
    images = first_images(batches())
    deployed = Deployed(plain, spec)
    deployed.eval()
    if reference_NK is None:
        reference_NK, _ = outputs_of(deployed.run, batches())
    wrong = sum(int((~rows.isfinite()).sum()) for (rows,) in blocks(reference_NK))
    if wrong:
        detail = f"of {reference_NK.numel():,} outputs, so many are NaN or infinite: nothing can be proved"
        return Proof([Gate("outputs_finite", False, wrong, 0, detail)], None, None)
    gates = network_gates(trained, plain, fresh, spec, images)
    runs: dict[str, Run] = {}
    for name in sorted(files, key=_rank):
        file, more = _open(name, files[name], opset, allow_code)
        gates += more
        if name == "safetensors":
            gates.append(_round_trip(files[name], plain, deployed, file, images))
        if file is not None:
            runs[name] = file
        if file is not None and temperature is not None and gives_probabilities(name):
            outputs = cast(SeveralOutputs, file).outputs(as_input(images))
            prefix = "" if name == "onnx" else format_prefix(name)
            gates.append(probabilities_gate(outputs, temperature, prefix=prefix))
    if not runs:
        return Proof(gates, None, None)
    scored = scored_format(runs)
    found: Comparison | None = None
    for name, run in runs.items():
        if name == "safetensors" and name != scored:
            continue  # it has given the same outputs already, to the last bit
        comparison, more = split_gates(reference_NK, run, batches(), task=task)
        more += parity_gates(deployed.run, run, images, reference_NK, task=task)
        if name == scored:
            found = comparison
            gates += more
        else:
            gates += [dataclasses.replace(gate, gate=format_prefix(name) + gate.gate) for gate in more]
    if found is None:
        return Proof(gates, None, None)
    return Proof(gates, found.exported, found.reference)


def scored_format(formats: Iterable[str]) -> str:
    """Selects the format whose file gives the run's accuracy: ONNX first, safetensors last."""
    return min(formats, key=_rank)


def _rank(name: str) -> tuple[int, str]:
    return {"onnx": 0, "safetensors": 2}.get(name, 1), name


def split_gates(
    reference_NK: Tensor, exported: Run, batches: Batches, *, task: Task = CLASSIFICATION
) -> tuple[Comparison | None, list[Gate]]:
    """Compares the exported file with PyTorch on the whole test split.

    An image whose two best logits are nearer to each other than the parity limit allows is a tie: either
    class is right. No other image may get another class. No embedding may point elsewhere.

    Args:
        reference_NK: The outputs of the PyTorch network with its normalisation, in the split's order.
        exported: The file.
        batches: The test split.
        task: Kind of the outputs.

    Returns:
        The comparison (None if the file cannot be run on it) and the gates `outputs_vary`,
        `parity_test_split` and `top1_exported`, of a backbone `embedding_exported`.
    """
    signal = spread(reference_NK)
    try:
        found = compare(reference_NK, exported, batches, task=task, limit=PARITY_LIMIT)
    except UserError as error:
        expected = task.deviation(PARITY_LIMIT, signal)
        return None, [Gate(f"{expected.name}_exported", False, None, expected.limit, str(error))]
    count, deviation = len(found.errors), found.deviation
    on = f"on the {count:,} test images"
    vary = relative(found.spread, found.mean_output)
    worst = relative(float(found.errors.max()), signal)
    varies = bool(found.spread > 0 and vary >= VARY_LIMIT)
    varied = f"spread of the {task.outputs} between images over their mean size {on}; the limit is the least"
    if not varies:
        varied += (
            ". The outputs do not depend on the image: the weights look untrained, so nothing can be verified"
        )
    return found, [
        Gate("outputs_vary", varies, vary, VARY_LIMIT, varied),
        at_most("parity_test_split", worst, PARITY_LIMIT, f"{_parity(task)}, {on}"),
        Gate(
            f"{deviation.name}_exported",
            deviation.passed,
            deviation.figure,
            deviation.limit,
            deviation.detail("PyTorch's", on) + (_top1s(found) if task.has_classes else ""),
        ),
    ]


def parity_gates(
    reference: Run, exported: Run, images: Tensor, reference_NK: Tensor, *, task: Task = CLASSIFICATION
) -> list[Gate]:
    """Compares the file with PyTorch at batch sizes 1, 2, 3, and its outputs at 1 with those at 3.

    Args:
        reference: The PyTorch network with its normalisation.
        exported: The file.
        images: `[PARITY_IMAGES, C, H, W]` real images in [0, 1].
        reference_NK: PyTorch's outputs on the test split, whose spread S is the measure.
        task: Kind of the outputs.
    """
    signal, largest_output = spread(reference_NK), largest_absolute(reference_NK)
    array = as_input(images)
    expected = reference(array)
    gates: list[Gate] = []
    rows: dict[int, NDArray[np.float32]] = {}
    for size in PARITY_BATCHES:
        name = f"parity_batch_{size}"
        try:
            rows[size] = in_batches(exported, array, size)
        except UserError as error:
            detail = f"a batch size was baked into the file: {error}"
            gates.append(Gate(name, False, None, PARITY_LIMIT, detail))
            continue
        apart = relative(largest_difference(rows[size], expected), signal)
        detail = f"{_parity(task)}, on {len(array)} real images"
        gates.append(at_most(name, apart, PARITY_LIMIT, detail))
    if 1 in rows and 3 in rows:
        moved = relative(largest_difference(rows[1], rows[3]), signal)
        # A barely trained network has a small S; rounding alone must not fail it.
        limit = max(INVARIANCE_LIMIT, relative(ROUNDING * largest_output, signal))
        detail = "an image alone against the same image in a batch of 3, over the spread between images"
        gates.append(at_most("batch_invariance", moved, limit, detail))
    return gates


def _open(name: str, path: Path, opset: int | None, allow_code: bool) -> tuple[Run | None, list[Gate]]:
    """Opens the file to run it, and checks the file itself."""
    threads = torch.get_num_threads()
    try:
        if name == "safetensors":
            return safetensors.open_(path, threads, allow_code=allow_code), []
        if name == "onnx":
            file = onnx.open_(path, threads)
            return file, graph_gates(file, opset)
        plugin = discovery.load("format", name)
        opened: Run = plugin.open_(path, threads)
        return opened, plugin.gates(opened, opset)
    except UserError as error:
        return None, [Gate(f"{format_prefix(name)}opens", False, None, None, str(error))]


def _round_trip(path: Path, plain: nn.Module, deployed: Deployed, file: Run | None, images: Tensor) -> Gate:
    """Checks that the safetensors file gives back every tensor and the same outputs."""
    name = "safetensors_round_trip"
    if file is None:
        return Gate(name, False, None, 0, "the file cannot be opened with its config.json")
    stored, loaded = safetensors.tensors_of(path), plain.state_dict()
    problems = misfits(plain, stored)
    if problems:
        return Gate(name, False, sum(map(len, problems.values())), 0, describe_misfits(problems))
    changed = [key for key, tensor in loaded.items() if not torch.equal(tensor, stored[key])]
    if changed:
        return Gate(name, False, len(changed), 0, f"tensors that changed: {', '.join(changed[:3])}")
    array = as_input(images)
    difference = largest_difference(file(array), deployed.run(array))
    return at_most(name, difference, 0.0, "reloaded strictly: equal tensors, largest difference of an output")


def _top1s(found: Comparison) -> str:
    exported_top1, reference_top1 = (scorer.result()["top1"] for scorer in (found.exported, found.reference))
    return (
        ""
        if exported_top1 is None
        else f": top-1 {exported_top1:.4f} of the file, {reference_top1:.4f} of PyTorch"
    )


def first_images(batches: Batches) -> Tensor:
    """Returns the first PARITY_IMAGES images; a shorter split is repeated."""
    first_batches: list[Tensor] = []
    for images, _ in batches:
        first_batches.append(images.detach().to("cpu", torch.float32))
        if sum(map(len, first_batches)) >= PARITY_IMAGES:
            break
    assert first_batches, "the test split has no batch"
    few = torch.cat(first_batches)
    return few.repeat(math.ceil(PARITY_IMAGES / len(few)), 1, 1, 1)[:PARITY_IMAGES].contiguous()


def in_batches(run: Run, array: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Runs a file on images in batches of size and joins the outputs.

    Raises:
        UserError: The file does not take so many, or gives another number of rows.
    """
    parts = [run(array[start : start + size]) for start in range(0, len(array), size)]
    rows = len(parts[0])
    if rows != size:
        raise UserError(f"{size} images give {rows} rows of outputs")
    return np.concatenate(parts)


def largest_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Computes the largest absolute difference; infinite for different shapes."""
    if a.shape != b.shape:
        return math.inf
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
