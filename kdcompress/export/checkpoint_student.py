"""Finds the student's network in a checkpoint of other training code and loads it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompress.atomic import sha256_of
from kdcompress.deploy.macs import count_parameters
from kdcompress.deploy.strip import fresh_student, load_strictly
from kdcompress.errors import WeightsError
from kdcompress.networks.build import accepted_channels, family_of
from kdcompress.networks.expected_keys import Pattern
from kdcompress.networks.foreign import StudentInCheckpoint, find_student
from kdcompress.networks.read_checkpoint import read_checkpoint

SCHEMA = "kdcompress.strip/1"
_SIDES = {"cifar": 32}
_SIDE = 224


@dataclass(frozen=True, slots=True)
class StripRequest:
    """Names the network in a checkpoint.

    Args:
        student: `FAMILY/NAME`; None: what the `config.json` beside the file says.
        at: Its place in the checkpoint; None: there is only one.
        drop: Modules among its layers that only training used.
        side: Side of its images in pixels; None: the default of its family.
        allow_code: True: a `python:` network may be built.
    """

    student: str | None
    at: str | None = None
    drop: tuple[str, ...] = ()
    side: int | None = None
    allow_code: bool = False


def find_student_in(source: Path, model: str, side: int, request: StripRequest) -> StudentInCheckpoint:
    """Finds the student in a checkpoint.

    Raises:
        UserError: No such network, or it is not in it, or not alone.
    """
    pattern = Pattern(model, image_size=(side, side), allow_code=request.allow_code)
    return find_student(
        read_checkpoint(source), pattern, source=str(source), at=request.at, drop=request.drop
    )


def load_student(
    found: StudentInCheckpoint,
    model: str,
    side: int,
    request: StripRequest,
    source: Path,
    *,
    channels: int | None = None,
) -> nn.Module:
    """Builds a network of the student's class and loads the tensors, all of them and no other.

    Args:
        found: The student.
        model: Its `FAMILY/NAME`.
        side: Pixels of its images.
        request: Says if a `python:` network may be built.
        source: The checkpoint, for the message.
        channels: C, where the tensors do not say.

    Raises:
        WeightsError: They do not fit strictly.
    """
    network = fresh_student(
        model,
        # Where its tensors do not say a number, its shapes do not follow it.
        num_classes=found.num_classes or 1,
        channels=channels or found.channels or max(accepted_channels(model)),
        image_size=(side, side),
        allow_code=request.allow_code,
    )
    own = network.state_dict()
    counters = {key: own[key] for key in own if key not in found.state}
    try:
        load_strictly(network, {**counters, **found.state}, str(source))
    except WeightsError as error:
        raise WeightsError(f"{error}; is it meant for another size of image than {side}×{side}?") from None
    return network.to(torch.float32).eval()


def strip_document(
    found: StudentInCheckpoint, model: str, network: nn.Module, source: Path
) -> dict[str, Any]:
    """Makes the document `kdcompress.strip/1`: the kept and the dropped tensors of a checkpoint."""
    cast = sorted(
        {
            str(tensor.dtype).removeprefix("torch.")
            for tensor in found.state.values()
            if tensor.is_floating_point() and tensor.dtype != torch.float32
        }
    )
    return {
        "schema": SCHEMA,
        "checkpoint": {"file": str(source), "sha256": sha256_of(source)},
        "student": model,
        "kept": {
            "at": found.at,
            "also_at": list(found.also_at),
            "tensors": len(network.state_dict()),
            "parameters": count_parameters(network),
            "classes": found.num_classes,
            "channels": found.channels,
            "counters_added": len(network.state_dict()) - len(found.state),
            "cast_from": cast,
        },
        "set_aside": list(found.set_aside),
        "dropped": [dataclasses.asdict(part) for part in found.remainder.dropped],
        "values": list(found.remainder.values),
    }


def default_side(model: str) -> int:
    """Returns the side of a network's images in pixels if it is not given; few networks depend on it."""
    return _SIDES.get(family_of(model), _SIDE)
