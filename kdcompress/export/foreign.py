"""`export` of somebody else's checkpoint: its student's files, written and proved like those of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data
from kdcompress.data.input_spec import InputSpec
from kdcompress.data.source import Source
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import DeployedConfig, read_config
from kdcompress.deploy.formats import safetensors
from kdcompress.deploy.load import WEIGHTS
from kdcompress.deploy.macs import evaluating
from kdcompress.deploy.ship import Subject
from kdcompress.documents import parse_json, read_text
from kdcompress.errors import DataError, NetworkError, UserError
from kdcompress.export.checkpoint_student import (
    StripRequest,
    default_side,
    find_student_in,
    load_student,
    strip_document,
)
from kdcompress.export.derived import DerivedRequest
from kdcompress.export.reexport import (
    batches_of,
    check_folder,
    check_formats,
    finish_export,
    open_section,
)
from kdcompress.export.subject import write_subject
from kdcompress.networks.build import accepted_channels
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection, DataSection, load_recipe_of_data

_NEAR_CHANCE = 1.5
"""Times chance: a top-1 below it is worth a warning."""


@dataclass(frozen=True, slots=True)
class ProofDataOptions:
    """How an exported checkpoint meets its images.

    Args:
        recipe: Recipe whose `data:` section says which images, cut how; None: `root` is a folder of images.
        root: Folder of the data; goes before the recipe's.
        overrides: Overrides of the recipe.
        labels: A file of class names, in the order of the logits.
        mean: Per channel, of images in [0, 1].
        std: Per channel.
    """

    recipe: str | None = None
    root: str | None = None
    overrides: tuple[str, ...] = ()
    labels: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def export(
    source: Path,
    out: Path | None,
    formats: list[str],
    progress: Progress,
    request: StripRequest,
    on: ProofDataOptions,
    *,
    opset: int | None = None,
    derived: DerivedRequest | None = None,
) -> dict[str, Any]:
    """Writes the files of a checkpoint's student and proves them, in a folder of their own.

    Nothing that the outputs depend on is guessed: the normalisation is told or stands in the `config.json`
    beside the file, and the classes are as many as the data's or are told.

    Args:
        source: See `strip`.
        out: Destination; None: a folder beside the checkpoint, named after it with `-export`.
        formats: Names from `discovery.names("format")`.
        progress: Progress display.
        request: Which network is meant.
        on: The images it is proved on, and how it takes them.
        opset: ONNX opset; None: the exporter's choice.
        derived: Derived files to make; None: none.

    Raises:
        UserError: Something is missing or does not fit.
        GateFailed: A gate failed.
    """
    check_formats(formats, opset)
    folder = out or source.with_name(f"{source.name.partition('.')[0]}-export")
    _check_folder(folder, source)
    names = None if on.labels is None else read_labels(on.labels)
    section = _section(on)
    config = _config_beside(source, request.student)
    model = request.student or (config.model if config is not None else None)
    if model is None:
        raise UserError(f"--student FAMILY/NAME: required, since nothing beside {source} says what it is")
    known = config.spec.height if config is not None else section.image_size
    # A recipe's data may have a size of its own; of a mere folder of images nobody says one.
    side = request.side or known or (default_side(model) if on.recipe is None else None)
    found = find_student_in(source, model, side or default_side(model), request)
    channels = {found.channels} if found.channels is not None else accepted_channels(model)
    fit = config.spec.known_fit if config is not None else None
    data = open_section(section, on.root, side, frozenset(channels), progress, fit)
    spec = _input_spec(data, on, config)
    network = load_student(found, model, data.image_size[0], request, source, channels=data.channels)
    count = _classes(network, spec, model)
    if names is None and config is not None:
        names = config.class_names
    names, test = _named(count, names, data, source)
    derived_request = derived or DerivedRequest()
    with batches_of(test) as batches:
        subject = Subject(network, model, spec, names, batches, {}, test_name=data.test_name)
        code = request.allow_code
        makers = derived_request.makers(data.train, test, batches, workers=granted_cores(), allow_code=code)
        shipped, files = write_subject(
            subject, folder, formats, makers, progress, opset=opset, allow_code=code
        )
    top1 = shipped.student["top1"]
    if top1 is not None and count > 2 and top1 < _NEAR_CHANCE / count:
        progress.warn(
            f"top-1 is {100 * top1:.1f} % with {count} classes, which is near chance: are --mean and --std "
            f"those of its training, were its images {spec.height}×{spec.width} (--input-size), and are the "
            "classes in the order of its logits (--labels)?"
        )
    document = finish_export(folder, shipped, files, test, derived_request.timing(BenchSection()), progress)
    return {**document, "stripped": strip_document(found, model, network, source)}


def read_labels(path: Path) -> tuple[str, ...]:
    """Reads the class names in a file: a JSON list of texts, or a name per line.

    Raises:
        UserError: It cannot be read, or is neither.
    """
    try:
        text = read_text(path)
    except UserError as error:
        raise UserError(f"--labels {error}") from None
    if text.lstrip()[:1] in {"[", "{"}:
        names = parse_json(text, f"--labels {path}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"--labels {path}: expected a JSON list of names, or a name per line")
    else:
        names = [line.strip() for line in text.strip("\n").split("\n")]
    if not names or not all(names):
        raise UserError(f"--labels {path}: expected a name for every class, and one is empty")
    return tuple(names)


def _check_folder(folder: Path, source: Path) -> None:
    check_folder(folder)
    if source.exists() and (folder / WEIGHTS).exists() and (folder / WEIGHTS).samefile(source):
        raise UserError(f"{folder}: holds the checkpoint itself; choose another folder with --out")


def _section(on: ProofDataOptions) -> DataSection:
    """Builds the `data:` section of the images that prove the files."""
    if on.recipe is not None:
        return load_recipe_of_data(on.recipe, on.overrides).data
    if on.overrides:
        raise UserError("--set: changes a recipe; name one with --recipe")
    if on.root is None:
        raise UserError(
            "--data DIR or --recipe NAME|FILE: required, since the files are proved on real images "
            "(a folder per class, or images alone; with --recipe, those of its data section)"
        )
    return DataSection()


def _config_beside(source: Path, student: str | None) -> DeployedConfig | None:
    """Reads the `config.json` that kdcompress wrote beside a .safetensors file, if there is one."""
    file = source.with_name(CONFIG)
    if source.suffix != safetensors.SUFFIX or not file.is_file():
        return None
    try:
        document = parse_json(read_text(file), str(file))
    except UserError:
        return None  # somebody else's, which says nothing to us
    if not isinstance(document, dict) or not str(document.get("schema")).startswith("kdcompress.config/"):
        return None
    config = read_config(file)
    if student is not None and config.model != student:
        raise UserError(
            f"{file}: says that {source.name} is a {config.model}, --student says {student}; leave --student "
            "out, or put the file where no other's config.json lies beside it"
        )
    if config.num_classes == 0:
        raise UserError(f"{file}: says that {source.name} is a backbone; export the run folder it is from")
    return config


def _input_spec(data: Data, on: ProofDataOptions, config: DeployedConfig | None) -> InputSpec:
    """Builds the input specification: the data's, with the network's own normalisation.

    Raises:
        UserError: Nobody says that, or not for these channels.
    """
    spec = data.input_spec()
    mean, std = on.mean, on.std
    if mean is None and std is None and config is not None:
        mean, std = config.spec.mean, config.spec.std
    if mean is None or std is None:
        own = " ".join(
            f"--{name} {','.join(f'{value:g}' for value in values)}"
            for name, values in (("mean", data.mean), ("std", data.std))
        )
        raise UserError(
            "--mean and --std: required, since a checkpoint does not say how its images were normalised, and "
            "a wrong guess would spoil the outputs unseen; say what it was trained with, per channel, of "
            f"images in [0, 1] (those of this data: {own})"
        )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != spec.channels:
            raise UserError(
                f"--{name}: expected one number per channel of the images, which have {spec.channels}, got "
                f"{len(values)}"
            )
    return dataclasses.replace(spec, mean=mean, std=std)


def _classes(network: nn.Module, spec: InputSpec, model: str) -> int:
    """Computes K by running the network once: a user's own may not state it elsewhere."""
    images = torch.zeros(1, spec.channels, spec.height, spec.width)
    with evaluating(network), torch.no_grad():
        try:
            logits = network(images)
        except (RuntimeError, ValueError, TypeError) as error:
            shape = f"{spec.channels}×{spec.height}×{spec.width}"
            first = str(error).strip().split("\n", 1)[0]
            raise NetworkError(f"{model}: fails on images of {shape} ({first}); set --input-size") from None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise NetworkError(f"{model}: expected logits [batch, classes] of it, got a {type(logits).__name__}")
    return int(logits.shape[1])


