"""The folder of one run: who may use it, which recipe it belongs to, and whether it is finished."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kdcompress.atomic import sha256_of, translated, write_json, write_text
from kdcompress.documents import read_document
from kdcompress.errors import KdcompressError, RunFolderError, UserError
from kdcompress.recipe import Recipe, load_recipe
from kdcompress.schemas.run import Manifest

MANIFEST_SCHEMA = "kdcompress.manifest/1"
_FILES = ("recipe.yaml", "manifest.json", "results.json", "log.jsonl", "steps.jsonl", "seeds.json")
"""Files of a run that a resume reads or appends to, beside those in `checkpoints/`."""
_FOLDERS = ("checkpoints", "tensorboard", "baseline", "seeds", "failed")
"""Folders of a run that a resume writes into."""


class RunFolder:
    """A run's folder.

    Args:
        path: The folder; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def checkpoints(self) -> Path:
        """Folder with all that a resume needs."""
        return self.path / "checkpoints"

    def check(self, resume: bool, overwrite: bool, seeds: bool = False) -> None:
        """Refuses an existing run unless an option allows it; writes nothing.

        Args:
            resume: True continues it.
            overwrite: True replaces it.
            seeds: True if the folder is for the runs of several seeds.

        Raises:
            RunFolderError: The folder holds a run, or something that is none.
            UserError: It cannot be written to.
        """
        path = self.path
        check_writable(path)
        entries = [p for p in path.iterdir() if p.name != ".lock"] if path.is_dir() else []
        if entries and not self._is_run():
            raise RunFolderError(
                f"{path}: holds files that are no run of kdcompress; choose another folder with --out"
            )
        if entries and resume:
            self._check_contained()
        if entries and not (resume or overwrite):
            raise RunFolderError(
                f"{path}: holds a run already; go on with --resume, or replace it with --overwrite"
            )

        if entries and resume and (path / "seeds").is_dir() and not seeds:
            raise RunFolderError(f"{path}: holds the runs of several seeds; go on with --resume --seeds N")
        if entries and resume and (path / "log.jsonl").exists() and seeds:
            raise RunFolderError(f"{path}: holds a single run; choose another folder for --seeds with --out")

    def _check_contained(self) -> None:
        """Checks that what a resume reads, appends to or writes into is in the run folder itself.

        Raises:
            RunFolderError: A link is among it, or something that is no regular file or no folder.
        """
        seeds = [run for run in sorted(self.path.glob("seeds/*")) if run.name.isdecimal()]
        for run in (self.path, *seeds, *(run / "baseline" for run in (self.path, *seeds))):
            for folder in (run, *(run / name for name in _FOLDERS), *sorted(run.glob("tensorboard/*/"))):
                if folder != self.path:
                    _check_kind(folder, stat.S_IFDIR, "folder")
            for path in (*(run / name for name in _FILES), *sorted(run.glob("checkpoints/*"))):
                _check_kind(path, stat.S_IFREG, "regular file")

    def has_saved(self) -> bool:
        """Tells if a resume would find something: a checkpoint, or a finished training."""
        return any(self.path.glob("**/checkpoints/*"))

    def recorded_recipe(self, allow_code: bool) -> Recipe | None:
        """Returns the resolved recipe of the run in this folder, or None if there is none."""
        file = self.path / "recipe.yaml"
        return load_recipe(str(file), allow_code=allow_code) if file.exists() else None

    def clear(self) -> None:
        """Removes the run, but not the lock that is held on it."""
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.name == ".lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder for this process, creating it; the lock goes with the process, however it ends.

        Raises:
            RunFolderError: Another process holds it.
            UserError: It cannot be created.
        """
        create_folder(self.path)
        with _open_lock(self.path / ".lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(f"{self.path}: another process is running in it") from None
            yield

    def begin(self, recipe: Recipe) -> None:
        """Writes the resolved recipe."""
        self.checkpoints.mkdir(exist_ok=True)
        write_text(self.path / "recipe.yaml", recipe.to_yaml())

    def finish(self, manifest: dict[str, Any], files: list[str], *, done: bool = True) -> None:
        """Writes the manifest with the hashes of the files.

        Args:
            manifest: Its other entries.
            files: Names in the folder.
            done: True if the run is complete, so that a resume does nothing.
        """
        hashes = self._hashes(files)
        write_json(
            self.path / "manifest.json",
            {"schema": MANIFEST_SCHEMA, "finished": done, **manifest, "files": hashes},
        )

    def update_manifest_hashes(self, written: list[str], removed: Collection[str] = ()) -> None:
        """Puts the hashes of files that were written again into the manifest, if there is one.

        Args:
            written: Names in the folder.
            removed: Names of files that no longer exist.
        """
        file = self.path / "manifest.json"
        if file.exists():
            manifest = _manifest(file)
            kept = {name: entry for name, entry in manifest.get("files", {}).items() if name not in removed}
            write_json(file, {**manifest, "files": {**kept, **self._hashes(written)}})

    def finished(self) -> dict[str, Any] | None:
        """Returns the manifest of a finished run with unchanged files, or None if it is not finished.

        Raises:
            RunFolderError: A file was changed or is gone.
        """
        file = self.path / "manifest.json"
        if not file.exists():
            return None
        manifest = _manifest(file)
        if not manifest.get("finished"):
            return None
        for name, entry in manifest.get("files", {}).items():
            path = self.path / name
            if not path.is_file() or sha256_of(path) != entry["sha256"]:
                what = "has changed" if path.exists() else "is gone"
                raise RunFolderError(f"{path}: {what} since the run; start again with --overwrite")
        return manifest

    def _hashes(self, names: list[str]) -> dict[str, dict[str, Any]]:
        paths = {name: self.path / name for name in names}
        return {n: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for n, path in paths.items()}

    def _is_run(self) -> bool:
        return any(
            (self.path / name).exists() for name in ("recipe.yaml", "checkpoints", "seeds", "seeds.json")
        )


def _check_kind(path: Path, kind: int, name: str) -> None:
    """Checks that a path of a run, if it exists, is no link and of a kind (`stat.S_IFREG`, `S_IFDIR`)."""
    if not os.path.lexists(path):
        return
    found = stat.S_IFMT(os.lstat(path).st_mode)
    if found != kind:
        what = "is a link" if found == stat.S_IFLNK else f"is no {name}"
        raise RunFolderError(f"{path}: {what}; put the {name} itself there, or start again with --overwrite")


def _open_lock(path: Path) -> BinaryIO:
    """Opens the lock file; a link that leads out of the folder is not followed, a pipe not waited for.

    Raises:
        RunFolderError: It is a link.
        UserError: It cannot be written.
    """
    if path.is_symlink():
        raise RunFolderError(f"{path}: is a link; remove it")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with translated(path):
        return open(os.open(path, flags, 0o666), "r+b", buffering=0)


def check_writable(path: Path) -> None:
    """Checks that a folder can be written to or created; creates nothing.

    Raises:
        UserError: It cannot.
    """
    try:
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
        longest = os.pathconf(nearest if nearest.is_dir() else nearest.parent, "PC_NAME_MAX")
    except OSError as error:
        raise UserError(f"{path}: cannot be a folder ({error.strerror}); choose another with --out") from None
    _check_text(path)
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: has a NUL character in it; choose another folder with --out")
    if any(len(os.fsencode(part)) > longest for part in path.parts):
        raise UserError(f"{path}: cannot be a folder (File name too long); choose another with --out")
    if not nearest.is_dir():
        raise UserError(f"{path}: cannot be a folder, since {nearest} is a file; choose another with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written to; choose another folder with --out")


def _check_text(path: Path) -> None:
    """Refuses a path that is no text: runtimes cannot open its files, and no document can name them.

    Raises:
        UserError: It is not in UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{path}: is not UTF-8 text; choose another folder with --out") from None


