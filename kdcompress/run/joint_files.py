"""Writes the files of several networks or outputs: `ensemble.onnx` and `exits.onnx`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from kdcompress.deploy.ensemble import EnsembleFile, Member, write_ensemble
from kdcompress.deploy.exits import ExitHead, ExitsFile, write_exits
from kdcompress.methods.base import Method
from kdcompress.networks.load_state import load_state
from kdcompress.report import documents
from kdcompress.run.context import Run, TestSplit
from kdcompress.train.job import Outcome


def ensemble_file(
    run: Run,
    method: Method,
    outcome: Outcome,
    test: TestSplit,
    _: Path,
    staging: Path,
    student: dict[str, Any],
) -> EnsembleFile:
    """Writes and proves `ensemble.onnx` of the chosen states of all members."""
    members = []
    for name, member in method.members().items():
        network = copy.deepcopy(member.like.network)
        load_state(network, outcome.ensemble[name])
        members.append(Member(name, member.model, network.cpu(), member.like.input_spec))
    return write_ensemble(
        members,
        staging,
        class_names=run.data.class_names,
        test_batches=test,
        metadata=documents.file_metadata(run.recipe, None),
        student_macs=student["macs"],
        allow_code=run.allow_code,
    )


def exits_file(
    run: Run,
    method: Method,
    outcome: Outcome,
    test: TestSplit,
    folder: Path,
    staging: Path,
    _: dict[str, Any],
) -> ExitsFile:
    """Writes and proves `exits.onnx` of the chosen state of the student and its exits."""
    student = copy.deepcopy(outcome.like.network)
    load_state(student, outcome.state)
    heads = []
    for stage, layers in method.early_exits().items():
        trained = copy.deepcopy(layers)
        load_state(trained, outcome.exits[stage])
        heads.append(ExitHead(stage, outcome.like.taps.stages[stage], trained.cpu()))
    return write_exits(
        student.cpu(),
        outcome.model,
        outcome.like.input_spec,
        heads,
        staging,
        folder,
        class_names=run.data.class_names,
        test_batches=test,
        metadata=documents.file_metadata(run.recipe, None),
        allow_code=run.allow_code,
    )
