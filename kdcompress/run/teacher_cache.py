"""The cache of a teacher's outputs in a run: its key, its check against the teacher, and its figures."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from kdcompress.atomic import write_json
from kdcompress.bench.device.machine import instruction_sets
from kdcompress.data import fast_views
from kdcompress.data.batch import Replay, View
from kdcompress.data.dataset import Data
from kdcompress.data.joined import IDS_PER_SET, JoinedSource
from kdcompress.data.loader import on_device
from kdcompress.data.random_bits import permutation
from kdcompress.data.source import FolderSource
from kdcompress.errors import KdcompressError, RunFailed
from kdcompress.methods.base import configured
from kdcompress.methods.turned import turned_together
from kdcompress.networks.activations import Activations
from kdcompress.networks.output_cache.cached_teacher import CachedTeacher
from kdcompress.networks.output_cache.facts import TeacherFacts
from kdcompress.networks.output_cache.rows import NoRows, RowFiles
from kdcompress.networks.output_cache.stored_teacher import StoredTeacher
from kdcompress.networks.teacher import Teacher
from kdcompress.recipe import CacheSection, write_notice
from kdcompress.run.cache_notices import announce, say_before, warn_of_other_caches
from kdcompress.run.cache_plan import KEY, CachePlan, check_space, plan_cache
from kdcompress.run.context import Run
from kdcompress.run.networks import needs_of
from kdcompress.run.training import for_method

RULES = 1
"""Version of what is kept and of its key."""
CHECKED = 64
"""Rows that are computed again when a cache is opened, and views whose pixels go into its key."""
TOLERANCE = 2.0**-8
"""Largest difference of a probability between a cached and a computed output. Another batch size, in float32
another processor too, rounds differently."""


def with_cache_settings(run: Run, teacher: Teacher | None) -> Run:
    """Returns the run with `teacher.cache` resolved in its recipe, and says what was decided.

    Args:
        run: Before anything is written.
        teacher: As it is built; its weights do not matter. None: there is none.

    Raises:
        UserError: The settings do not fit, or there is no room.
    """
    section = run.recipe.teacher
    if teacher is None or section is None or section.cache == "off":
        return run
    plan, sentence = _plan(run, teacher)
    if plan is not None:
        check_space(plan)
        if run.processes.first:
            say_before(run, plan)
    if sentence is not None and run.processes.first:
        write_notice(sentence)
    cache = "off" if plan is None else plan.section
    recipe = run.recipe.replace(teacher=section.model_copy(update={"cache": cache}))
    return dataclasses.replace(run, recipe=recipe)


def replay_of(run: Run, teacher: Teacher | None) -> Replay | None:
    """Returns the views that a training with a cached teacher repeats; None: every epoch has new ones."""
    section = run.recipe.teacher
    if section is None or not isinstance(teacher, CachedTeacher):
        return None
    assert isinstance(section.cache, CacheSection)
    assert isinstance(section.cache.views, int)
    return Replay(section.cache.views, section.cache.seed)


@contextlib.contextmanager
def cached_outputs(run: Run, teacher: Teacher | None) -> Iterator[Teacher | None]:
    """Puts a cache before the teacher for the block, if the recipe asks for one.

    The cache's folder is named by a hash of everything that the outputs depend on: the teacher's weights,
    input and precision, the data set, the augmentation and its seed, and the pixels of some decoded views.
    The program's version and the run's seed, student and method are not among it.

    Args:
        run: The run; its images include generated ones.
        teacher: Frozen and tested.
    """
    section = run.recipe.teacher
    if teacher is None or section is None or section.cache == "off":
        yield teacher
        return
    plan, _ = _plan(run, teacher)
    assert plan is not None, "resolved before anything was written"
    data = _data(run)
    key = run.processes.broadcast(_key(run, plan, teacher, data) if run.processes.first else None)
    folder = plan.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    cached = CachedTeacher(
        teacher,
        plan.codec,
        RowFiles(folder, plan.codec.width),
        sets=_set_names(run),
        stamps=_stamps(data),
        fill=plan.section.mode == "fill",
        warn=run.progress.warn if run.processes.first else lambda sentence: None,
    )
    with contextlib.closing(cached):
        usable = _opened(run, plan, cached, data, key) if run.processes.first else None
        if not run.processes.broadcast(usable):
            if plan.section.mode == "read":
                raise RunFailed(f"{KEY}.mode: read, and {folder} cannot be used; run it once with mode: fill")
            # The same views and 16 bits as with the cache, and so the same student.
            yield CachedTeacher(teacher, plan.codec, NoRows(folder, plan.codec.width), sets=_set_names(run))
            return
        yield cached
        if cached.computed:
            _complete(run, plan, cached, data)
        counts = run.processes.gather((cached.computed, cached.read))
        if run.processes.first:
            computed, read = (sum(each) for each in zip(*counts, strict=True))
            run.progress.say(
                f"Teacher outputs: {computed:,} images of a view computed, {read:,} read from {folder}"
            )


def _plan(run: Run, teacher: Teacher) -> tuple[CachePlan | None, str | None]:
    return plan_cache(run.recipe, needs_of(run.recipe), teacher, len(_data(run).train))


def _data(run: Run) -> Data:
    return for_method(run, *configured(run.recipe.method)).data


def _presets(run: Run, data: Data) -> tuple[str, ...]:
    return needs_of(run.recipe).augment or (data.augment,)


def _set_names(run: Run) -> tuple[str, ...]:
    """Returns the beginnings of the file names for real and for generated images."""
    extra = run.data.extra
    return ("",) if extra is None else ("", f"extra-{extra.sha256[:16]}-")


def _stamps(data: Data) -> list[npt.NDArray[np.int64] | None]:
    """Returns when the file of each image of a set was last written, by its id; None of images in memory."""
    train = data.train
    found: list[npt.NDArray[np.int64] | None] = []
    for part in train.parts if isinstance(train, JoinedSource) else (train,):
        if not isinstance(part, FolderSource):
            found.append(None)
            continue
        numbers = (part.ids % IDS_PER_SET).numpy()
        stamps = np.zeros(int(numbers.max()) + 1, np.int64)
        stamps[numbers] = part.file_list.times.numpy()
        found.append(stamps)
    return found


def _key(run: Run, plan: CachePlan, teacher: Teacher, data: Data) -> dict[str, Any]:
    """Returns everything that a kept output depends on, as JSON."""
    presets = dict.fromkeys(_presets(run, data))
    return {
        "rules": RULES,
        "teacher": teacher.model,
        "fingerprint": teacher.fingerprint,
        "size": teacher.size,
        "normalisation": teacher.normalisation,
        "precision": str(teacher.precision),
        "device": _device(teacher),
        "classifier": TeacherFacts.of(teacher).classifier,
        "keep": plan.codec.kind,
        "width": plan.codec.width,
        "data": data.listing_sha256,
        "image": [data.channels, *data.image_size, data.fit, run.recipe.data.pixel_cache, *_decoder(run)],
        "augment": list(presets) if len(presets) == 1 else list(_presets(run, data)),
        "seed": plan.section.seed,
        "pillow": PIL.__version__,
        "pixels": _pixel_fingerprint(run, plan, data),
    }


def _device(teacher: Teacher) -> str | list[str]:
    """Names what computes the outputs.

    In bf16 a CPU's instructions belong to it: without AVX-512 some outputs differ by more than `TOLERANCE`.
    """
    if teacher.device.type != "cpu" or teacher.precision != torch.bfloat16:
        return teacher.device.type
    return [teacher.device.type, torch.backends.cpu.get_cpu_capability(), *instruction_sets()]


def _decoder(run: Run) -> list[str | None]:
    """Returns what decodes training pictures; nothing for Pillow, whose version is in the key anyway."""
    decoder = run.recipe.data.decoder
    return [] if decoder == "pillow" else [decoder, fast_views.version()]


def _pixel_fingerprint(run: Run, plan: CachePlan, data: Data) -> str:
    """Hashes the pixels of a few decoded and augmented test images.

    It tells apart decoders and augmentations. Test images, since they are the same ones whatever is held out,
    left without a label or added.
    """
    images = data.test.subset(torch.arange(0, len(data.test), max(1, len(data.test) // CHECKED)))
    digest = hashlib.sha256()
    for number, preset in enumerate(_presets(run, data)):
        views = images.with_augment(preset).training_images(
            torch.arange(len(images)), number, plan.section.seed
        )
        digest.update(views.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _opened(run: Run, plan: CachePlan, cached: CachedTeacher, data: Data, key: dict[str, Any]) -> bool:
    """Makes the folder, checks what is in it, and says what is to come; False: it must not be used."""
    folder = cached.files.folder
    try:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "it is a link")
        if plan.section.mode == "fill":
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "key.json", key)
            warn_of_other_caches(run, plan, folder)
    except (OSError, KdcompressError) as error:
        reason = getattr(error, "strerror", None) or error
        run.progress.warn(
            f"{KEY}: {folder} cannot be written to ({reason}); the teacher computes at every step. Set "
            f"{KEY}.folder"
        )
        return False
    compute = not isinstance(cached.teacher, StoredTeacher)
    present, worst = _check(run, plan, cached, data, compute=compute)
    if worst > TOLERANCE:
        run.progress.warn(
            f"{KEY}: {folder}: its outputs differ from those of the teacher by up to {worst:.3g} in "
            f"probability, so it is not used, and the teacher computes at every step. Delete that folder"
        )
        return False
    announce(run, plan, cached, present)
    return True


def check_afterwards(run: Run, teacher: Teacher | None) -> None:
    """Computes a sample of the rows again that a run without the teacher itself learned from.

    Args:
        run: The run; its student is trained and its teacher built. All processes call it.
        teacher: The one that taught.

    Raises:
        RunFailed: They differ.
    """
    if not isinstance(teacher, CachedTeacher) or not isinstance(teacher.teacher, StoredTeacher):
        return
    plan, _ = _plan(run, teacher)
    assert plan is not None, "resolved before anything was written"
    worst = _check(run, plan, teacher, _data(run), compute=True)[1] if run.processes.first else None
    worst = run.processes.broadcast(worst)
    if worst > TOLERANCE:
        raise RunFailed(
            f"{KEY}: {teacher.files.folder}: its outputs differ from those of the teacher by up to "
            f"{worst:.3g} in probability, so the student learned from something else. Delete that folder, "
            f"and run it again with {KEY}.mode: fill"
        )


def _check(
    run: Run, plan: CachePlan, cached: CachedTeacher, data: Data, *, compute: bool
) -> tuple[float, float]:
    """Computes a sample of the rows again; with `compute` false it only looks if they are there.

    Returns:
        Share of the sampled rows that are there, and the largest difference of a probability (of an
        embedding: of its values, relative to their size).
    """
    train, presets, turns = data.train, _presets(run, data), _turns(run)
    sample = permutation(plan.section.seed, 0, len(train))[:CHECKED]
    there, worst = 0, 0.0
    numbers = sorted({round(i * (plan.replay.views - 1) / 7) for i in range(8)})
    for place, number in enumerate(numbers):
        indices, turn = sample[place :: len(numbers)], number % turns
        if len(indices) == 0:
            continue
        here = indices[cached.has(number, train.ids[indices], turn)]
        there += len(here)
        if len(here) == 0 or not compute:
            continue
        source = train.with_augment(presets[number % len(presets)])
        views = torch.rot90(source.training_images(here, number, plan.section.seed), turn, dims=(2, 3))
        computed = cached.teacher(on_device(views, run.device), cached.codec.gives)
        kept = cached.cached(number, train.ids[here], cached.codec.gives, turn)
        difference = _difference(computed, kept, cached.codec.kind == "top_k")
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return there / len(sample), worst


def _difference(computed: Activations, kept: Activations, largest_only: bool) -> float:
    """Returns the largest difference of a probability, or of a backbone's features relative to their size."""
    if computed.logits is None or kept.logits is None:
        assert computed.pooled is not None
        assert kept.pooled is not None
        scale = computed.pooled.abs().amax().clamp(min=1e-12)
        return float((computed.pooled - kept.pooled).abs().amax() / scale)
    one, other = computed.logits.float().softmax(1), kept.logits.float().softmax(1)
    if largest_only:
        largest = other.argmax(1, keepdim=True)
        one, other = one.gather(1, largest), other.gather(1, largest)
    return float((one - other).abs().amax())


