"""`ensemble.onnx`: several trained networks as one file whose output is their mean prediction, with proof.

The members' probabilities are averaged, not their logits: networks that were trained apart give logits of
different scales, and the mean of logits would let the member with the largest scale decide. The output is the
logarithm of the mean probability, so that it is a logit like any other: its softmax is that mean.

Source: B. Lakshminarayanan, A. Pritzel and C. Blundell, Simple and scalable predictive uncertainty estimation
    using deep ensembles, NeurIPS 2017, section 2.4 (a uniformly weighted mixture of the predictions).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress import __version__
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.accuracy import Batches, outputs_of
from kdcompress.deploy.derived import DerivedFile, first_latencies
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.gate import Gate, with_prefix
from kdcompress.deploy.graph_gates import graph_gates
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.deploy.network_gates import network_gates, strict_load
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.strip import fresh_student, load_strictly
from kdcompress.deploy.verify import first_images, parity_gates, split_gates
from kdcompress.errors import NetworkError, UserError
from kdcompress.tasks import CLASSIFICATION
from kdcompress.tasks.classification import mean_prediction

NAME = "ensemble.onnx"
PREFIX = "ensemble_"


@dataclass(frozen=True, slots=True)
class Member:
    """One network of an ensemble.

    Args:
        name: Its name in the method, such as `student` or `peer1`.
        model: The `FAMILY/NAME` whose plain class it is.
        network: The trained network; takes normalised images and gives logits. It is not changed.
        spec: Its own input.
    """

    name: str
    model: str
    network: nn.Module
    spec: InputSpec


@dataclass(frozen=True)
class EnsembleFile(DerivedFile):
    """`ensemble.onnx`, its gates and its figures.

    Args:
        path: The file.
        gates: All of them, by names that begin with `ensemble_`.
        facts: For `results.json`: `file`, `members` (`{name, model}` each), the figures of the exported file
            on the test split (`top1`, `per_class`, ...), `params`, `macs`, `bytes`, `cost` (its
            multiply-accumulates over the student's) and `sentence`, all that in one line. Empty if the file
            was not made.
    """

    path: Path
    gates: list[Gate]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """See the base."""
        return PREFIX


class Ensemble(nn.Module):
    """The mean prediction of several networks, each with its own normalisation.

    Args:
        members: Plain networks and their inputs, all of one size; at least one.
    """

    def __init__(self, members: Sequence[tuple[nn.Module, InputSpec]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(Deployed(network, spec) for network, spec in members)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logarithm of the members' mean probabilities, `[B, K]`.

        Args:
            images: `[B, C, H, W]` in [0, 1], not normalised.
        """
        return mean_prediction([member(images) for member in self.members])


def write_ensemble(
    members: Sequence[Member],
    folder: Path,
    *,
    class_names: Sequence[str],
    test_batches: Callable[[], Batches],
    metadata: dict[str, str],
    student_macs: int,
    opset: int | None = None,
    allow_code: bool = False,
) -> EnsembleFile:
    """Exports an ensemble as one ONNX file and proves it.

    Each member is loaded strictly into a fresh network of its class; the file is compared with these in
    PyTorch on the whole test split and at batch sizes 1, 2 and 3.

    Args:
        members: Two or more classifiers of the same classes and the same image size.
        folder: Destination.
        class_names: K names, by class number.
        test_batches: Opens the test split, which is not empty; called several times.
        metadata: For the file, under `kdcompress.*`, such as the recipe.
        student_macs: Multiply-accumulates of the student, in whose multiples the cost is given.
        opset: ONNX opset; None: the exporter's choice.
        allow_code: True: a `python:` network may be built.

    Raises:
        UserError: The members' images differ in size or channels.
        NetworkError: No such network.
        WorldError: The disk is full or fails.
    """
    spec = _common_input(members)
    images = first_images(test_batches())
    plain: list[tuple[nn.Module, InputSpec]] = []
    gates: list[Gate] = []
    for member in members:
        network, more = _proved_member(member, len(class_names), images, allow_code)
        gates += more
        if network is not None:
            plain.append((network, member.spec))
    made = EnsembleFile(folder / NAME, gates)
    if len(plain) == len(members):
        made = _written(
            made, members, Ensemble(plain).eval(), spec, class_names, test_batches, metadata, opset
        )
    if made.facts:
        made.facts["cost"] = made.facts["macs"] / student_macs
        made.facts["sentence"] = _sentence(made.facts)
    return made


def with_timing(facts: Mapping[str, Any], bench: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the latency of the ensemble, beside the student's in the sentence.

    Args:
        facts: Facts of an `EnsembleFile`.
        bench: `bench.json`; the first timing of each artefact counts.
    """
    latencies = first_latencies(bench)
    own, student = latencies.get("ensemble"), latencies.get("student")
    if own is None:
        return {**facts, "latency_ms": None}
    against = "" if student is None else f" against the student's {student:.3f} ms"
    return {**facts, "latency_ms": own, "sentence": f"{facts['sentence']}; {own:.3f} ms{against}"}


def _sentence(facts: dict[str, Any]) -> str:
    names = ", ".join(member["name"] for member in facts["members"])
    top1 = "" if facts.get("top1") is None else f"top-1 {100 * facts['top1']:.2f} %, "
    return (
        f"{facts['file']}: {top1}{facts['cost']:.1f} times the student's multiply-accumulates, "
        f"{facts['bytes'] / 1e6:.1f} MB; the mean probability of {len(facts['members'])} networks ({names})"
    )


def _common_input(members: Sequence[Member]) -> InputSpec:
    """Returns the input of the file: that of the first member, with mean 0 and std 1."""
    first = members[0].spec
    size = (first.channels, first.height, first.width)
    for member in members:
        own = (member.spec.channels, member.spec.height, member.spec.width)
        if own != size:
            raise UserError(
                f"train.ship: ensemble: {member.name} takes images of {'×'.join(map(str, own))}, "
                f"{members[0].name} of {'×'.join(map(str, size))}; members of one file take the same images"
            )
    zeros, ones = (0.0,) * first.channels, (1.0,) * first.channels
    return dataclasses.replace(first, mean=zeros, std=ones)


def _proved_member(
    member: Member, num_classes: int, images: Tensor, allow_code: bool
) -> tuple[nn.Module | None, list[Gate]]:
    """Builds a plain network with the member's weights and its gates; None if they do not fit."""
    spec = member.spec
    fresh = partial(
        fresh_student,
        member.model,
        num_classes=num_classes,
        channels=spec.channels,
        image_size=(spec.height, spec.width),
        allow_code=allow_code,
    )
    plain = fresh()
    fits = strict_load(member.network, plain)
    if not fits.passed:
        return None, with_prefix([fits], f"{PREFIX}{member.name}_")
    load_strictly(plain, member.network.state_dict(), member.model)
    plain.eval()
    gates = network_gates(member.network, plain, fresh, spec, images)
    return plain, with_prefix(gates, f"{PREFIX}{member.name}_")


def _written(
    made: EnsembleFile,
    members: Sequence[Member],
    network: Ensemble,
    spec: InputSpec,
    class_names: Sequence[str],
    batches: Callable[[], Batches],
    metadata: dict[str, str],
    opset: int | None,
) -> EnsembleFile:
    listed = [{"name": member.name, "model": member.model} for member in members]
    described = {
        **metadata,
        "version": __version__,
        "ensemble": json.dumps(listed),
        "labels": json.dumps(list(class_names), ensure_ascii=False),
        "input": json.dumps(spec.to_json()),
        "normalisation": "in the graph: images in [0, 1]",
    }
    try:
        onnx_format.write(network, spec, made.path, metadata=described, opset=opset)
    except NetworkError as error:
        gate = Gate(f"{PREFIX}onnx_written", False, None, None, str(error))
        return dataclasses.replace(made, gates=[*made.gates, gate])
    reference = Deployed(network, spec).eval()
    reference_NK, _ = outputs_of(reference.run, batches())
    file = onnx_format.open_(made.path, torch.get_num_threads())
    compared, gates = split_gates(reference_NK, file, batches(), task=CLASSIFICATION)
    gates += parity_gates(reference.run, file, first_images(batches()), reference_NK, task=CLASSIFICATION)
    gates = [*graph_gates(file, opset), *gates]
    made = dataclasses.replace(made, gates=[*made.gates, *with_prefix(gates, PREFIX)])
    if compared is None:
        return made
    facts = {
        "file": NAME,
        "members": listed,
        **compared.exported.result(),
        "params": count_parameters(network),
        "macs": count_macs(network, spec.channels, spec.height, spec.width),
        "bytes": made.path.stat().st_size,
    }
    return dataclasses.replace(made, facts=facts)
