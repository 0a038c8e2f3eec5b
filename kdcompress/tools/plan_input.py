"""Measures what the input of a training costs, as it is and with other settings, for `plan`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompress.cores import granted_cores
from kdcompress.data import fast_views
from kdcompress.data.decode import quiet_pillow
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.pixel_cache import Kind, PictureFormat, PixelCache, PixelCachedSource, choose_kind
from kdcompress.data.pixel_store import Picture
from kdcompress.data.source import FolderSource
from kdcompress.run.context import Run

_SAMPLE = 64
"""Pictures that are decoded in each way."""
_LONGEST_S = 20.0


@dataclass(frozen=True, eq=False)
class _HeldSource(PixelCachedSource):
    """Image files whose pictures of a pixel cache are in memory.

    Args:
        pictures: One for each file.
    """

    pictures: tuple[Picture, ...] = ()

    def _stored(self, index: int) -> Picture:
        return self.pictures[index]


@dataclass(frozen=True, slots=True)
class InputTimes:
    """Seconds of a batch of training images.

    Args:
        images: A batch `[B, C, H, W]`, on the run's device.
        measured: Seconds in which a batch is made when nothing else computes, without a pixel cache.
        now: The same with the recipe's settings.
        others: The same with other settings, by the setting.
        fill: Seconds that the recipe's pixel cache takes before the training; 0: it has none, or is full.
    """

    images: Tensor
    measured: float
    now: float
    others: dict[str, float]
    fill: float


def measure_input(run: Run, loader: TrainingLoader, preset: str, batches: int) -> InputTimes:
    """Measures the batches of a training, and pictures in other settings of `data`.

    Nothing is added to a cache: the pictures of a pixel cache are held in memory. What was read once comes
    from the operating system's memory, so a slow disk is not in the times.

    Args:
        run: The run, without its pixel cache.
        loader: The training batches; closed afterwards.
        preset: Augmentation of the (first) view of an image.
        batches: How many to measure at most.
    """
    with contextlib.closing(loader):
        images = next(loader.epoch(0)).images
        began, count = time.perf_counter(), 0
        for _ in loader.epoch(1):
            count += 1
            if count == batches or time.perf_counter() - began > _LONGEST_S:
                break
        measured = (time.perf_counter() - began) / count
    source = run.data.train
    if not isinstance(source, FolderSource):
        return InputTimes(images, measured, measured, {}, 0.0)
    now, others, fill = _of_files(run, source.with_augment(preset), measured)
    return InputTimes(images, measured, now, others, fill)


def _of_files(run: Run, source: FolderSource, measured: float) -> tuple[float, dict[str, float], float]:
    """Returns the times `now`, `others` and `fill` of `InputTimes`."""
    seed, kind = run.recipe.seed, run.recipe.data.pixel_cache
    chosen = torch.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).round().long()
    sample = source.subset(chosen)
    per_second = measured / _seconds(sample, seed)
    if kind in ("raw", "jpeg"):
        cached, per_picture = _in_memory(sample, kind)
        store = PixelCache(source, PictureFormat.of(source, kind)).open().store
        assert store is not None
        fill = len(store.missing) * per_picture / granted_cores()
        return per_second * _seconds(cached, seed), {}, fill
    others = {}
    if (chosen_kind := choose_kind(source)) is not None:
        cached, _ = _in_memory(sample, chosen_kind)
        others["data.pixel_cache=auto"] = per_second * _seconds(cached, seed)
    if run.recipe.data.decoder == "pillow" and fast_views.version() is not None:
        fast = dataclasses.replace(sample, decoder="simplejpeg")
        others["data.decoder=auto"] = per_second * _seconds(fast, seed)
    return measured, others, 0.0


def _seconds(source: FolderSource, seed: int) -> float:
    """Measures the time in which all images of a set are made once; the first pass is not counted."""
    everything = torch.arange(len(source))
    taken = []
    with quiet_pillow():
        for view in range(3):
            began = time.perf_counter()
            source.training_images(everything, view, seed)
            taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _in_memory(source: FolderSource, kind: Kind) -> tuple[PixelCachedSource, float]:
    """Returns the images with a pixel cache in memory, and the seconds that a picture of it takes."""
    form = PictureFormat.of(source, kind)
    began = time.perf_counter()
    with quiet_pillow():
        pictures = [form.picture(source.root, file) for file in source.file_list.image_files(source.root)]
    per_picture = (time.perf_counter() - began) / len(pictures)
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(FolderSource)}
    return _HeldSource(**fields, form=form, pictures=tuple(pictures)), per_picture
