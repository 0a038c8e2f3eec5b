"""The default students of `suggest`, and the export of an untrained student for timing."""

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
"""Largest side of small images in pixels; a network for 224 pixels would down-sample them to a point."""

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
"""From 1 to 29 M parameters, in steps of less than a factor of two, and of several families, since the
faster one of two networks of the same size depends on the processor."""

_CALIBRATION_IMAGES = 2


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """The input and output of the students.

    Args:
        channels: Channels of the images in the data.
        side: Side of the images in pixels.
        classes: Number of classes K; 0: a backbone, which gives features.
        accepted: Numbers of channels that the run's other networks take.
        opset: Opset of the files; None: the exporter's choice.
        allow_code: True if `python:` networks may be built.
    """

    channels: int
    side: int
    classes: int
    accepted: frozenset[int] = frozenset({1, 3})
    opset: int | None = None
    allow_code: bool = False


@dataclass(frozen=True, slots=True)
class StudentCandidate:
    """A student that may be suggested.

    Args:
        student: `FAMILY/NAME`.
        channels: C of the images it takes; grey images are repeated if it takes three channels only.
        params: Number of parameters.
        macs: Multiply-accumulates of one image.
        file: The untrained file, exported like a trained one; None if it is too large or has a problem.
        bytes: Size of the file.
        top1: The best published top-1 on ImageNet (0 to 1) and the name of the weights, or None.
        problem: Reason why it cannot be timed; empty if it can.
    """

    student: str
    channels: int | None = None
    params: int | None = None
    macs: int | None = None
    file: Path | None = None
    bytes: int | None = None
    top1: tuple[float, str] | None = None
    problem: str = ""


def default_students(side: int) -> tuple[str, ...]:
    """Lists the students that are timed if the user names none.

    Args:
        side: Side of the images in pixels.
    """
    return SMALL if side <= SMALL_SIDE else LARGE


def check_students(names: Sequence[str], spec: StudentSpec) -> tuple[str, ...]:
    """Checks that the named students exist and gives each once.

    Args:
        names: The names in `--students`.
        spec: Their input and output.

    Raises:
        UserError: There is no such network; the message names all of them.
    """
    problems = [problem for name in dict.fromkeys(names) if (problem := _unknown(name, spec))]
    if problems:
        raise UserError("\n  ".join(["--students: " + problems[0], *problems[1:]]))
    return tuple(dict.fromkeys(names))


def _unknown(name: str, spec: StudentSpec) -> str | None:
    """Explains why a name is no network; None if it is one."""
    problem = model_problem(name, spec.allow_code)
    if problem is not None:
        alike = [row["name"] for row in listing.students() if row["name"].endswith(f"/{name}")]
        return f"expected FAMILY/NAME, got {name!r}; did you mean {' or '.join(alike)}?" if alike else problem
    if "NAMES" in discovery.header("family", family_of(name)).constants:
        return None
    try:
        parameters_of(name, spec)  # a family without a list knows a name when it builds it
    except NetworkError as error:
        return str(error) if str(error).startswith("unknown network") else None
    return None


def parameters_of(student: str, spec: StudentSpec) -> int:
    """Counts the parameters of a network for these images and classes.

    Raises:
        UserError: It cannot be built.
    """
    return count_parameters(_build(student, spec, _channels(student, spec)))


def export_candidate(
    student: str, spec: StudentSpec, folder: Path, *, largest_mb: float | None = None
) -> StudentCandidate:
    """Builds a student, exports it untrained and describes it.

    Latency depends on the weights only if values are too small for a normal float, which are slow on many
    processors. Fresh networks come near (the maps of a fresh efficientnet_b0 are around 1e-14), so the
    statistics of batch norm are taken from a batch of noise, which gives the maps the scale that training
    would.

    Args:
        student: `FAMILY/NAME`.
        spec: Its input and output.
        folder: Folder for the file.
        largest_mb: Largest file in MB of 1e6 bytes; a student whose weights alone are larger is not exported.

    Raises:
        UserError: A package is missing, or code is not allowed.
    """
    try:
        channels = _channels(student, spec)
        network = _build(student, spec, channels)
    except NetworkError as error:
        return StudentCandidate(student, problem=str(error).removeprefix(f"{student}: "))
    params = count_parameters(network)
    top1 = _published_top1(student)
    side = spec.side
    try:
        _calibrate_batch_norm(network, channels, side)
        macs = count_macs(network, channels, side, side)
    except (RuntimeError, ValueError, AssertionError) as error:  # whatever a network of any family raises
        why = str(error).strip().split("\n", 1)[0] or type(error).__name__
        return StudentCandidate(
            student, channels, params, top1=top1, problem=f"cannot take images of {side}×{side} pixels: {why}"
        )
    if largest_mb is not None and 4 * params / 1e6 > largest_mb:
        return StudentCandidate(student, channels, params, macs, top1=top1)
    file = folder / f"{student.replace('/', '-').replace(':', '-')}{onnx.SUFFIX}"
    images = InputSpec(channels, side, side, (0.5,) * channels, (0.25,) * channels)
    try:
        onnx.write(network, images, file, metadata={}, opset=spec.opset, task=task_of(spec.classes))
    except NetworkError as error:
        return StudentCandidate(student, channels, params, macs, top1=top1, problem=str(error))
    return StudentCandidate(student, channels, params, macs, file, file.stat().st_size, top1)


def _channels(student: str, spec: StudentSpec) -> int:
    """Gives the channels of its images: the data's own, or three if grey images are repeated, as in a run."""
    accepted = accepted_channels(student) & spec.accepted
    if spec.channels in accepted:
        return spec.channels
    if spec.channels == 1 and 3 in accepted:
        return 3
    takes = " or ".join(map(str, sorted(accepted_channels(student))))
    raise NetworkError(f"takes images of {takes} channels, the run has {spec.channels}")


def _build(student: str, spec: StudentSpec, channels: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        seeded(0, "weights of student")
        return build(
            student,
            num_classes=spec.classes,
            channels=channels,
            image_size=(spec.side, spec.side),
            allow_code=spec.allow_code,
        )


def _calibrate_batch_norm(network: nn.Module, channels: int, side: int) -> None:
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


def _published_top1(student: str) -> tuple[float, str] | None:
    family = discovery.load("family", family_of(student))
    if not hasattr(family, "published_top1"):
        return None
    top1: tuple[float, str] = family.published_top1(student.partition("/")[2])
    return top1
