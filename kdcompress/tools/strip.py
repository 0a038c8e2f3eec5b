"""`strip`: the plain student of somebody else's checkpoint, and what was left behind."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompress.atomic import sha256_of
from kdcompress.deploy.formats import safetensors
from kdcompress.deploy.macs import count_parameters
from kdcompress.deploy.strip import fresh_student, load_strictly
from kdcompress.errors import UserError, WeightsError
from kdcompress.networks.build import accepted_channels, family_of
from kdcompress.networks.expected_keys import Pattern
from kdcompress.networks.foreign import Found, find
from kdcompress.networks.read_checkpoint import read_checkpoint
from kdcompress.run_folder import check_writable

SCHEMA = "kdcompress.strip/1"
_SIDES = {"cifar": 32}
_SIDE = 224


@dataclass(frozen=True, slots=True)
class Asked:
    """Which network of a checkpoint is meant.

    Args:
        student: `FAMILY/NAME`; None: what the `config.json` beside the file says.
        at: Where in the checkpoint it stands; None: there is only one.
        drop: Modules among its own that only training used.
        side: Pixels of its images; None: what is known of them elsewhere.
        allow_code: Whether a `python:` network may be built.
    """

    student: str | None
    at: str | None = None
    drop: tuple[str, ...] = ()
    side: int | None = None
    allow_code: bool = False


def strip(source: Path, out: Path, asked: Asked) -> dict[str, Any]:
    """Writes the plain student of a checkpoint as safetensors, and tells what was left behind.

    Args:
        source: A .safetensors file, or any other name: a pickle of tensors and plain containers.
        out: The .safetensors to write.
        asked: Which network is meant.

    Returns:
        The document (`kdcompress.strip/1`).

    Raises:
        UserError: The student cannot be found, or not be written there.
    """
    if out.suffix != safetensors.SUFFIX:
        raise UserError(f"--out {out}: expected a name that ends in {safetensors.SUFFIX}")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name the file to write")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out}: is the checkpoint itself, which stays as it is; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    check_writable(out.parent)
    assert asked.student is not None
    side = asked.side or usual_side(asked.student)
    found = found_in(source, asked.student, side, asked)
    network = loaded(found, asked.student, side, asked, source)
    safetensors.write_tensors(network, out)
    return {
        **told(found, asked.student, network, source),
        "file": str(out),
        "sha256": sha256_of(out),
        "bytes": out.stat().st_size,
    }


def found_in(source: Path, model: str, side: int, asked: Asked) -> Found:
    """The student in a checkpoint.

    Raises:
        UserError: No such network, or it is not in it, or not alone.
    """
    pattern = Pattern(model, image_size=(side, side), allow_code=asked.allow_code)
    return find(read_checkpoint(source), pattern, source=str(source), at=asked.at, drop=asked.drop)


def loaded(
    found: Found, model: str, side: int, asked: Asked, source: Path, *, channels: int | None = None
) -> nn.Module:
    """A fresh network of the student's class that holds the tensors, all of them and no other.

    Args:
        found: The student.
        model: Its `FAMILY/NAME`.
        side: Pixels of its images.
        asked: Whether a `python:` network may be built.
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
        allow_code=asked.allow_code,
    )
    own = network.state_dict()
    counters = {key: own[key] for key in own if key not in found.state}
    try:
        load_strictly(network, {**counters, **found.state}, str(source))
    except WeightsError as error:
        raise WeightsError(f"{error}; is it meant for another size of image than {side}×{side}?") from None
    return network.to(torch.float32).eval()


def told(found: Found, model: str, network: nn.Module, source: Path) -> dict[str, Any]:
    """What was kept of a checkpoint and what was left behind: the document `kdcompress.strip/1`."""
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
        "dropped": [dataclasses.asdict(part) for part in found.left.dropped],
        "values": list(found.left.values),
    }


def usual_side(model: str) -> int:
    """Pixels of a network's images where nobody says them; few networks have tensors that follow it."""
    return _SIDES.get(family_of(model), _SIDE)
