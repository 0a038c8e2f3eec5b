"""Results of finished trainings and selections, stored in the run folder and in the user cache.

A result is a set of tensors with a note. It is stored under a key, a hash of everything it depends on: a
later run with the same inputs finds it in the cache, and a resumed run finds it in its own folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdcompress.atomic import write_bytes, write_json
from kdcompress.containment import open_in_folder
from kdcompress.data.cache import cache_folder
from kdcompress.documents import read_document
from kdcompress.errors import KdcompressError, RunFolderError, UserError
from kdcompress.networks.load_state import load_state
from kdcompress.recipe import Recipe, write_notice
from kdcompress.schemas.cache import TeacherNote
from kdcompress.train.processes import Processes

SCHEMA = "kdcompress.teacher/2"
_WITHOUT_HASH = "kdcompress.teacher/1"
"""Notes of before the hash over their own facts; they are still taken."""
RULES = 3
"""Version of the keys; increase it when equal inputs give another result, so that old ones are not reused."""
TEACHER = "teacher"
_MOST_HEADER_BYTES = 16 << 20
"""Of the list of tensors at the beginning of a file."""


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


ResultCheck = Callable[[StoredResult], bool]


def result(
    folder: Path,
    stem: str,
    key: str,
    processes: Processes,
    make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
    fits: ResultCheck | None = None,
) -> StoredResult:
    """Returns the stored result of a key, or makes and stores it; the same in all processes.

    Args:
        folder: The run's `checkpoints/`.
        stem: Name of the files, without suffix.
        key: From `key_of`.
        processes: The first of them reads and writes.
        make: Returns the tensors and the note; called in all processes, and in none if the result is stored.
        fits: See `find`.
    """
    stored = find(folder, key, stem, fits) if processes.first else None
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
    train["precision"] = "auto"  # what it comes to on this device is part of the environment
    if train["evaluate_every"] == 1:
        del train["evaluate_every"]  # the default, from before there was the key
    return [data, train, recipe.optim.model_dump(mode="json")]


def find(folder: Path, key: str, stem: str = TEACHER, fits: ResultCheck | None = None) -> StoredResult | None:
    """Reads a result from the run folder or the user cache; None: there is no whole one of this key.

    Args:
        folder: The run's `checkpoints/`.
        key: From `key_of`.
        stem: Name of the files, without suffix.
        fits: Returns True if a result has the tensors and facts that its user reads. One that has not was
            written by somebody else: it is left out, with a note on stderr. None: any will do.
    """
    for place in (folder, _in_cache(key)):
        stored = read_stored(place, key, stem)
        if stored is None:
            continue
        if fits is None or fits(stored):
            return stored
        write_notice(
            f"{place / stem}.safetensors: its tensors are not those of this run, so it is not used and made "
            "again"
        )
    return None


def fits_network(network: nn.Module) -> ResultCheck:
    """Returns a check that a result holds the state dictionary of a network: names, shapes and types."""
    own = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
    return lambda stored: {name: (value.shape, value.dtype) for name, value in stored.state.items()} == own


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
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "it is a link")
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
    """Writes the tensors, then the note beside them, which holds their hash and its own.

    Raises:
        UserError: The folder is a link, or cannot be written to.
        WorldError: The disk is full or fails.
    """
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link, so nothing is written there; remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{stem}.safetensors", content_of(stored.state))
    hashes = {"sha256": stored.sha256, "facts_sha256": _hash_of_facts(stored.note)}
    write_json(folder / f"{stem}.json", {"schema": SCHEMA, "key": stored.key, **hashes, **stored.note})


def read_stored(folder: Path, key: str, stem: str) -> StoredResult | None:
    """Reads a result of a folder; None: there is none of this key that is whole and behind no link."""
    file = folder / f"{stem}.safetensors"
    facts = _read_note(folder / f"{stem}.json", key)
    content = None if facts is None else _read_tensors(file)
    if facts is None or content is None:
        return None
    digest = hashlib.sha256(content).hexdigest()
    if digest != facts.pop("sha256"):
        return None
    try:
        state = safetensors.torch.load(content)
    except (SafetensorError, KeyError):
        return None  # KeyError: a type that this torch has not
    broken = [name for name, value in state.items() if value.is_floating_point() and not _is_finite(value)]
    if broken:
        write_notice(
            f"{file}: {broken[0]} holds values that are not finite, so it is not used and made again; if "
            "this happens again, the training diverges: lower teacher.lr or set train.precision=fp32"
        )
        return None
    return StoredResult(state, facts, key, digest)


def _read_note(file: Path, key: str) -> dict[str, Any] | None:
    """Returns the facts of a note and the tensors' `sha256`; None: it is damaged, or of another key."""
    try:
        note = dict(read_document(file, TeacherNote, links=False))
    except UserError:
        return None
    schema, own_key = note.pop("schema"), note.pop("key")
    if schema not in (SCHEMA, _WITHOUT_HASH) or own_key != key:
        return None
    own_hash = note.pop("facts_sha256", None)
    facts = {name: value for name, value in note.items() if name != "sha256"}
    return note if schema == _WITHOUT_HASH or own_hash == _hash_of_facts(facts) else None


def _hash_of_facts(facts: dict[str, Any]) -> str:
    # Read once as JSON: there, keys are text, and sorted as such.
    return hashlib.sha256(json.dumps(json.loads(json.dumps(facts)), sort_keys=True).encode()).hexdigest()


def _read_tensors(path: Path) -> bytes | None:
    """Reads a safetensors file; None: it cannot be read, or is not as long as its list of tensors says."""
    try:
        with open(open_in_folder(path), "rb") as file:
            if _length_by_header(file) != os.fstat(file.fileno()).st_size:
                return None
            file.seek(0)
            return file.read()
    except OSError:
        return None


def _length_by_header(file: BinaryIO) -> int | None:
    """Returns the bytes that a safetensors file has by the list at its beginning; None: it has no such list.

    A file that grew by gigabytes of zeros on a damaged disk is so known before it is read.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > _MOST_HEADER_BYTES:
        return None
    try:
        entries = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return 8 + length + max(map(int, ends), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.float().isfinite().all())
