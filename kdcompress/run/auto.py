"""Resolving the recipe's `auto` values: once, when the data is open and before anything is written.

`resolve_auto` takes the values one after the other. recipe.yaml of the run holds the results, and
`keep_recorded` takes them from there when the run is resumed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from kdcompress.data.dataset import Data
from kdcompress.errors import DownloadError, UserError, WorldError
from kdcompress.methods.base import configured
from kdcompress.networks import weights
from kdcompress.networks.compiled import compiler_problem
from kdcompress.networks.from_recipe import load_network, teacher_needs_training
from kdcompress.recipe import AUTO, RANDOM, CacheSection, Recipe, TrainSection
from kdcompress.run.cache_plan import cacheable
from kdcompress.run.decoder import resolve_decoder
from kdcompress.run.input_notices import colour_notice, crop_notice, normalisation_notice
from kdcompress.run.networks import needs_of
from kdcompress.run.pixel_cache import resolve_pixel_cache
from kdcompress.run.schedule import images_of_an_epoch, resolve_schedule, with_recorded, with_schedule
from kdcompress.run.teacher_record import reads_alone

SMALL_FOLDER = 100_000
"""Training images from which a student starts from random weights: published weights save a small folder
from overfitting, and with ImageNet's 1.28 million images nothing is left of their lead."""
CONNECT_S = 20.0
"""Limit in seconds until the server of the weights answers. A download that has begun goes on as long as
bytes come."""


COMPILED_PIXELS = 200_000_000
"""Pixels of all training images of all epochs from which `train.compile: auto` compiles on a CPU. There it
saves about a microsecond per pixel of a small student's step (resnet8x4, one thread); compiling takes one or
two minutes."""
COMPILED_STEPS = 20_000
"""Optimiser steps from which it compiles on CUDA: an estimate, a few milliseconds a step."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A recipe without `auto`.

    Args:
        recipe: With the values that were taken.
        notices: A sentence for the user about each value that needs one.
        warnings: A sentence about each value of the user's own that does not suit the data.
    """

    recipe: Recipe
    notices: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve_auto(
    recipe: Recipe,
    data: Data,
    *,
    progress: bool,
    own_lr: bool = False,
    allow_code: bool = False,
    device: str = "cpu",
) -> Resolution:
    """Replaces each `auto` of a recipe by the value that suits its data.

    Args:
        recipe: Checked.
        data: Opened.
        progress: True: shows downloads.
        own_lr: True if `optim.lr` comes from `--set`; it is then not scaled to the batch size.
        allow_code: True: a `python:` network may be built.
        device: Type of the device that the run trains on: cpu or cuda.

    Raises:
        UserError: `train.compile: true`, and there is no compiler; or a value cannot be found out.
    """
    recipe, own_weights_notice = _resolve_own_weights(recipe, data, allow_code)
    needs = needs_of(recipe)
    # Generated images may get their labels from the teacher, later.
    real = data if data.extra is None else dataclasses.replace(data, extra=None)
    used = real.for_method(labels=needs.labels, unlabelled=needs.unlabelled)
    generated = 0.0 if data.extra is None else data.extra.share
    images = images_of_an_epoch(len(used.train), used.pools, generated)
    schedule = resolve_schedule(recipe, images=images, labelled=data.labelled, own_lr=own_lr)
    recipe, notice = _resolve_student_weights(with_schedule(recipe, schedule), data, progress)
    recipe, compile_notice = _resolve_compile(recipe, images, data, device)
    presets = needs.augment or (data.augment,)
    if recipe.pseudo_labels is not None:
        pretraining, config = configured(recipe.pseudo_labels.method)
        presets = (*pretraining.needs(config).augment, *presets)
    recipe, pixel_notice = resolve_pixel_cache(recipe, data)
    recipe, decoder_notice = resolve_decoder(recipe, data)
    others = (
        own_weights_notice,
        notice,
        compile_notice,
        pixel_notice,
        decoder_notice,
        colour_notice(presets, data),
        crop_notice(data.train),
        normalisation_notice(recipe, data),
    )
    notices = (*schedule.reasons, *(sentence for sentence in others if sentence is not None))
    return Resolution(recipe, notices, schedule.warnings)


