"""The errors of the library, grouped by who can fix the cause; each has one message and an exit code.

```
KdcompressError
├── UserError (2)            the input is wrong, and the message says what to change
│   ├── RecipeError          all problems of a recipe at once, each with its dotted path
│   ├── DataError            the images or their folder
│   ├── WeightsError         a checkpoint that cannot or must not be loaded
│   ├── NetworkError         a network that is unknown, cannot be tapped, or cannot be cut (Uncuttable)
│   └── RunFolderError       the run folder exists, is in use, or belongs to another recipe
├── RunFailed (3)            the run was completed, and its result must not ship
│   ├── GateFailed           a ship gate
│   ├── WeakTeacher          the teacher's accuracy is near chance
│   ├── NonFiniteLoss        a loss term is not finite
│   ├── NonFiniteWeights     a checkpoint's weights are not finite
│   └── NonFiniteOutputs     a file's outputs are not finite
├── TargetUnreachable (4)    the device to measure on
├── WorldError (5)           download, disk, memory, a lost worker
│   └── DownloadError
└── Interrupted (130)        Ctrl-C or SIGTERM, after saving
```

Any other exception is a bug of kdcompress and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class KdcompressError(Exception):
    """The root of every error that the library raises on purpose."""

    exit_code = 1


class UserError(KdcompressError):
    """The user's input is wrong; nothing has been written."""

    exit_code = 2


class RecipeError(UserError):
    """All problems of one recipe.

    Args:
        source: The recipe's name or file, as the user gave it.
        problems: One line each, `dotted.path: what is wrong; what to change`.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__("\n  ".join([f"{source}: {count}", *self.problems]))


class DataError(UserError):
    """The data set cannot be used as it is."""


class UnreadableImage(DataError):
    """An image file cannot be read; in the midst of a run, which checked it before, the data has changed."""


class WeightsError(UserError):
    """A checkpoint cannot be loaded, or must not be."""


class NetworkError(UserError):
    """A network is unknown, or cannot give an output that is needed."""


class Uncuttable(NetworkError):
    """A network whose stages are not a straight chain, so no head or branch can be cut from it."""


class RunFolderError(UserError):
    """The run folder exists, is in use, or was made by another recipe."""


class RunFailed(KdcompressError):
    """The run was completed, and its result must not ship; its files are under `RUN/failed/`."""

    exit_code = 3


class GateFailed(RunFailed):
    """At least one ship gate failed."""


class WeakTeacher(RunFailed):
    """The teacher's accuracy on the data is too low for distillation."""


class NonFiniteLoss(RunFailed):
    """A loss term became NaN or infinite; no parameter was updated with it."""


class NonFiniteWeights(RunFailed):
    """Weights of a checkpoint are NaN or infinite; a network with them can neither ship nor teach."""


class NonFiniteOutputs(RunFailed):
    """A file computes outputs that are NaN or infinite; nothing can be scored by them."""


class TargetUnreachable(KdcompressError):
    """The device to measure on does not answer."""

    exit_code = 4


class WorldError(KdcompressError):
    """Disk, memory, network or a worker process failed; the last checkpoint is kept."""

    exit_code = 5


class DownloadError(WorldError):
    """A download failed; the message says how to pass a local file instead.

    Args:
        reason: The address and what went wrong there.
        advice: What the user can do without a network.
    """

    def __init__(self, reason: str, advice: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}; {advice}")


RESUMABLE = "what was saved before stays, go on with --resume"


class Interrupted(KdcompressError):
    """Ctrl-C or SIGTERM, after the state was saved."""

    exit_code = 130


def join_problems(errors: Sequence[UserError]) -> UserError:
    """Returns one error that names all problems; a single one stays as it is.

    Args:
        errors: At least one; only the first may be a RecipeError.
    """
    first, *others = errors
    if not others:
        return first
    messages = [str(error) for error in others]
    if isinstance(first, RecipeError):
        return RecipeError(first.source, [*first.problems, *messages])
    return UserError("\n  ".join([f"{len(errors)} problems", str(first), *messages]))


def suggest(wrong: str, choices: Iterable[str]) -> str:
    """Returns the end of an error line: a close choice, or else all choices.

    Args:
        wrong: The text that the user wrote.
        choices: The valid texts.

    Returns:
        `"; did you mean 'x'?"` when one is close, else `"; choices: a, b, c"`.
    """
    ordered = sorted(choices)
    close = difflib.get_close_matches(str(wrong), ordered, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choices: {', '.join(ordered)}" if ordered else ""
