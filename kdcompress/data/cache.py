"""The cache folder: files that can be computed or downloaded again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from kdcompress.user_paths import expand_home


def cache_folder() -> Path:
    """Returns the folder of files that can be made or fetched again: data sets, weights, cached results.

    Returns:
        `$KDCOMPRESS_CACHE` if it is set and not empty (`~` expanded), else the user's cache folder for
        kdcompress. It is not created here: whoever writes makes the folder below it that it needs.
    """
    named = os.environ.get("KDCOMPRESS_CACHE")
    if named:
        return expand_home(named, "KDCOMPRESS_CACHE")
    return Path(platformdirs.user_cache_dir("kdcompress"))
