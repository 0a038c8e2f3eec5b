"""Building the networks of a recipe: weights loaded, outputs tapped, input normalisation set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from pydantic import ValidationError

from kdcompress.data.batch import DataInfo
from kdcompress.data.dataset import Data
from kdcompress.data.input_spec import InputSpec
from kdcompress.errors import DataError, UserError
from kdcompress.methods.base import Needs, configured
from kdcompress.networks.from_recipe import (
    Headless,
    LoadedNetwork,
    class_names_of_weights,
    headless_teacher,
    load_network,
    teacher_needs_training,
)
from kdcompress.networks.tapped import Tapped
from kdcompress.recipe import InputSection, NetworkSection, Recipe, TeacherSection
from kdcompress.run.context import Run
from kdcompress.run.teacher_record import read_record, stands_in
from kdcompress.train import precision


def load_networks(run: Run, *, build_teacher: bool = False) -> dict[str, LoadedNetwork]:
    """Builds every network of the recipe with its initial weights: student, teacher, peer1, ...

    Args:
        run: The run.
        build_teacher: True builds the teacher also where the cache's record of it stands in
            (`teacher.cache.mode: read`); its entry has no network otherwise.
    """
    recipe, data = run.recipe, run.data
    sections: dict[str, NetworkSection] = {"student": recipe.student}
    sections.update({f"peer{i + 1}": peer for i, peer in enumerate(recipe.peers)})
    if recipe.teacher is not None:
        sections["teacher"] = recipe.teacher
    absent = not build_teacher and stands_in(run)
    loaded = {
        name: read_record(run).start(run) if name == "teacher" and absent else _load(run, name, section)
        for name, section in sections.items()
    }
    check_peers_differ(loaded)
    if recipe.teacher is not None:
        trained = teacher_needs_training(recipe.teacher, loaded["teacher"])
        if trained and data.labelled == 0:
            raise UserError(
                "teacher.weights: required, and with the classes of the data: the teacher would have to be "
                "trained here, and the training images have no labels"
            )
        if trained and recipe.teacher.input.size not in (None, data.image_size[0]):
            raise UserError(
                f"teacher.input.size: {recipe.teacher.input.size}, but a teacher that is trained here takes "
                f"the images as they are, {data.image_size[0]} pixels; set data.image_size"
            )
    return loaded


def load_teacher_network(run: Run) -> LoadedNetwork:
    """Builds the teacher of a recipe that has one, with its initial weights."""
    assert run.recipe.teacher is not None
    return _load(run, "teacher", run.recipe.teacher)


def _load(run: Run, name: str, section: NetworkSection) -> LoadedNetwork:
    """Builds a network with its initial weights: student, teacher, peer1, ..."""
    recipe, data, needs = run.recipe, run.data, needs_of(run.recipe)
    headless: Headless = "never" if needs.task.has_classes else "always"
    if isinstance(section, TeacherSection):
        logits_read = "logits" in needs.read_of_teacher
        headless = headless_teacher(section, logits_read=logits_read, task=needs.task)
    return load_network(
        section,
        num_classes=len(data.class_names),
        channels=data.channels,
        image_size=data.image_size,
        seed=section.seed if isinstance(section, TeacherSection) else recipe.seed,
        purpose=name,
        allow_code=run.allow_code,
        keep_classes=isinstance(section, TeacherSection) and section.train == "never",
        headless=headless,
        progress=not run.progress.quiet and run.processes.first,
    )


def check_peers_differ(networks: Mapping[str, LoadedNetwork]) -> None:
    """Refuses a peer that starts as a copy of the student: trained alike, the two would stay equal.

    Args:
        networks: From `load_networks`.

    Raises:
        UserError: Two networks are bit for bit equal.
    """
    student = networks["student"].network.state_dict()
    for name, peer in networks.items():
        other = peer.network.state_dict() if name.startswith("peer") else {}
        if other.keys() == student.keys() and all(torch.equal(other[key], student[key]) for key in student):
            raise UserError(
                f"peers.{int(name.removeprefix('peer')) - 1}: starts with the student's weights, so "
                "the two would stay equal; give it other weights (none: random ones), or another network"
            )


def needs_of(recipe: Recipe) -> Needs:
    """Returns the requirements of the recipe's method."""
    cls, config = configured(recipe.method)
    return cls.needs(config)


