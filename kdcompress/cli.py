"""The command line: collects the commands and maps errors to messages and exit codes."""

from __future__ import annotations

import errno
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from kdcompress import __version__
from kdcompress.commands.bench import bench
from kdcompress.commands.compare import compare
from kdcompress.commands.distill import distill
from kdcompress.commands.evaluate import evaluate
from kdcompress.commands.export import export
from kdcompress.commands.listings import datasets, methods, recipes, students
from kdcompress.commands.pages import report, show
from kdcompress.commands.strip import strip
from kdcompress.commands.suggest import suggest
from kdcompress.errors import Interrupted, KdcompressError, UserError, WorldError


class Commands(click.Group):
    """Runs a command and maps its errors to exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; prints one message for a known error and a traceback for a bug."""
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except click.MissingParameter as error:
            if error.param is None or error.param.name != "recipe":
                raise
            hint = "`kdcompress recipes` lists the shipped ones; a YAML file is fine too."
            raise click.MissingParameter(hint, error.ctx, error.param) from None
        except (KdcompressError, KeyboardInterrupt, MemoryError, OSError, RuntimeError, ValueError) as error:
            resumable = ctx.invoked_subcommand in ("distill", "compare")
            known = _translate_error(error, resumable=resumable)
            if known is None:
                raise
            click.echo(f"Error: {known}", err=True)
            sys.exit(known.exit_code)
        finally:
            signal.signal(signal.SIGTERM, before)


def _translate_error(error: BaseException, *, resumable: bool) -> KdcompressError | None:
    """Returns the matching KdcompressError, or None if the error is a bug.

    Args:
        error: The exception.
        resumable: The command has --resume.
    """
    if isinstance(error, KdcompressError):
        return error
    again = "go on with --resume" if resumable else "run it again"
    if isinstance(error, KeyboardInterrupt):
        kept = "what was saved before stays, go on with --resume" if resumable else "nothing was finished"
        return Interrupted(f"interrupted; {kept}")
    # torch is not imported here, so its exception is recognised by name.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return WorldError("out of memory; lower data.batch_size (train.accumulate keeps the effective batch)")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return WorldError(f"{place}the disk is full ({error.strerror}); free some and {again}")
        if error.errno in {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE}:
            return WorldError(f"{place}{error.strerror}; what was saved before stays")
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            return UserError(f"{place}{error.strerror}; choose another folder with --out")
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            return UserError(f"{place}{error.strerror}")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return UserError("a path has a NUL character in it; choose another")
    if "can't allocate memory" in str(error):
        return _translate_error(MemoryError(), resumable=resumable)
    return None


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdcompress")
def main() -> None:
    """A recipe goes in, a small network that can be trusted comes out."""


for _command in (
    distill, compare, export, bench, suggest, evaluate, strip, report, show,
    recipes, methods, students, datasets,
):  # fmt: skip
    main.add_command(_command)
