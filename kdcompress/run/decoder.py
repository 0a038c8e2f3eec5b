"""Decides what a run's training pictures are decoded by, and tells its sources."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdcompress.data import fast_views
from kdcompress.data.dataset import Data
from kdcompress.data.source import FolderSource
from kdcompress.errors import UserError
from kdcompress.recipe import AUTO, Recipe

KEY = "data.decoder"


def resolve_decoder(recipe: Recipe, data: Data) -> tuple[Recipe, str | None]:
    """Replaces `data.decoder: auto` by pillow or simplejpeg, by what is installed and where the pictures are.

    Args:
        recipe: Checked.
        data: Opened.

    Returns:
        The recipe, and a sentence for the user, or None.

    Raises:
        UserError: simplejpeg is requested, and it is not installed or there are no picture files.
    """
    setting = recipe.data.decoder
    if setting == "pillow":
        return recipe, None
    version = fast_views.version()
    in_files = any(isinstance(source, FolderSource) for source in _sources(data).values())
    if setting == "simplejpeg":
        if not in_files:
            raise UserError(f"{KEY}: simplejpeg, but {data.name} is no set of picture files; leave it out")
        if version is None:
            least = ".".join(map(str, fast_views.LEAST_VERSION))
            raise UserError(
                f"{KEY}: simplejpeg: needs the package simplejpeg, version {least} or later (pip install "
                f"'{fast_views.EXTRA}'); or set {KEY}=pillow"
            )
    if setting != AUTO:
        return recipe, None
    if not in_files:
        chosen, why = "pillow", f"{data.name} is no set of picture files"
    elif version is None:
        chosen, why = "pillow", f"simplejpeg is not installed (pip install '{fast_views.EXTRA}')"
    else:
        chosen, why = "simplejpeg", f"version {version} is installed"
    section = recipe.data.model_copy(update={"decoder": chosen})
    return recipe.replace(data=section), f"{KEY}: auto: {chosen}, since {why}"


def with_decoder(data: Data, decoder: str) -> Data:
    """Returns the data with training views decoded as the resolved recipe says."""
    if decoder != "simplejpeg":
        return data
    changed: dict[str, Any] = {
        name: dataclasses.replace(source, decoder="simplejpeg")
        for name, source in _sources(data).items()
        if isinstance(source, FolderSource)
    }
    extra = changed.pop("extra", None)
    if extra is not None:
        assert data.extra is not None
        changed["extra"] = dataclasses.replace(data.extra, source=extra)
    return dataclasses.replace(data, **changed)


def _sources(data: Data) -> dict[str, Any]:
    return {
        "train": data.train,
        "held_out": data.held_out,
        "test": data.test,
        "extra": None if data.extra is None else data.extra.source,
    }