def _named(
    count: int, names: Sequence[str] | None, data: Data, source: Path
) -> tuple[tuple[str, ...], Source]:
    """Returns (a name for every logit, the test split with labels that count in their order).

    Raises:
        UserError: The names are too few or too many, or it stays open which of them a class of the data is.
    """
    theirs = data.class_names
    if names is not None and len(names) != count:
        raise UserError(f"--labels: {len(names)} names, but {source} tells {count} classes apart")
    if names is None:
        if not theirs:
            return tuple(str(number) for number in range(count)), data.test
        if len(theirs) != count:
            raise UserError(
                f"{source}: tells {count} classes apart, the data has {len(theirs)}; take data of its "
                "classes, images without labels, or say with --labels FILE what its classes are called"
            )
        return theirs, data.test
    names = tuple(names)
    if not theirs or theirs == names:
        return names, data.test
    missing = [name for name in theirs if names.count(name) != 1]
    if not missing:
        places = torch.tensor([*(names.index(name) for name in theirs), -1])
        # -1, no label, finds the -1 at the end.
        return names, dataclasses.replace(data.test, labels=places[data.test.labels])  # type: ignore[type-var]
    if len(missing) == len(theirs) == count:
        return names, data.test  # other words for the same classes
    raise DataError(
        f"--labels: the class {missing[0]!r} of the data is not one of the {count} names, or not just one; "
        "use the same names for all classes, or other names for all of them in the order of the data's"
    )