def _resolve_compile(recipe: Recipe, images: int, data: Data, device: str) -> tuple[Recipe, str | None]:
    """Decides `train.compile: auto` by the length of the student's training, and checks for a compiler.

    Returns:
        The recipe with train.compile true or false, and a sentence for the user, or None.

    Raises:
        UserError: It is true, and there is no compiler.
    """
    train = recipe.train
    if train.compile is False:
        return recipe, None
    problem, branches = compiler_problem(device), not needs_of(recipe).compiles
    uncompiled = f"{recipe.method['name']} trains branches of the student, which stay uncompiled"
    if train.compile is True:
        if problem is not None:
            raise UserError(f"train.compile: {problem}")
        return recipe, f"train.compile: {uncompiled}" if branches else None
    if branches:
        recipe = recipe.replace(train=train.model_copy(update={"compile": False}))
        return recipe, f"train.compile: auto is false: {uncompiled}"
    steps = recipe.epochs * max(1, images // recipe.batch_size)
    steps = min(steps, train.max_steps or steps)
    if device == "cpu":
        pixels = steps * recipe.batch_size * math.prod(data.image_size)
        long, length = pixels >= COMPILED_PIXELS, f"{pixels:,} pixels are trained on"
    else:
        long, length = steps >= COMPILED_STEPS, f"there are {steps:,} steps"
    on = long and problem is None
    why = f"{length}, {'enough' if long else 'too few'} to gain from it"
    if long and problem is not None:
        why = f"it {problem}"
    recipe = recipe.replace(train=train.model_copy(update={"compile": on}))
    return recipe, f"train.compile: auto is {str(on).lower()}: {why}"


def check_cuda_graphs(train: TrainSection, *, device: str, processes: int) -> None:
    """Refuses CUDA graphs where there is nothing to replay, or where a replay would overwrite what is needed.

    Args:
        train: Resolved.
        device: Type of the device that the run trains on: cpu or cuda.
        processes: Number of processes of the run.

    Raises:
        UserError: With the reason.
    """
    if not train.cuda_graphs:
        return
    why = None
    if device != "cuda":
        why = "they run on a CUDA device, and this run trains on the CPU"
    elif train.compile is not True:
        why = "they are made of compiled passes; add --set train.compile=true"
    elif train.accumulate > 1:
        why = (
            f"train.accumulate is {train.accumulate}, and a batch's graph overwrites the gradients of the "
            "one before; set it to 1, with a larger data.batch_size"
        )
    elif processes > 1:
        why = f"the run has {processes} processes, whose averaging of gradients was not tried with them"
    if why is not None:
        raise UserError(f"train.cuda_graphs: {why}; or leave it out")


def keep_recorded(requested: Recipe, recorded: Recipe, *, own_lr: bool = False) -> Recipe:
    """Replaces each `auto` of a resumed run's recipe by the value that the run began with.

    Args:
        requested: From the command line.
        recorded: From the run's recipe.yaml.
        own_lr: As for `resolve_auto`.
    """
    requested = _with_recorded_cache(_with_recorded_own_weights(requested, recorded), recorded)
    if requested.train.compile == AUTO:
        train = requested.train.model_copy(update={"compile": recorded.train.compile})
        requested = requested.replace(train=train)
    if requested.train.precision == AUTO:
        train = requested.train.model_copy(update={"precision": recorded.train.precision})
        requested = requested.replace(train=train)
    requested = _with_recorded_peers(with_recorded(requested, recorded, own_lr=own_lr), recorded)
    student, before = requested.student, recorded.student
    random_weights = (RANDOM, None)
    if student.weights == AUTO or (student.weights in random_weights and before.weights in random_weights):
        return _with_student(requested, before.weights, before.sha256)
    if student.weights == before.weights and student.sha256 is None:
        return _with_student(requested, before.weights, before.sha256)
    return requested


def _with_recorded_own_weights(requested: Recipe, recorded: Recipe) -> Recipe:
    """Gives a teacher with `pretrained: auto` what the run found out about its builder."""
    section, before = requested.teacher, recorded.teacher
    if section is None or before is None or section.pretrained != AUTO or section.model != before.model:
        return requested
    return requested.replace(teacher=section.model_copy(update={"pretrained": before.pretrained}))


def _with_recorded_cache(requested: Recipe, recorded: Recipe) -> Recipe:
    """Gives a teacher cache the views and the form that the run began with."""
    section, before = requested.teacher, recorded.teacher
    if section is None or before is None:
        return requested
    cache = section.cache
    if cache == AUTO:
        cache = before.cache
    elif isinstance(cache, CacheSection) and isinstance(before.cache, CacheSection):
        own = {"views": before.cache.views, "keep": before.cache.keep}
        open_values = {key: value for key, value in own.items() if getattr(cache, key) == AUTO}
        cache = cache.model_copy(update=open_values)
    elif isinstance(cache, CacheSection) and before.cache == "off" and not cacheable(needs_of(requested)):
        cache = "off"  # as the run decided; for any other method it is another recipe
    return requested.replace(teacher=section.model_copy(update={"cache": cache}))


def _resolve_own_weights(recipe: Recipe, data: Data, allow_code: bool) -> tuple[Recipe, str | None]:
    """Finds out if the builder of a `python:` teacher loads weights by itself: it is built under two seeds.

    Returns:
        The recipe with teacher.pretrained true or false, and a sentence for the user, or None.
    """
    section = recipe.teacher
    if section is None or section.pretrained != AUTO or not section.may_load_own_weights:
        return recipe, None
    if reads_alone(recipe):
        raise UserError(
            f"teacher.pretrained: auto builds {section.model} to find out, and teacher.cache.mode: read does "
            "without it; set true or false, as in the recipe.yaml of the run that filled the cache"
        )
    start = load_network(
        section, num_classes=len(data.class_names), channels=data.channels, image_size=data.image_size,
        seed=section.seed, purpose="teacher", allow_code=allow_code,
    )  # fmt: skip
    found = section.model_copy(update={"pretrained": start.own_weights})
    begin = f"teacher.pretrained: auto: two builds of {section.model} under two seeds have"
    if start.own_weights:
        but = " but for the classifier" if start.head_replaced else ""
        use = "fine-tuned" if teacher_needs_training(found, start) else "used as it is"
        sentence = (
            f"the same weights{but}, so it is {use}; --set teacher.pretrained=false trains it from scratch"
        )
    else:
        sentence = "different weights, so it is trained from scratch; true uses it as a pretrained one"
    return recipe.replace(teacher=found), f"{begin} {sentence}"


def _with_recorded_peers(requested: Recipe, recorded: Recipe) -> Recipe:
    """Gives peers without weights those that they were given together with the student."""
    if requested.student.weights != AUTO or len(requested.peers) != len(recorded.peers):
        return requested
    peers = [
        before if (peer.model, peer.weights) == (before.model, None) else peer
        for peer, before in zip(requested.peers, recorded.peers, strict=True)
    ]
    return requested.replace(peers=peers)


def _resolve_student_weights(recipe: Recipe, data: Data, progress: bool) -> tuple[Recipe, str | None]:
    """Chooses published weights for a student that learns from few images, and downloads them.

    Args:
        recipe: Checked.
        data: Opened.
        progress: True: shows the download.

    Returns:
        The recipe with a name and its sha256, or random; and a sentence for the user, or None.
    """
    student = recipe.student
    if student.weights != AUTO:
        return recipe, None
    with_random_weights = _with_student(recipe, RANDOM, None)
    if data.channels != 3 or len(data.train) >= SMALL_FOLDER:
        return with_random_weights, None  # published weights are for images of three channels
    name = weights.default_weights(student.model)
    if name is None:
        return with_random_weights, None
    try:
        loaded = weights.resolve(name, student.model, progress=progress, connect_s=CONNECT_S)
    except (WorldError, UserError) as error:
        failure = f"could not be loaded ({error})"
        if isinstance(error, DownloadError):
            failure = f"could not be downloaded within {CONNECT_S:g} s ({error.reason})"
        return with_random_weights, (
            f"student.weights: auto: {name} {failure}; the student starts from random weights. Pass a file "
            "with --set student.weights=FILE"
        )
    recipe = _with_student(recipe, name, loaded.sha256)
    peers = [
        peer.model_copy(update={"weights": name, "sha256": loaded.sha256})
        if (peer.model, peer.weights) == (student.model, None)
        else peer
        for peer in recipe.peers
    ]
    # With the classes of the weights nothing would be drawn, and networks that begin equal stay equal.
    names = loaded.class_names
    together = peers != recipe.peers and names is not None and len(names) != len(data.class_names)
    if together:
        recipe = recipe.replace(peers=peers)
    who = "student and peers start" if together else "the student starts"
    return recipe, (
        f"student.weights: auto: {who} from {name}, since there are only {len(data.train):,} "
        "training images; --set student.weights=random starts from random weights"
    )


def _with_student(recipe: Recipe, weights: str | None, sha256: str | None) -> Recipe:
    return recipe.replace(student=recipe.student.model_copy(update={"weights": weights, "sha256": sha256}))
