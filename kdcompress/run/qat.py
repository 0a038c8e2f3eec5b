"""Quantisation-aware training: continues the finished student's training with rounded passes."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx
import safetensors.torch
import torch

from kdcompress.atomic import write_bytes, write_json
from kdcompress.deploy.float_graph import WITH_WEIGHTS, prepare_graph
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.formats.safetensors import METADATA
from kdcompress.errors import NetworkError, UserError
from kdcompress.export.int8_inputs import FACTS, FACTS_SCHEMA, WEIGHTS, calibration_images, int8_target
from kdcompress.methods.base import Method
from kdcompress.networks.from_recipe import LoadedNetwork
from kdcompress.networks.load_state import load_state
from kdcompress.networks.rounding import Rounding
from kdcompress.networks.undisturbed import undisturbed
from kdcompress.run.context import Run
from kdcompress.run.networks import input_spec
from kdcompress.run.training import Training, run_training
from kdcompress.train.job import Outcome
from kdcompress.train.qat_method import QuantizationAwareTraining

LABEL = "qat"
"""Names its log lines and its checkpoint."""


def check_int8_training(run: Run, method: Method, start: LoadedNetwork) -> None:
    """Refuses, before anything is trained, a network whose passes cannot be rounded as its int8 file's are.

    Raises:
        UserError: With the reason.
    """
    section = run.recipe.export.int8
    if section is None or not section.qat_epochs or not run.processes.first:
        return
    student = method.networks.student
    try:
        with undisturbed(student.network):
            trainable_layers = Rounding(student.network, [student.sample()]).plan.layers
        with tempfile.TemporaryDirectory(prefix="kdcompress-") as folder:
            path = Path(folder) / "student.onnx"
            spec = input_spec(run, run.recipe.student, start)
            task = start.task
            onnx_format.write(student.network, spec, path, metadata={}, task=task)
            graph_layers = _layers(prepare_graph(path))
    except NetworkError as error:
        raise UserError(f"export.int8.qat_epochs: {student.model}: {error}; {_ADVICE}") from error
    if trainable_layers != graph_layers:
        raise UserError(
            f"export.int8.qat_epochs: {student.model}: its int8 file has {graph_layers} convolutions, linear "
            f"layers and matrix products, and of its module {trainable_layers} can be rounded in training "
            f"(attention computes several in one function); {_ADVICE}"
        )


_ADVICE = "take it out (--set export.int8.qat_epochs=0) for an int8 file without tuning"


def train_for_int8(run: Run, method: Method, outcome: Outcome) -> None:
    """Continues the chosen student's training with rounded passes and stores the weights for the int8 file.

    The run's own student stays as it was trained.

    Args:
        run: The run.
        method: The method after its training.
        outcome: Result of that training; its weights are the start.
    """
    recipe, section = run.recipe, run.recipe.export.int8
    assert section is not None
    student = method.networks.student
    before, own_input = (student.precision, student.forward_context), student.input_spec
    load_state(student.network, outcome.state)
    student.use_input(outcome.like.input_spec)  # of a peer, if that was chosen
    student.train_mode(False)
    images = calibration_images(section, run.data.train, workers=run.workers)
    # Levels are computed in float32: bfloat16 keeps as many digits as they have, and would round them again.
    student.precision = None
    bits = 7 if int8_target(section) == "x86-novnni" else 8
    on_device = [student.normalise(torch.from_numpy(batch).to(run.device)) for batch in images.batches]
    rounding = Rounding(student.network, on_device, weight_bits=bits)
    qat = QuantizationAwareTraining(method, rounding, run.processes, recipe.epochs)
    train = recipe.train.model_copy(
        update={"ema": None, "compile": False, "ship": "best", "precision": "fp32", "bn_statistics": "off"}
    )
    rate = section.qat_lr * recipe.optim.lr
    optim = recipe.optim.model_copy(update={"lr": rate, "schedule": "cosine", "warmup": 0.0})
    float32_run = dataclasses.replace(run, recipe=recipe.replace(train=train))
    student.forward_context = rounding.rounded
    try:
        result = run_training(
            float32_run, Training(LABEL, qat, recipe.seed, section.qat_epochs, train, optim)
        )
    finally:
        student.precision, student.forward_context = before
        student.use_input(own_input)
        load_state(student.network, outcome.state)
    if run.processes.first:
        state = {name: tensor.contiguous() for name, tensor in result.state.items()}
        write_bytes(run.folder.checkpoints / WEIGHTS, safetensors.torch.save(state, METADATA))
        facts = {
            "schema": FACTS_SCHEMA,
            "epochs": section.qat_epochs,
            "lr": rate,
            "epoch": result.epoch,
            "seconds": round(result.seconds, 1),
            "held_out": result.best,
        }
        write_json(run.folder.checkpoints / FACTS, facts)
    run.processes.barrier()


def _layers(model: onnx.ModelProto) -> int:
    return sum(node.op_type in WITH_WEIGHTS for node in model.graph.node)
