"""From the recipe's sections to networks that can be trained: built, filled, tapped, told about the data."""

from __future__ import annotations

import dataclasses

from kdcompress.data.batch import DataInfo
from kdcompress.data.input_spec import InputSpec
from kdcompress.errors import UserError
from kdcompress.networks.from_recipe import Start, start, teacher_needs_training
from kdcompress.networks.tapped import Tapped
from kdcompress.recipe import InputSection, NetworkSection, TeacherSection
from kdcompress.steps.context import Run
from kdcompress.train import precision


def starts(run: Run) -> dict[str, Start]:
    """Every network of the recipe as it starts: student, teacher, peer1, ..."""
    recipe, data = run.recipe, run.data
    sections: dict[str, NetworkSection] = {"student": recipe.student}
    sections.update({f"peer{i + 1}": peer for i, peer in enumerate(recipe.peers)})
    if recipe.teacher is not None:
        sections["teacher"] = recipe.teacher
    found = {}
    for name, section in sections.items():
        found[name] = start(
            section,
            num_classes=len(data.class_names),
            channels=data.channels,
            image_size=data.image_size,
            seed=recipe.teacher.seed if recipe.teacher and name == "teacher" else recipe.seed,
            purpose=name,
            allow_code=run.allow_code,
            keep_classes=recipe.teacher is not None and name == "teacher" and recipe.teacher.train == "never",
            progress=run.progress.visible and run.processes.first,
        )
    if recipe.teacher is not None:
        trained = teacher_needs_training(recipe.teacher, found["teacher"])
        if trained and recipe.teacher.input.size not in (None, data.image_size[0]):
            raise UserError(
                f"teacher.input.size: {recipe.teacher.input.size}, but a teacher that is trained here takes "
                f"the images as they are, {data.image_size[0]} pixels; set data.image_size"
            )
    return found


def tapped(run: Run, section: NetworkSection, start: Start) -> Tapped:
    """A network with the normalisation of its weights, or of the data if it has none of its own."""
    spec = input_spec(run, section, start)
    made = Tapped(
        start.network, section.model, image_size=run.data.image_size, channels=run.data.channels,
        mean=spec.mean, std=spec.std, taps=section.taps,
    )  # fmt: skip
    made.to(run.device)
    made.precision = precision.dtype(run.precision)
    return made


def input_spec(run: Run, section: NetworkSection, start: Start) -> InputSpec:
    """What a network expects of its input: the data's way, with its own normalisation."""
    spec = run.data.input_spec()
    own = section.input if isinstance(section, TeacherSection) else InputSection()
    for key, values in (("mean", own.mean), ("std", own.std)):
        if values is not None and len(values) != spec.channels:
            raise UserError(
                f"teacher.input.{key}: expected one value per channel of the images, which have "
                f"{spec.channels}, got {len(values)}"
            )
    known = start.weights
    mean = own.mean or (known.mean if known is not None else None) or spec.mean
    std = own.std or (known.std if known is not None else None) or spec.std
    return dataclasses.replace(spec, mean=tuple(mean), std=tuple(std))


def info(run: Run) -> DataInfo:
    """What a method may know of the data, with the run's class weights and label smoothing."""
    train = run.recipe.train
    return run.data.info(
        class_weights=train.class_weights,
        label_smoothing=train.label_smoothing,
        device=run.device,
        workers=run.workers,
    )
