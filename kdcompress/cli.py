"""The command line: collects the commands and maps errors to messages and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import click

from kdcompress import __version__
from kdcompress.commands import bash_completion
from kdcompress.commands.bench import bench
from kdcompress.commands.compare import compare
from kdcompress.commands.distill import distill
from kdcompress.commands.evaluate import evaluate
from kdcompress.commands.export import export
from kdcompress.commands.hints import OTHER_COMMANDS, option_hint
from kdcompress.commands.listings import datasets, methods, recipes, students
from kdcompress.commands.pages import report, show
from kdcompress.commands.plan import plan
from kdcompress.commands.strip import strip
from kdcompress.commands.suggest import suggest
from kdcompress.errors import RESUMABLE, Interrupted, KdcompressError, UserError, WorldError
from kdcompress.plain_text import printable, shortened

_ARGUMENTS = "kdcompress.arguments"
_IMPORT_CHECK_S = 0.1
_TRANSLATED = (MemoryError, ImportError, OSError, RuntimeError, ValueError)
"""Errors of the world that may be no bug; `_translate_error` tells."""
_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory")
"""Parts of messages of the loader of libraries and of PyTorch, in small letters."""
_LONGEST_LINE = 2000
"""Characters of a line of a message: what a stranger's file names may have any length."""


bash_completion.register()


class Commands(click.Group):
    """Runs a command and maps its errors to exit codes."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parses the arguments; Ctrl-C meanwhile is told and exits as it does later."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except KeyboardInterrupt:
            click.echo("Error: interrupted; nothing was finished", err=True)
            sys.exit(Interrupted.exit_code)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments of the group, and keeps all arguments for the messages."""
        ctx.meta[_ARGUMENTS] = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _without_controls(error) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command; names ours where another trainer's was typed."""
        name = args[0]
        if name in OTHER_COMMANDS and self.get_command(ctx, name) is None:
            ctx.fail(f"No such command {name!r}. Did you mean {OTHER_COMMANDS[name]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; prints one message for a known error and a traceback for a bug."""
        terminate = signal.signal(signal.SIGTERM, _interrupt)
        interrupt = signal.getsignal(signal.SIGINT)
        if interrupt is signal.default_int_handler:  # else another program decides, or `nohup`
            signal.signal(signal.SIGINT, _interrupt)
        try:
            _require_current_folder()
            return super().invoke(ctx)
        except click.MissingParameter as error:
            if error.param is None or error.param.name != "recipe":
                raise
            hint = "`kdcompress recipes` lists the shipped ones; a YAML file is fine too."
            raise click.MissingParameter(hint, error.ctx, error.param) from None
        except click.NoSuchOption as error:
            raise _without_controls(_with_hint(error, ctx.meta[_ARGUMENTS])) from None
        except click.UsageError as error:
            raise _without_controls(error) from None
        except (KdcompressError, KeyboardInterrupt, *_TRANSLATED) as error:
            command, resumed = ctx.invoked_subcommand, "--resume" in ctx.meta[_ARGUMENTS]
            known = _translate_error(error, resumable=command in ("distill", "compare"), saved=resumed)
            if known is None:
                raise
            click.echo(f"Error: {_message(known)}", err=True)
            sys.exit(known.exit_code)
        finally:
            signal.signal(signal.SIGTERM, terminate)
            signal.signal(signal.SIGINT, interrupt)


def _require_current_folder() -> None:
    """Refuses to run in a folder that is gone: paths have no meaning there, and MKL ends the process.

    Raises:
        UserError: The current folder was removed.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder was removed; change into another one (cd)") from None


def _message(error: KdcompressError) -> str:
    """Returns an error's message for a terminal: no control characters, no endless lines."""
    return "\n".join(shortened(line, _LONGEST_LINE) for line in printable(error, keep="\n").split("\n"))


def _without_controls(error: click.UsageError) -> click.UsageError:
    """Returns an error that quotes what was typed without its control characters."""
    said = error.format_message()
    shown = printable(said, keep="\n")
    return error if shown == said else click.UsageError(shown, error.ctx)


def _with_hint(error: click.NoSuchOption, arguments: tuple[str, ...]) -> click.UsageError:
    """Returns an error that names our option where another trainer's was typed."""
    parameters = [] if error.ctx is None else error.ctx.command.params
    known = [name for parameter in parameters for name in parameter.opts]
    hint = option_hint(error.option_name, arguments, known)
    if hint is None:
        return error
    return click.UsageError(f"No such option {error.option_name!r}. Did you mean {hint!r}?", error.ctx)


def _translate_error(error: BaseException, *, resumable: bool, saved: bool = False) -> KdcompressError | None:
    """Returns the matching KdcompressError, or None if the error is a bug.

    Args:
        error: The exception.
        resumable: The command has --resume.
        saved: Something may have been saved, for --resume to go on with.
    """
    if isinstance(error, KdcompressError):
        return error
    again = "go on with --resume" if resumable else "run it again"
    if isinstance(error, KeyboardInterrupt):
        # Later than that, `pipeline.distill` knows what is in the run folder.
        kept = "nothing was saved yet, run it again" if resumable else "nothing was finished"
        if saved:
            kept = RESUMABLE
        return Interrupted(f"interrupted; {kept}")
    # torch is not imported here, so its exception is recognised by name.
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if no_memory or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
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
    if any(words in str(error).lower() for words in _NO_MEMORY):
        if isinstance(error, ImportError):
            # NumPy puts a page of advice around the line that says it.
            said = [line for line in str(error).splitlines() if any(w in line.lower() for w in _NO_MEMORY)]
            return WorldError(f"out of memory ({said[-1].strip()}); the process needs more (see `ulimit -v`)")
        return _translate_error(MemoryError(), resumable=resumable, saved=saved)
    return None


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but not in the midst of an import: there it waits for the import's end.

    PyTorch's import ends the process if it is interrupted, and NumPy's leaves half a module behind.
    """
    while frame is not None and frame.f_code is not Commands.invoke.__code__:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            again = threading.Timer(_IMPORT_CHECK_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdcompress")
def main() -> None:
    """Train small image classifiers by knowledge distillation; export files that are proved and timed."""


for _command in (
    distill, compare, plan, export, bench, suggest, evaluate, strip, report, show,
    recipes, methods, students, datasets,
):  # fmt: skip
    main.add_command(_command)
