"""Further problems of a run that is refused, so that the user sees all of them at once."""

from __future__ import annotations

from pathlib import Path

from kdcompress.data.dataset import open_data
from kdcompress.data.shard_files import is_pattern
from kdcompress.errors import DataError, KdcompressError, UserError
from kdcompress.recipe import Recipe
from kdcompress.run_folder import RunFolder
from kdcompress.user_paths import expand_home


class _FarEnough(Exception):
    """Ends the reading of the data where it would take time: its folder is as it must be."""


def folder_problems(out: Path | None, data: str | None, resume: bool, overwrite: bool) -> list[UserError]:
    """Lists what is wrong with --out and --data, where the recipe itself is wrong.

    Args:
        out: --out; None: it is not known without a recipe.
        data: --data.
        resume: --resume was given.
        overwrite: --overwrite was given.
    """
    problems: list[UserError] = []
    if out is not None:
        try:
            RunFolder(out).check(resume, overwrite)
        except UserError as error:
            problems.append(error)
    if data is not None:
        try:
            if not expand_home(data, "data.root").exists() and not is_pattern(Path(data)):
                problems.append(DataError(f"data.root: {data}: no such folder"))
        except UserError as error:
            problems.append(error)
    return problems


def data_problems(recipe: Recipe, data: str | None) -> list[UserError]:
    """Lists what is wrong with the folder of the data, where the run folder is wrong; downloads nothing.

    Args:
        recipe: Checked.
        data: --data, which goes before the recipe's folder.
    """
    root = data or recipe.data.root
    if root is None:
        return []

    def stop(task: str, done: int, total: int) -> None:
        raise _FarEnough

    try:
        section = recipe.data.model_copy(update={"root": str(expand_home(root, "data.root").absolute())})
        open_data(section, progress=stop)
    except UserError as error:
        return [error]
    except (_FarEnough, KdcompressError):
        pass
    return []