def with_classes(recipe: Recipe, data: Data, *, allow_code: bool, progress: bool) -> Data:
    """Checks that the data has the labels that the method needs; unlabelled data gets the teacher's classes.

    Args:
        recipe: Of the run.
        data: Opened.
        allow_code: Whether a `python:` network may be built.
        progress: Whether to show a download.

    Raises:
        UserError: Labels are needed and there are none, or nobody says which classes there are.
    """
    if recipe.pseudo_labels is not None:
        return data  # clusters become the labels
    cls, config = configured(recipe.method)
    needs, name = cls.needs(config), recipe.method["name"]
    prepared = cls.preparations(config)
    if data.labelled == 0 and any(p.method.needs(p.config).labels for p in prepared):
        raise DataError(
            f"method.name: {name}: the preparation of its teacher needs labels, and no training image has one"
        )
    if data.labelled == 0 and needs.labels:
        without = _without_labels(recipe)
        where = f"data.root: {recipe.data.root}: " if recipe.data.root else ""
        raise DataError(
            f"{where}no training image has a label, and the method {name} needs them as it is set; sort the "
            f"images into a folder per class, or {without}"
        )
    if data.class_names or not needs.task.has_classes:
        return data
    if recipe.teacher is None or recipe.teacher.initial_weights is None:
        raise DataError(
            "teacher.weights: required, since the images have no labels: the classes are the teacher's"
        )
    names = class_names_of_weights(
        recipe.teacher, channels=data.channels, image_size=data.image_size,
        allow_code=allow_code, progress=progress,
    )  # fmt: skip
    return dataclasses.replace(data, class_names=names)


def _without_labels(recipe: Recipe) -> str:
    """Advises on a method that needs no labels: settings of this one, if there are any."""
    cls, _ = configured(recipe.method)
    for changes in ({"ce_weight": 0}, {"ce_weight": 0, "kd_weight": 1}):
        section = {key: value for key, value in recipe.method.items() if key != "name"} | changes
        try:
            config = cls.Config.model_validate(section)
        except ValidationError:
            continue
        if not cls.needs(config).labels:
            settings = " ".join(f"--set method.{key}={value}" for key, value in changes.items())
            return f"let it do without them ({settings})"
    return "choose another method (kd with ce_weight 0 needs none)"


def tapped(run: Run, section: NetworkSection, start: LoadedNetwork, *, frozen: bool = False) -> Tapped:
    """Taps a network, with the normalisation of its weights, or of the data if its weights have none.

    Args:
        run: The run.
        section: The network's section of the recipe.
        start: The network with its initial weights.
        frozen: True for a teacher that only makes forward passes; False for a network that is trained.
    """
    spec = input_spec(run, section, start)
    network = Tapped(start.network, section.model, input_spec=spec, taps=section.taps, task=start.task)
    network.to(run.device)
    network.precision = precision.dtype(run.precision if frozen else run.precision_of(start.network))
    _check_outputs(section, start, network)
    return network


def _check_outputs(section: NetworkSection, start: LoadedNetwork, network: Tapped) -> None:
    """Refuses a network of the user's whose logits are not as many as the data has classes."""
    if not start.task.has_classes or network.num_classes == start.num_classes:
        return
    then = "; the teacher is then fine-tuned to your classes" if isinstance(section, TeacherSection) else ""
    raise UserError(
        f"{section.model}: gives {network.num_classes:,} outputs, the data has {start.num_classes} classes; "
        f"let it build its last layer with num_classes outputs (it is called with "
        f"num_classes={start.num_classes}){then}"
    )


def input_spec(run: Run, section: NetworkSection, start: LoadedNetwork) -> InputSpec:
    """Returns the input specification of a network: the data's, with its own normalisation."""
    spec = run.data.input_spec()
    channels = start.channels or spec.channels
    own = section.input if isinstance(section, TeacherSection) else InputSection()
    for key, values in (("mean", own.mean), ("std", own.std)):
        if values is not None and len(values) != channels:
            owner = "the images, which have" if channels == spec.channels else "the teacher, which takes"
            raise UserError(
                f"teacher.input.{key}: expected one value per channel of {owner} {channels}, "
                f"got {len(values)}"
            )
    known = start.weights
    mean = own.mean or (known.mean if known is not None else None) or spec.mean
    std = own.std or (known.std if known is not None else None) or spec.std
    if channels != spec.channels:  # grey images, of which a teacher gets each channel the same
        mean, std = (values if len(values) == channels else (*values,) * channels for values in (mean, std))
    return dataclasses.replace(spec, channels=channels, mean=tuple(mean), std=tuple(std))


def info(run: Run, needs: Needs) -> DataInfo:
    """Collects the facts about the data that a method may use, with class weights and label smoothing.

    Args:
        run: With the images that the method can use.
        needs: The method's.
    """
    train = run.recipe.train
    return run.data.info(
        class_weights=train.class_weights,
        label_smoothing=train.label_smoothing,
        order=needs.order,
        train_batch_size=run.recipe.batch_size,
        device=run.device,
        workers=run.workers,
    )
