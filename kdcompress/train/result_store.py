"""Results of finished trainings and selections, stored in the run folder and in the user cache.

A result is a set of tensors with a note. It is stored under a key, a hash of everything it depends on: a
later run with the same inputs finds it in the cache, and a resumed run finds it in its own folder.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdcompress.atomic import write_bytes, write_json
from kdcompress.data.cache import cache_folder
from kdcompress.document_schemas import TeacherNote
from kdcompress.documents import read_bytes, read_document
from kdcompress.errors import KdcompressError, RunFolderError, UserError
from kdcompress.networks.load_state import load_state
from kdcompress.recipe import Recipe, write_notice
from kdcompress.train.processes import Processes

SCHEMA = "kdcompress.teacher/1"
RULES = 3
"""Version of the keys; increase it when equal inputs give another result, so that old ones are not reused."""
TEACHER = "teacher"
_MOST_BYTES = 1 << 36


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result as it is stored.

    Args:
        state: Its tensors by name, such as a state dictionary.
        note: Facts about it: how it was made and what it scored.
        key: Hash of everything it depends on.
        sha256: SHA-256 of its file; goes into the keys of the results that build on this one.
    """

    state: dict[str, Tensor]
    note: dict[str, Any]
    key: str
    sha256: str


def result(
    folder: Path,
    stem: str,
    key: str,
    processes: Processes,
    make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
) -> StoredResult:
    """Returns the stored result of a key, or makes and stores it; the same in all processes.

    Args:
        folder: The run's `checkpoints/`.
        stem: Name of the files, without suffix.
        key: From `key_of`.
        processes: The first of them reads and writes.
        make: Returns the tensors and the note; called in all processes, and in none if the result is stored.
    """
    stored = find(folder, key, stem) if processes.first else None
    if processes.broadcast(stored is not None):
        if stored is not None:
            write_stored(folder, stem, stored)
        return _shared_by(processes, stored)
    if processes.first:
        _warn_of_cache(key)
    state, note = make()
    if processes.first:
        stored = keep(folder, key, state, note, stem)
    return _shared_by(processes, stored)


def key_of(*parts: Any) -> str:
    """Returns a hash of everything that a result depends on.

    Args:
        parts: JSON values.
    """
    return hashlib.sha256(json.dumps([RULES, *parts], sort_keys=True).encode()).hexdigest()[:32]


def teacher_key(
    recipe: Recipe, *, listing_sha256: str, weights_sha256: str | None, environment: dict[str, Any]
) -> str:
    """Returns the key of a trained or fine-tuned teacher.

    Args:
        recipe: Its teacher, data, optim and train sections count; the student and the method do not.
        listing_sha256: Hash of the data.
        weights_sha256: Hash of the weights that it starts from.
        environment: Versions, device, precision, processes.
    """
    assert recipe.teacher is not None
    teacher = recipe.teacher.model_dump(
        mode="json", exclude={"min_top1", "weights", "sha256", "pretrained", "cache"}
    )
    return key_of(teacher, *recipe_parts(recipe), listing_sha256, weights_sha256, environment)


def recipe_parts(recipe: Recipe) -> list[dict[str, Any]]:
    """Returns the parts of the recipe that trainings before the student's depend on."""
    # Only the student's batches mix pools.
    data = recipe.data.model_dump(mode="json", exclude={"root", "workers", "labelled_share", "extra"})
    if data["decoder"] == "pillow":
        del data["decoder"]  # the default, from before there was the key
    # How the student is chosen and logged has no part in the teacher.
    train = recipe.train.model_dump(
        mode="json",
        exclude={"epochs", "ema", "ship", "compile", "cuda_graphs", "checkpoint_minutes", "tensorboard"},
    )
    if train["evaluate_every"] == 1:
        del train["evaluate_every"]  # the default, from before there was the key
    return [data, train, recipe.optim.model_dump(mode="json")]


def find(folder: Path, key: str, stem: str = TEACHER) -> StoredResult | None:
    """Reads a result from the run folder or the user cache; None: there is no whole one of this key."""
    for place in (folder, _in_cache(key)):
        stored = read_stored(place, key, stem)
        if stored is not None:
            return stored
    return None


def keep(
    folder: Path, key: str, state: dict[str, Tensor], note: dict[str, Any], stem: str = TEACHER
) -> StoredResult:
    """Writes a result to the run folder and to the user cache."""
    content = content_of(state)
    stored = StoredResult(state, note, key, hashlib.sha256(content).hexdigest())
    write_stored(folder, stem, stored)
    # A cache that cannot be written costs the next run this training, and nothing else.
    with suppress(OSError, KdcompressError):
        write_stored(_in_cache(key), stem, stored)
    return stored


def _warn_of_cache(key: str) -> None:
    """Says before the work is done that its result will not be cached, if that is so."""
    folder = _in_cache(key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        write_notice(
            f"{folder}: the cache cannot be written ({error.strerror}); this run is not affected, but later "
            "ones train this again. Set KDCOMPRESS_CACHE to another folder to keep it"
        )


def fill(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a stored teacher into its network, strictly.

    Raises:
        RunFolderError: It does not fit its own network: the file was changed.
    """
    try:
        load_state(network, state)
    except RuntimeError as error:
        reason = str(error).split("\n", 1)[0]
        raise RunFolderError(
            f"the stored teacher does not fit its network ({reason}); use --overwrite"
        ) from None


def _shared_by(processes: Processes, stored: StoredResult | None) -> StoredResult:
    shared = processes.broadcast(stored)
    assert isinstance(shared, StoredResult)
    return shared


def _in_cache(key: str) -> Path:
    return cache_folder() / "teachers" / key


def content_of(state: dict[str, Tensor]) -> bytes:
    """Returns the content of the file that holds tensors."""
    return safetensors.torch.save({k: v.contiguous() for k, v in state.items()}, {"format": "pt"})


def write_stored(folder: Path, stem: str, stored: StoredResult) -> None:
    """Writes the tensors, then the note beside them, which holds their hash."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{stem}.safetensors", content_of(stored.state))
    note = {"schema": SCHEMA, "key": stored.key, "sha256": stored.sha256, **stored.note}
    write_json(folder / f"{stem}.json", note)


def read_stored(folder: Path, key: str, stem: str) -> StoredResult | None:
    """Reads a result of a folder; None: there is no whole one of this key."""
    note_file, file = folder / f"{stem}.json", folder / f"{stem}.safetensors"
    try:
        if not note_file.is_file() or not file.is_file():
            return None
        content = read_bytes(file, _MOST_BYTES)
    except (OSError, UserError):
        return None  # a cache that cannot be read is none
    # A damaged note, one of another key, or a file that was cut short counts as none.
    try:
        note = read_document(note_file, TeacherNote)
    except UserError:
        return None
    if note["schema"] != SCHEMA or note["key"] != key:
        return None
    digest = hashlib.sha256(content).hexdigest()
    if digest != note.get("sha256"):
        return None
    own = {name: value for name, value in note.items() if name not in ("schema", "key", "sha256")}
    try:
        state = safetensors.torch.load(content)
    except SafetensorError:
        return None
    broken = [name for name, value in state.items() if value.is_floating_point() and not _is_finite(value)]
    if broken:
        write_notice(
            f"{file}: {broken[0]} holds values that are not finite, so it is not used and made again; if "
            "this happens again, the training diverges: lower teacher.lr or set train.precision=fp32"
        )
        return None
    return StoredResult(state, own, key, digest)


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.float().isfinite().all())
