"""Expands `~` in the paths that a user writes into options, recipes and environment variables."""

from __future__ import annotations

from pathlib import Path

from kdcompress.errors import UserError


def expand_home(path: str | Path, key: str) -> Path:
    """Replaces a leading `~` or `~NAME` by a home folder.

    Args:
        path: As the user wrote it.
        key: Key, option or variable that it is the value of, for the message.

    Raises:
        UserError: There is no such user, or the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        start = Path(path).parts[0]
        raise UserError(f"{key}: {path}: {start!r} is no home folder here; write the whole path") from None
