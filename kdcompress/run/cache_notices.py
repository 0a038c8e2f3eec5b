"""Tells a teacher cache's size, place and room, the speed of its disk, and the time that it saves."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch

from kdcompress.networks.output_cache.cached_teacher import CachedTeacher
from kdcompress.networks.output_cache.stored_teacher import StoredTeacher
from kdcompress.progress import duration_text
from kdcompress.run.cache_plan import KEY, CachePlan, existing_folder, kept_bytes, size_text
from kdcompress.run.context import Run

_TRIAL_BYTES = 32 << 20


def say_before(run: Run, plan: CachePlan) -> None:
    """Says size and place of the cache and the speed of its disk, or that nothing can be written there."""
    said = (
        f"Teacher cache: {plan.replay.views} views of {plan.images:,} images as {plan.codec.kind}, "
        f"{size_text(plan.bytes)} in {plan.folder}"
    )
    if plan.section.mode == "fill":
        try:
            said += f"; that disk writes {size_text(_write_rate(existing_folder(plan.folder), plan))}/s"
        except OSError as error:
            run.progress.warn(
                f"{KEY}: {plan.folder} cannot be written to ({error.strerror or error}); the teacher will "
                f"compute at every step. Set {KEY}.folder"
            )
    run.progress.say(said)


def warn_of_other_caches(run: Run, plan: CachePlan, folder: Path) -> None:
    """Warns if the room that the cache needs is taken by caches of other teachers and data sets."""
    free = shutil.disk_usage(folder).free + kept_bytes(folder)
    if free < plan.bytes:
        run.progress.warn(
            f"{KEY}: {size_text(plan.bytes)} are needed in {folder.parent}, and {size_text(free)} are free: "
            "the rest is taken by other caches there, which can be deleted. Until then the teacher computes "
            "at every step what finds no room"
        )


def announce(run: Run, plan: CachePlan, cached: CachedTeacher, present: float) -> None:
    """Says what is there already, and the saving."""
    sentences = [f"Teacher cache: {cached.files.folder}"]
    if present:
        sentences.append(f"about {100 * present:.0f} % are there already")
    if isinstance(cached.teacher, StoredTeacher):
        sentences.append("the teacher itself is built when the student is trained, for the report")
        run.progress.say("; ".join(sentences))
        return
    computed = plan.share_computed * (1 - present)
    seconds = _pass_seconds(run, cached) * plan.passes * plan.images / run.processes.world
    sentences.append(
        f"the teacher computes {100 * computed:.0f} % of its outputs for this training, which saves about "
        f"{duration_text(seconds * (1 - computed))}"
    )
    run.progress.say("; ".join(sentences))


def _write_rate(folder: Path, plan: CachePlan) -> float:
    """Measures how fast the folder's disk takes data, in bytes per second."""
    size = max(1 << 20, min(_TRIAL_BYTES, plan.bytes))
    content = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(size >> 20):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return (size >> 20 << 20) / (time.perf_counter() - began)


def _pass_seconds(run: Run, cached: CachedTeacher) -> float:
    """Measures the teacher's seconds per image, on noise."""
    share = max(1, min(run.recipe.batch_size // run.processes.world, 256))
    images = torch.rand(share, run.data.channels, *run.data.image_size)
    images = images.to(run.device, memory_format=torch.channels_last)
    for _ in range(2):
        began = time.perf_counter()
        cached.teacher(images, cached.codec.reads)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        seconds = time.perf_counter() - began
    return seconds / share
