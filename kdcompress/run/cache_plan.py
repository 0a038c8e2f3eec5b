"""Decides how much of a teacher's outputs a run keeps on disk: a function of recipe, data and networks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from kdcompress.data.batch import Replay
from kdcompress.data.cache import cache_folder
from kdcompress.errors import UserError
from kdcompress.methods.base import Needs
from kdcompress.networks.activations import LOGITS, POOLED, Want
from kdcompress.networks.output_cache.codec import Codec, Kind, LogitsCodec, PooledCodec, TopKCodec
from kdcompress.networks.teacher import Teacher
from kdcompress.recipe import AUTO, CacheSection, Recipe

KEY = "teacher.cache"
FEWEST, MOST = 8, 50
"""Views of each image under `auto`, where limit_gb allows them: with 50 no loss of accuracy is
known."""
SHARE_OF_EPOCHS = 4
"""Under `auto` the teacher computes in one of so many epochs."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Settings of a run's teacher cache.

    Args:
        section: The recipe's section without `auto`.
        codec: Form of the outputs.
        images: Number of training images.
        passes: Views of an image in the whole training.
    """

    section: CacheSection
    codec: Codec
    images: int
    passes: int

    @property
    def replay(self) -> Replay:
        """The views that repeat."""
        assert isinstance(self.section.views, int)
        return Replay(self.section.views, self.section.seed)

    @property
    def bytes(self) -> int:
        """Size of the whole cache."""
        return _view_bytes(self.images, self.codec) * self.replay.views

    @property
    def folder(self) -> Path:
        """Folder that holds the caches of all teachers and data sets."""
        if self.section.folder is not None:
            return Path(self.section.folder)
        return cache_folder() / "teacher-outputs"

    @property
    def share_computed(self) -> float:
        """Share of the training's teacher outputs that are computed if nothing is in the cache yet.

        0 with `mode: read`, where all must be there.
        """
        if self.section.mode == "read":
            return 0.0
        return min(1.0, self.replay.views / self.passes)


def plan_cache(
    recipe: Recipe, needs: Needs, teacher: Teacher, images: int
) -> tuple[CachePlan | None, str | None]:
    """Resolves `teacher.cache` of a recipe.

    Args:
        recipe: Its epochs are resolved.
        needs: Of its method.
        teacher: Frozen.
        images: Number of training images.

    Returns:
        The plan, or None where the teacher computes at every step; and a sentence for the user, or None.

    Raises:
        UserError: The section's settings do not fit the method, the teacher or the limit.
    """
    assert recipe.teacher is not None
    given = recipe.teacher.cache
    if given == "off":
        return None, None
    section = CacheSection() if given == "auto" else given
    wanted, method = cacheable(needs), recipe.method["name"]
    if not wanted:
        return None, (
            f"{KEY}: off, since {method} reads maps of the teacher's stages, which are too large to keep; "
            "the teacher computes them at every step"
        )
    passes = recipe.epochs * needs.views
    codecs = _codecs(section, needs, wanted, teacher, method)
    plan = _fitting(section, codecs, needs, images, passes, switch=given == "auto")
    if plan is None:
        return None, (
            f"{KEY}: off, since {FEWEST} views of {images:,} images take more than {section.limit_gb:g} GB; "
            f"a larger {KEY}.limit_gb, or {KEY}.views=1 or more, turns it on"
        )
    if given == "auto" and passes <= plan.replay.views:
        return None, f"{KEY}: off, since no view comes twice in {recipe.epochs} epochs"
    return plan, _left_out(recipe, needs)


def _left_out(recipe: Recipe, needs: Needs) -> str | None:
    """Says which outputs the teacher computes although there is a cache; None: none."""
    live = []
    if needs.cached is not None and needs.cached != needs.read_of_teacher:
        live.append(f"the maps that {recipe.method['name']} reads, which are too large to keep")
    if recipe.export.int8 is not None and recipe.export.int8.qat_epochs:
        live.append("those of the training for int8, whose views are new")
    return f"{KEY}: has all of the teacher's outputs but {' and '.join(live)}" if live else None


def check_space(plan: CachePlan) -> None:
    """Checks that there is room for the whole cache; what is in the folder of all caches counts as room.

    Raises:
        UserError: There is not; the message says how much is needed.
    """
    folder = plan.folder
    free = shutil.disk_usage(existing_folder(folder)).free
    if free >= plan.bytes:
        return
    kept = sum(map(kept_bytes, folder.iterdir())) if folder.is_dir() else 0
    if free + kept < plan.bytes:
        raise UserError(
            f"{KEY}: {plan.replay.views} views of {plan.images:,} images take {size_text(plan.bytes)}, and "
            f"{size_text(free)} are free in {folder}; set fewer {KEY}.views, another {KEY}.folder, or "
            f"{KEY}=off"
        )


def existing_folder(folder: Path) -> Path:
    """Returns the folder, or the nearest one around it that exists."""
    return next((p for p in (folder, *folder.absolute().parents) if p.is_dir()), Path("/"))


def kept_bytes(folder: Path) -> int:
    """Returns the bytes on disk of the rows in the folder of one cache."""
    return sum(file.lstat().st_blocks * 512 for file in folder.glob("*.rows"))


def size_text(size: float) -> str:
    """Returns a size such as `850 kB`, `12.3 MB` or `4.2 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def cacheable(needs: Needs) -> Want:
    """Returns the outputs of the teacher that a cache can give to a method; empty: none."""
    if needs.cached is not None:
        return needs.cached
    return needs.read_of_teacher if needs.read_of_teacher <= LOGITS | POOLED else frozenset()


def _codecs(section: CacheSection, needs: Needs, wanted: Want, teacher: Teacher, method: str) -> list[Codec]:
    """Lists the forms that serve a method, the most useful first.

    Raises:
        UserError: The form that the section names does not serve it.
    """
    shapes = teacher.shapes()
    found: dict[Kind, Codec] = {}
    if shapes.pooled is not None:
        classify = None if shapes.logits is None else teacher.classify
        found["pooled"] = PooledCodec(shapes.pooled.shape[1], classify)
    if wanted == LOGITS:
        found["logits"] = LogitsCodec(teacher.num_classes)
        if needs.top_k:
            found["top_k"] = TopKCodec(teacher.num_classes, section.top_k)
    if section.keep == AUTO:
        return [found[kind] for kind in ("pooled", "logits") if kind in found]
    if section.keep in found:
        return [found[section.keep]]
    reasons = {
        "pooled": f"no linear layer gives the logits of {teacher.model}",
        "logits": f"{method} reads the teacher's features too",
        "top_k": "it serves kd at a temperature of at most 1.5 without logit_standardization: above that the "
        "other classes count",
    }
    others = [kind for kind in get_args(Kind) if kind in found]
    raise UserError(f"{KEY}.keep: {section.keep}, but {reasons[section.keep]}; choose {' or '.join(others)}")


def _fitting(
    section: CacheSection, codecs: list[Codec], needs: Needs, images: int, passes: int, *, switch: bool
) -> CachePlan | None:
    """Chooses form and views within the limit; None: not even the fewest fit, and the user named none.

    Args:
        section: Its views and keep may be `auto`.
        codecs: From `_codecs`.
        needs: Of the method.
        images: Number of training images.
        passes: Views of an image in the whole training.
        switch: True if the user wrote `auto` for the whole section.
    """
    per_step, limit = needs.views, section.limit_gb * 1e9
    if isinstance(section.views, int):
        if section.views % per_step:
            raise UserError(
                f"{KEY}.views: {section.views} is no multiple of the {per_step} views of a batch; choose "
                f"{per_step * max(1, round(section.views / per_step))}"
            )
        for codec in codecs:
            if section.views * _view_bytes(images, codec) <= limit:
                return _plan(section, codec, section.views, images, passes)
        size = section.views * _view_bytes(images, codecs[-1])
        raise UserError(
            f"{KEY}.limit_gb: {section.limit_gb:g}, and {section.views} views of {images:,} images take "
            f"{size_text(size)} as {codecs[-1].kind}; set it higher, or fewer {KEY}.views"
        )
    epochs = min(MOST, max(FEWEST, passes // per_step // SHARE_OF_EPOCHS))
    for codec in codecs:
        fit = int(limit // (_view_bytes(images, codec) * per_step))
        if fit >= FEWEST or (codec is codecs[-1] and not switch and fit >= 1):
            return _plan(section, codec, min(epochs, fit) * per_step, images, passes)
    if switch:
        return None
    size = per_step * _view_bytes(images, codecs[-1])
    raise UserError(
        f"{KEY}.limit_gb: {section.limit_gb:g}, and one view of {images:,} images takes {size_text(size)} as "
        f"{codecs[-1].kind}; set it higher, or {KEY}=off"
    )


def _plan(section: CacheSection, codec: Codec, views: int, images: int, passes: int) -> CachePlan:
    resolved = section.model_copy(update={"views": views, "keep": codec.kind})
    return CachePlan(resolved, codec, images, passes)


def _view_bytes(images: int, codec: Codec) -> int:
    return images * (codec.width + 4)
