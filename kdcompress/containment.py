"""The rule for files that a model, a cache or a run refers to: only regular files in its own folder count."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath

from kdcompress.errors import UserError


def contained_file(model: Path, location: str) -> Path:
    """Resolves the path of a file that a model keeps tensors in, and refuses one outside the model's folder.

    A model comes from anywhere, and what it names is read, or sent to other machines. A symbolic link is
    followed only as far as it stays inside the folder.

    Args:
        model: The model's file; the user named it, so a link here is followed wherever it leads.
        location: The path that the model gives, relative to the folder that its file really lies in.

    Returns:
        The path with every link resolved: open this one, and a link put there later changes nothing.

    Raises:
        UserError: The path is absolute or holds `..`, a link leads out of the folder, it is no regular file,
            or there is no such file.
    """
    folder = os.path.dirname(os.path.realpath(model))
    parts = PurePosixPath(location)
    refusal = (
        f"{model}: keeps tensors outside of its folder ({location!r}); copy the file itself there (cp -L)"
    )
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in location:
        raise UserError(refusal)
    path = os.path.realpath(os.path.join(folder, location))
    if os.path.commonpath([folder, path]) != folder:
        raise UserError(refusal)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(
            f"{model}: keeps tensors in {location!r}, and there is no such file beside it"
        ) from None
    except OSError as error:  # a loop of links, a folder that must not be entered
        raise UserError(
            f"{model}: keeps tensors in {location!r}, which cannot be read ({error.strerror}); "
            "copy the file itself there (cp -L)"
        ) from None
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{model}: keeps tensors in {location!r}, which is no regular file; "
            "copy the file itself there (cp -L)"
        )
    return Path(path)


def open_in_folder(path: Path, flags: int = os.O_RDONLY, *, folder: bool = True) -> int:
    """Opens a regular file, following no link and waiting for no pipe; returns the descriptor.

    For files that the program itself put into a cache or a run folder: it never makes links there, so one of
    them leads to a file that is somebody else's.

    Args:
        path: The file.
        flags: Of `os.open`; with `O_CREAT` it is created.
        folder: False: the folder that it lies in may be a link.

    Raises:
        OSError: It cannot be opened, is no regular file, or is reached through a link.
    """
    inner = os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if folder else 0)
    parent = os.open(path.parent, os.O_RDONLY | inner)
    try:
        descriptor = os.open(
            path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=parent
        )
    finally:
        os.close(parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor
