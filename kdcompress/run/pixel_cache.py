"""Decides on the pixel cache of a run, fills it before the training, and gives the run its pictures."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from kdcompress.data.dataset import Data
from kdcompress.data.pixel_cache import Kind, PictureFormat, PixelCache, choose_kind, estimate_bytes
from kdcompress.data.source import FolderSource
from kdcompress.errors import DataError, KdcompressError, UserError
from kdcompress.recipe import AUTO, Recipe
from kdcompress.run.context import Run

KEY = "data.pixel_cache"
LEAST_EPOCHS = 3
"""Epochs from which `auto` turns the cache on: filling it takes as long as decoding for one epoch."""


def resolve_pixel_cache(recipe: Recipe, data: Data) -> tuple[Recipe, str | None]:
    """Replaces `data.pixel_cache: auto` by off, raw or jpeg, from the recipe and the pictures alone.

    Args:
        recipe: Its epochs are resolved.
        data: Opened.

    Returns:
        The recipe, and a sentence for the user, or None.

    Raises:
        UserError: A cache is requested for data without training images in files.
    """
    setting = recipe.data.pixel_cache
    sources = list(_sources(data))
    if setting in ("raw", "jpeg") and not sources:
        raise UserError(f"{KEY}: {setting}, but {data.name} is held in memory anyway; leave it out")
    if setting != AUTO:
        return recipe, None
    kind: Kind | None = None
    if not sources:
        why = f"off, since {data.name} is held in memory anyway"
    elif recipe.epochs < LEAST_EPOCHS:
        why = f"off, since a training of {recipe.epochs} epochs would not gain from it"
    else:
        kind = choose_kind(sources[0])
        why = f"{kind}, by the size of the pictures" if kind else "off, since the set is too large; see jpeg"
    section = recipe.data.model_copy(update={"pixel_cache": kind or "off"})
    return recipe.replace(data=section), f"{KEY}: auto: {why}"


def with_pixel_cache(run: Run) -> Run:
    """Fills the pixel cache that the recipe names, and returns the run with training images from it.

    Every process takes part. What an earlier run has stored is used; the size is announced before anything is
    stored.

    A cache that cannot be written costs a warning: its pictures are then made from the files when they are
    needed, with the same pixels.

    Raises:
        UserError: The disk has not enough room.
        DataError: A file cannot be read any more, or was changed since it was listed.
    """
    kind = run.recipe.data.pixel_cache
    if kind not in ("raw", "jpeg"):
        return run
    data = run.data
    if isinstance(data.train, FolderSource):
        data = dataclasses.replace(data, train=_cached(run, data.train, kind))
    extra = data.extra
    if extra is not None and isinstance(extra.source, FolderSource):
        cached = _cached(run, extra.source, kind)
        data = dataclasses.replace(data, extra=dataclasses.replace(extra, source=cached))
    return dataclasses.replace(run, data=data)


def _sources(data: Data) -> Iterator[FolderSource]:
    for source in (data.train, data.extra.source if data.extra else None):
        if isinstance(source, FolderSource):
            yield source


def _cached(run: Run, source: FolderSource, kind: Kind) -> FolderSource:
    cache = PixelCache(source, PictureFormat.of(source, kind))
    processes = run.processes
    cached = cache.open()
    assert cached.store is not None
    missing = cached.store.missing
    _announce(run, cache, len(missing), kind)
    processes.barrier()  # all have looked before the first one stores
    # The processes of a node share its cache folder, and fill it together. Afterwards each one looks for what
    # the processes of another node have filled into theirs.
    for rank, world in ((processes.rank, processes.world), (0, 1)):
        if missing:
            _fill(run, cache, missing, rank, world)
        if world > 1:
            processes.barrier()
        if missing:
            cached = cache.open()
            assert cached.store is not None
            missing = cached.store.missing
    return cached


def _fill(run: Run, cache: PixelCache, missing: list[int], rank: int, world: int) -> None:
    try:
        with run.progress.counter() as tell:
            cache.fill(missing, tell, rank=rank, world=world)
    except DataError:
        raise
    except KdcompressError as error:
        run.progress.warn(
            f"{KEY}: {error}; what is not in the cache is made from the files at every epoch, with the same "
            f"pixels. Set KDCOMPRESS_CACHE to another folder to keep it"
        )


def _announce(run: Run, cache: PixelCache, missing: int, kind: Kind) -> None:
    """Writes the size of the cache, and refuses one that the disk has no room for."""
    count = len(cache.source)
    begin = f"Pixel cache: {count:,} pictures of side {cache.form.side} as {kind} in {cache.folder}"
    if missing == 0:
        run.progress.say(f"{begin}, filled already")
        return
    size = estimate_bytes(cache.source, kind)
    needed = size * missing // count
    run.progress.say(f"{begin}: about {_gb(size)}, {_gb(needed)} of it to be filled now")
    free = shutil.disk_usage(_existing(cache.folder)).free
    if needed > free:
        raise UserError(
            f"{KEY}: {kind}: {cache.folder} needs about {_gb(needed)} and has {_gb(free)} free; make room, "
            f"set KDCOMPRESS_CACHE to another disk, or --set {KEY}=off"
        )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def _gb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e8 else f"{count / 1e9:,.1f} GB"
