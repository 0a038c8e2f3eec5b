"""Prepared teachers, kept in the run folder and for every later run with the same inputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from kdcompress.atomic import write_bytes, write_json
from kdcompress.data.cache import cache_folder
from kdcompress.errors import RunFolderError
from kdcompress.recipe import Recipe

SCHEMA = "kdcompress.teacher/1"
TEACHER = "teacher"
FILE = f"{TEACHER}.safetensors"


@dataclass(frozen=True, slots=True)
class Kept:
    """A prepared teacher as it is kept.

    Args:
        state: Its state dictionary.
        note: What was recorded with it: how it was made and what it scored.
    """

    state: dict[str, Tensor]
    note: dict[str, Any]


def key(
    recipe: Recipe, *, listing_sha256: str, weights_sha256: str | None, surroundings: dict[str, Any]
) -> str:
    """A hash of everything that a prepared teacher depends on, and of nothing else.

    Args:
        recipe: Its teacher, data, optim and train sections count; the student and the method do not.
        listing_sha256: Of the data.
        weights_sha256: Of the weights that it starts from.
        surroundings: Versions, device, precision, processes.
    """
    assert recipe.teacher is not None
    teacher = recipe.teacher.model_dump(mode="json", exclude={"min_top1", "weights"})
    parts = [teacher, *of_recipe(recipe), listing_sha256, weights_sha256, surroundings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def of_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    """What of the data, train and optim sections a training before the student's depends on."""
    # Only the student's batches mix pools.
    data = recipe.data.model_dump(mode="json", exclude={"root", "workers", "labelled_share", "extra"})
    # How the student is chosen and watched has no part in the teacher.
    train = recipe.train.model_dump(
        mode="json", exclude={"epochs", "ema", "ship", "compile", "checkpoint_minutes", "tensorboard"}
    )
    return [data, train, recipe.optim.model_dump(mode="json")]


def find(checkpoints: Path, key: str, stem: str = TEACHER) -> Kept | None:
    """What this run keeps under that name, or another run from the same inputs; None: it must be prepared."""
    for folder in (checkpoints, _shared(key)):
        kept = _read(folder, key, stem)
        if kept is not None:
            return kept
    return None


def keep(
    checkpoints: Path, key: str, state: dict[str, Tensor], note: dict[str, Any], stem: str = TEACHER
) -> Kept:
    """Stores a prepared teacher, or what was prepared beside it, in the run folder and for other runs."""
    for folder in (checkpoints, _shared(key)):
        store(folder, key, state, note, stem)
    return Kept(state, note)


def store(
    folder: Path, key: str, state: dict[str, Tensor], note: dict[str, Any], stem: str = TEACHER
) -> None:
    """Writes the weights, then the note beside them, which vouches for the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save({k: v.contiguous() for k, v in state.items()}, {"format": "pt"})
    write_bytes(folder / f"{stem}.safetensors", content)
    digest = hashlib.sha256(content).hexdigest()
    write_json(folder / f"{stem}.json", {"schema": SCHEMA, "key": key, "sha256": digest, **note})


def least_top1(num_classes: int) -> float:
    """The held-out top-1 that a teacher must reach unless the recipe says otherwise (0 to 1).

    Three times chance, and at most halfway from chance to certainty: 0.3 for ten classes, 0.003 for a
    thousand, 0.75 for two.
    """
    chance = 1 / num_classes
    return min(3 * chance, (1 + chance) / 2)


def fill(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a kept teacher, strictly.

    Raises:
        RunFolderError: It does not fit its own network: the file was changed.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).split("\n", 1)[0]
        raise RunFolderError(
            f"the kept teacher does not fit its network ({reason}); use --overwrite"
        ) from None


def _shared(key: str) -> Path:
    return cache_folder() / "teachers" / key


def _read(folder: Path, key: str, stem: str) -> Kept | None:
    note_file, file = folder / f"{stem}.json", folder / f"{stem}.safetensors"
    if not note_file.exists() or not file.exists():
        return None
    # A damaged note, one of another key, or a file that was cut short is as good as none: the teacher is
    # prepared again.
    try:
        note = json.loads(note_file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(note, dict) or note.get("schema") != SCHEMA or note.get("key") != key:
        return None
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != note.get("sha256"):
        return None
    return Kept(safetensors.torch.load(content), note)
