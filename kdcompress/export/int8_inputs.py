"""Inputs of an int8 file: the target processor, the calibration images, and weights trained for int8."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from kdcompress.bench.environment import environment
from kdcompress.data.loader import EvaluationLoader
from kdcompress.data.source import Source
from kdcompress.deploy.calibration import Calibration, calibration
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.formats.safetensors import tensors_of
from kdcompress.deploy.int8_diagnosis import usual_target
from kdcompress.deploy.qat_int8 import QatStudent
from kdcompress.deploy.quantize import Target
from kdcompress.deploy.strip import plain_student
from kdcompress.documents import read_document
from kdcompress.recipe import Int8Section
from kdcompress.schemas.run import QatFacts

WEIGHTS = "quantised.safetensors"
"""File under `checkpoints/` with the weights of the int8 file."""
FACTS = "quantised.json"
"""File beside it with facts about the training."""
FACTS_SCHEMA = "kdcompress.quantised/1"


def int8_target(section: Int8Section) -> Target:
    """Returns the processor kind that the int8 file is made for; auto: this machine's."""
    if section.target != "auto":
        return section.target
    return usual_target(platform.machine(), environment()["isa"])


def calibration_images(section: Int8Section, train: Source, *, workers: int) -> Calibration:
    """Chooses the calibration images, from which the ranges of activations are measured.

    Args:
        section: Their number and seed.
        train: The training split.
        workers: Processes that decode images.
    """

    def read(indices: Tensor) -> Iterable[Tensor]:
        loader = EvaluationLoader(train.subset(indices), device="cpu", workers=workers)
        try:
            yield from (batch.images for batch in loader)
        finally:
            loader.close()

    return calibration(train.labels, read, section.images, section.seed)


def load_qat_student(
    run: Path, folder: Path, held_out: Source | None, *, workers: int, allow_code: bool
) -> QatStudent | None:
    """Loads the weights of a run's quantisation-aware training; None if it had none.

    Args:
        run: The run folder.
        folder: Holds the `config.json` of the student.
        held_out: Images to choose between them and the ordinary weights; None: nothing is held out.
        workers: Processes that decode them.
        allow_code: True: a `python:` network may be built.

    Raises:
        UserError: They do not fit the student.
    """
    file = run / "checkpoints" / WEIGHTS
    if not file.is_file():
        return None
    config = read_config(folder / CONFIG)
    network = plain_student(
        tensors_of(file),
        config.model,
        num_classes=config.num_classes,
        channels=config.spec.channels,
        image_size=(config.spec.height, config.spec.width),
        allow_code=allow_code,
    )
    facts = read_document(file.with_name(FACTS), QatFacts)

    def images() -> Iterable[tuple[Tensor, Tensor]]:
        assert held_out is not None
        loader = EvaluationLoader(held_out, device="cpu", workers=workers)
        try:
            yield from ((batch.images, batch.labels) for batch in loader)
        finally:
            loader.close()

    chosen = {key: facts[key] for key in ("epochs", "lr", "epoch")}
    return QatStudent(network, config.spec, chosen, None if held_out is None else images)
