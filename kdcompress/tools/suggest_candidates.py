"""The students that are tried when a budget is given: which ones, and each as an untrained file to time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcompress import discovery, listing
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.formats import onnx
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import NetworkError, UserError
from kdcompress.networks.build import accepted_channels, build, family_of
from kdcompress.networks.from_recipe import seeded
from kdcompress.recipe import model_problem
from kdcompress.tasks import task_of

SMALL_SIDE = 64
"""Pixels up to which images are small: what is made for 224 would down-sample them to a point."""

SMALL = (
    "cifar/resnet8", "cifar/wrn-16-1", "cifar/resnet20", "cifar/resnet32", "cifar/wrn-16-2",
    "cifar/mobilenet-v2", "cifar/shufflenet-v1", "cifar/resnet8x4", "cifar/shufflenet-v2", "cifar/wrn-40-2",
    "cifar/wrn-16-4", "cifar/vgg8", "cifar/resnet32x4", "cifar/resnet18",
)  # fmt: skip
LARGE = (
    "torchvision/shufflenet_v2_x0_5", "torchvision/shufflenet_v2_x1_0", "torchvision/mobilenet_v3_small",
    "torchvision/mobilenet_v2", "torchvision/regnet_y_400mf", "torchvision/efficientnet_b0",
    "torchvision/mobilenet_v3_large", "torchvision/regnet_y_800mf", "torchvision/shufflenet_v2_x2_0",
    "torchvision/regnet_y_1_6gf", "torchvision/resnet18", "torchvision/resnet34", "torchvision/resnet50",
    "torchvision/convnext_tiny",
)  # fmt: skip
"""From 1 to 29 M parameters, in steps of less than two, and of several families: which of two of the same
size is the quicker one is another on another processor."""

_CALIBRATION_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a student shall take and give.

    Args:
        channels: Of the images as the data has them.
        side: Of the images in pixels.
        classes: K; 0: a backbone, which gives features.
        accepted: Channels that the run's other networks take.
        opset: Of the files; None: the exporter's choice.
        allow_code: Whether `python:` networks may be built.
    """

    channels: int
    side: int
    classes: int
    accepted: frozenset[int] = frozenset({1, 3})
    opset: int | None = None
    allow_code: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A student that may be suggested.

    Args:
        student: `FAMILY/NAME`.
        channels: C of the images it takes: grey ones are repeated where it takes no other.
        params: Number of parameters.
        macs: Multiply-accumulates of one image.
        file: Untrained, as it would ship; None if it could not be made or is not wanted.
        bytes: Of the file.
        top1: The best published top-1 on ImageNet (0 to 1) and the weights that have it, or None.
        problem: Why there is nothing to time; empty if there is.
    """

    student: str
    channels: int | None = None
    params: int | None = None
    macs: int | None = None
    file: Path | None = None
    bytes: int | None = None
    top1: tuple[float, str] | None = None
    problem: str = ""


def ladder(side: int) -> tuple[str, ...]:
    """The students that are tried where none are named.

    Args:
        side: Of the images in pixels.
    """
    return SMALL if side <= SMALL_SIDE else LARGE


def checked(names: Sequence[str], wanted: Wanted) -> tuple[str, ...]:
    """The named students, each once, if there are such networks.

    Args:
        names: Of `--students`.
        wanted: What they shall take and give.

    Raises:
        UserError: There is no such network; all of them are told at once.
    """
    problems = [problem for name in dict.fromkeys(names) if (problem := _unknown(name, wanted))]
    if problems:
        raise UserError("\n  ".join(["--students: " + problems[0], *problems[1:]]))
    return tuple(dict.fromkeys(names))


def _unknown(name: str, wanted: Wanted) -> str | None:
    """What is wrong with a name, or None."""
    problem = model_problem(name, wanted.allow_code)
    if problem is not None:
        alike = [row["name"] for row in listing.students() if row["name"].endswith(f"/{name}")]
        return f"expected FAMILY/NAME, got {name!r}; did you mean {' or '.join(alike)}?" if alike else problem
    if "NAMES" in discovery.header("family", family_of(name)).constants:
        return None
    try:
        parameters_of(name, wanted)  # a family without a list knows a name when it builds it
    except NetworkError as error:
        return str(error) if str(error).startswith("unknown network") else None
    return None


def parameters_of(student: str, wanted: Wanted) -> int:
    """How many parameters a network has for these images and classes.

    Raises:
        UserError: It cannot be built.
    """
    return count_parameters(_built(student, wanted, _channels(student, wanted)))


def made(student: str, wanted: Wanted, folder: Path, *, largest_mb: float | None = None) -> Candidate:
    """A student, built, exported untrained, and described; or why that cannot be.

    Latency depends on the weights only where values are too small for a normal float, which processors are
    slow with. Fresh networks come near (the maps of a fresh efficientnet_b0 are around 1e-14), so the
    statistics of batch norm are taken from a batch of noise, which gives the maps the scale that training
    would.

    Args:
        student: `FAMILY/NAME`.
        wanted: What it shall take and give.
        folder: Where the file goes.
        largest_mb: Of its file, in MB of 1e6 bytes; one whose weights alone are larger is not exported.

    Raises:
        UserError: A package is missing, or code is not allowed.
    """
    try:
        channels = _channels(student, wanted)
        network = _built(student, wanted, channels)
    except NetworkError as error:
        return Candidate(student, problem=str(error).removeprefix(f"{student}: "))
    params = count_parameters(network)
    top1 = _published(student)
    side = wanted.side
    try:
        _settle(network, channels, side)
        macs = count_macs(network, channels, side, side)
    except (RuntimeError, ValueError, AssertionError) as error:  # whatever a network of any family raises
        why = str(error).strip().split("\n", 1)[0] or type(error).__name__
        return Candidate(
            student, channels, params, top1=top1, problem=f"cannot take images of {side}×{side} pixels: {why}"
        )
    if largest_mb is not None and 4 * params / 1e6 > largest_mb:
        return Candidate(student, channels, params, macs, top1=top1)
    file = folder / f"{student.replace('/', '-').replace(':', '-')}{onnx.SUFFIX}"
    spec = InputSpec(channels, side, side, (0.5,) * channels, (0.25,) * channels)
    try:
        onnx.write(network, spec, file, metadata={}, opset=wanted.opset, task=task_of(wanted.classes))
    except NetworkError as error:
        return Candidate(student, channels, params, macs, top1=top1, problem=str(error))
    return Candidate(student, channels, params, macs, file, file.stat().st_size, top1)


def _channels(student: str, wanted: Wanted) -> int:
    """Of the images it gets: the data's own, or, as in a run, grey ones repeated on three channels."""
    accepted = accepted_channels(student) & wanted.accepted
    if wanted.channels in accepted:
        return wanted.channels
    if wanted.channels == 1 and 3 in accepted:
        return 3
    takes = " or ".join(map(str, sorted(accepted_channels(student))))
    raise NetworkError(f"takes images of {takes} channels, the run has {wanted.channels}")


def _built(student: str, wanted: Wanted, channels: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        seeded(0, "weights of student")
        return build(
            student,
            num_classes=wanted.classes,
            channels=channels,
            image_size=(wanted.side, wanted.side),
            allow_code=wanted.allow_code,
        )


def _settle(network: nn.Module, channels: int, side: int) -> None:
    network.eval()
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.train()
            part.momentum = 1.0  # of this batch alone
    images = torch.randn(
        _CALIBRATION_IMAGES, channels, side, side, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        network(images)
    network.eval()


def _published(student: str) -> tuple[float, str] | None:
    family = discovery.load("family", family_of(student))
    if not hasattr(family, "published_top1"):
        return None
    found: tuple[float, str] = family.published_top1(student.partition("/")[2])
    return found