def create_folder(path: Path, option: str = "--out") -> None:
    """Creates a folder and its parents, if they are not there.

    Args:
        path: Of the folder.
        option: The option that names it, for the message.

    Raises:
        UserError: No folder can be made there.
        WorldError: The disk is full.
    """
    _check_text(path)
    try:
        with translated(path):
            path.mkdir(parents=True, exist_ok=True)
    except KdcompressError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        why = f" ({cause.strerror})" if isinstance(cause, OSError) else ""
        raise UserError(f"{path}: cannot be written to{why}; choose another folder with {option}") from None


def same_recipe(recorded: Recipe, requested: Recipe, path: Path) -> None:
    """Checks that a resume goes on with the recipe that the run began with.

    Raises:
        RunFolderError: It differs; the message lists where.
    """
    before, now = _flat(recorded.model_dump(mode="json")), _flat(requested.model_dump(mode="json"))
    differing = [
        f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        listed = "\n  ".join(differing)
        raise RunFolderError(
            f"{path}: holds a run of another recipe; choose another --out, or --overwrite\n  {listed}"
        )


def _manifest(file: Path) -> dict[str, Any]:
    return dict(read_document(file, Manifest, advice="start again with --overwrite", failure=RunFolderError))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        pairs = (_flat(v, f"{prefix}.{k}" if prefix else k).items() for k, v in value.items())
        return {key: leaf for items in pairs for key, leaf in items}
    return {prefix: value}