def _complete(run: Run, plan: CachePlan, cached: CachedTeacher, data: Data) -> None:
    """Computes the rows that incomplete batches left out, where a view is nearly whole.

    Each process does its own views. A second run with another seed, whose batches leave out other images,
    then needs no teacher.
    """
    train, processes, batch, turns = data.train, run.processes, run.recipe.batch_size, _turns(run)
    # Views that are turned come together, as the teacher reads them in the training.
    for first in range(processes.rank * turns, plan.replay.views, processes.world * turns):
        numbers = range(first, first + turns)
        there = torch.stack([cached.has(number, train.ids, turn) for turn, number in enumerate(numbers)])
        lacking = (~there.all(0)).nonzero().flatten()
        if len(lacking) == 0 or len(lacking) > max(batch, len(train) // 50):
            continue
        for indices in torch.split(lacking, batch):
            views = tuple(_view(run, plan, data, indices, number) for number in numbers)
            cached(views[0] if turns == 1 else turned_together(views), cached.codec.gives)


def _view(run: Run, plan: CachePlan, data: Data, indices: Tensor, number: int) -> View:
    presets = _presets(run, data)
    source = data.train.with_augment(presets[number % len(presets)])
    images = on_device(source.training_images(indices, number, plan.section.seed), run.device)
    return View(images, indices, number, source.ids[indices])


def _turns(run: Run) -> int:
    """Returns how many views come turned together: view n is turned by n modulo that many quarter turns."""
    needs = needs_of(run.recipe)
    return needs.views if needs.turned else 1
