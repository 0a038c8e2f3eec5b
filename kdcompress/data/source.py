"""Sources of images: a tensor in memory, or files on disk; both give uint8 batches by index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcompress.data.augment import augment, pipeline_of, resolve_preset
from kdcompress.data.colour import adjust_colours
from kdcompress.data.crop import Box, CropTable, crop_box, fitted_size, resize_images, usual_pad
from kdcompress.data.decode import decode_image, open_image, quiet_pillow, upright_size
from kdcompress.data.file_list import FileList
from kdcompress.data.input_spec import BORDER, Fit
from kdcompress.data.prefetch import moved

CROP_SHARE = 0.875
"""Side of the central crop to the shorter side before it (224 of 256), for images from files."""
MATERIALISE_BYTES = 1 << 28
"""A resized in-memory set is kept resized up to 256 MiB; a larger one is resized batch by batch, to the same
pixels. An un-augmented split of files is kept decoded up to the same size."""
IN_ORDER = torch.empty(0, dtype=torch.int64)
"""Stands for the ids 0 to N - 1."""
_CHUNK = 1024  # images resized at once: bounds the float32 copies to a few hundred MiB


class Source(Protocol):
    """Images with labels, by position."""

    @property
    def labels(self) -> Tensor:
        """`[N]` int64 on the CPU; -1 means no label."""

    @property
    def ids(self) -> Tensor:
        """`[N]` int64 on the CPU: each image's position in its whole data set, which keys its augmentation.

        It stays the same whatever is held out, left out or added, so that runs can share a cache.
        """

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of what the two image methods give."""

    def __len__(self) -> int:
        """Returns N."""

    def subset(self, indices: Tensor) -> Self:
        """Selects the images at these positions, renumbered from 0."""

    def with_augment(self, preset: str) -> Self:
        """Gives the same images with another preset; weak and strong depend on the present one."""

    def training_images(self, indices: Tensor, view: int, seed: int) -> Tensor:
        """Returns one augmented view of each image, `[B, C, H, W]` uint8."""

    def evaluation_images(self, indices: Tensor) -> Tensor:
        """Returns the images `[B, C, H, W]` uint8, not augmented."""


@dataclass(frozen=True, eq=False)
class MemorySource:
    """A set that fits into memory.

    Args:
        images: `[N, C, H, W]` uint8. Kept channels last, which makes cropping a single gather.
        labels: `[N]` int64.
        channels: 3 repeats grey images on three channels; else the images' own number.
        size: (H, W) that images are resized to, antialiased; None: their own.
        preset: Augmentation of training images.
        pad: Pixels of padding for the random crop; None: an eighth of the side.
        ids: `[N]` int64, each image's position in its whole data set (`Source.ids`); empty: 0 to N - 1.
    """

    images: Tensor
    labels: Tensor
    channels: int = 0
    size: tuple[int, int] | None = None
    preset: str = "none"
    pad: int | None = None
    ids: Tensor = IN_ORDER
    _crops: CropTable = field(default_factory=CropTable, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8, self.images.dtype
        assert self.images.dim() == 4, self.images.shape
        assert len(self.images) == len(self.labels), (len(self.images), len(self.labels))
        pipeline_of(self.preset)
        object.__setattr__(self, "images", self.images.contiguous(memory_format=torch.channels_last))
        object.__setattr__(self, "labels", self.labels.to(torch.int64))
        object.__setattr__(self, "ids", _numbered(self.ids, len(self.labels)))
        if self.channels == 0:
            object.__setattr__(self, "channels", self.images.shape[1])
        assert self.channels in {self.images.shape[1], 3}, self.channels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images it gives."""
        return self.size or (int(self.images.shape[2]), int(self.images.shape[3]))

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.images.numel()

    def subset(self, indices: Tensor) -> Self:
        """Selects the images at these positions, renumbered from 0."""
        return replace(self, images=self.images[indices], labels=self.labels[indices], ids=self.ids[indices])

    def with_augment(self, preset: str) -> Self:
        """Gives the same images with another preset; weak and strong depend on the present one."""
        return replace(self, preset=resolve_preset(preset, self.preset))

    def with_channels(self, channels: int) -> Self:
        """Returns the same images with grey repeated on three channels, or unchanged."""
        return replace(self, channels=channels)

    def with_size(self, size: tuple[int, int]) -> Self:
        """Returns the same images in another size; those of a small set are resized once."""
        count, channels = self.images.shape[:2]
        if count * channels * math.prod(size) > MATERIALISE_BYTES:
            return replace(self, size=size)
        parts = [resize_images(part, size) for part in torch.split(self.images, _CHUNK)]
        return replace(self, images=torch.cat(parts) if parts else self.images, size=size)

    def to(self, device: torch.device) -> Self:
        """Moves the pixels to a device; the labels stay on the CPU."""
        return replace(self, images=self.images.to(device))

    def training_images(self, indices: Tensor, view: int, seed: int) -> Tensor:
        """Returns one augmented view of each image, `[B, C, H, W]` uint8 on the pixels' device."""
        ids, here = self.ids[indices.cpu()], moved(indices, self.images.device)
        pad = usual_pad(min(self.image_size)) if self.pad is None else self.pad
        images = resize_images(self.images[here], self.image_size)
        pipeline, crops = pipeline_of(self.preset), None
        if pipeline.pad:
            rows = self._crops.rows(self.ids, images.device, seed=seed, view=view, pad=pad)
            crops = rows[here]
        images = augment(images, ids, seed=seed, view=view, preset=self.preset, pad=pad, crops=crops)
        return images.expand(-1, self.channels, -1, -1)

    def evaluation_images(self, indices: Tensor) -> Tensor:
        """Returns the images `[B, C, H, W]` uint8 on the pixels' device, not augmented."""
        images = resize_images(self.images[moved(indices, self.images.device)], self.image_size)
        return images.expand(-1, self.channels, -1, -1)


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files, or images in tar shards, decoded when they are asked for.

    Args:
        root: The folder that the file names are relative to.
        files: N names; kept as a `FileList`.
        labels: `[N]` int64.
        side: H = W in pixels of the images it gives.
        channels: 3 or 1; images are converted to it.
        preset: Augmentation of training images.
        crop_share: Side of the central crop to the shorter side before it; 1 keeps all of a square image.
        ids: `[N]` int64, each image's position in its whole data set (`Source.ids`); empty: 0 to N - 1.
        fit: How a picture becomes a square (`InputSpec.fit`); without "crop" no `crop_share` is read.
    """

    root: Path
    files: Sequence[str]
    labels: Tensor
    side: int
    channels: int = 3
    preset: str = "resized_crop_flip"
    crop_share: float = CROP_SHARE
    ids: Tensor = IN_ORDER
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        assert len(self.files) == len(self.labels), (len(self.files), len(self.labels))
        object.__setattr__(self, "ids", _numbered(self.ids, len(self.files)))
        pipeline_of(self.preset)
        if not isinstance(self.files, FileList):
            object.__setattr__(self, "files", FileList.of_names(self.files))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def file_list(self) -> FileList:
        """Names, sizes and times of the files."""
        assert isinstance(self.files, FileList)
        return self.files

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images it gives."""
        return self.side, self.side

    @property
    def resize(self) -> int:
        """Pixels of the shorter side before the central crop."""
        return round(self.side / self.crop_share)

    def subset(self, indices: Tensor) -> Self:
        """Selects the images at these positions, renumbered from 0."""
        files = self.file_list.subset(indices)
        return replace(self, files=files, labels=self.labels[indices], ids=self.ids[indices])

    def with_augment(self, preset: str) -> Self:
        """Gives the same images with another preset; weak and strong depend on the present one."""
        return replace(self, preset=resolve_preset(preset, self.preset))

    def training_images(self, indices: Tensor, view: int, seed: int) -> Tensor:
        """Returns one augmented view of each image, `[B, C, H, W]` uint8.

        Raises:
            DataError: A file cannot be read.
        """
        pipeline, ids = pipeline_of(self.preset), self.ids[indices]
        if not pipeline.resized:
            images, pad = self._squares(indices), usual_pad(self.side)
            return augment(images, ids, seed=seed, view=view, preset=self.preset, pad=pad)
        with quiet_pillow():
            part = self._padded_part if self.fit == "pad" else self._random_part
            parts = (part(index, view, seed, pipeline.scale) for index in indices.tolist())
            images = self._batch(parts, len(indices))
        if pipeline.colours is None:
            return images
        return adjust_colours(images, ids, pipeline.colours, seed=seed, view=view)

    def evaluation_images(self, indices: Tensor) -> Tensor:
        """Returns the pictures as squares, `[B, C, H, W]` uint8: cropped, squeezed or on a border (`fit`).

        Raises:
            DataError: A file cannot be read.
        """
        return self._squares(indices)

    def _squares(self, indices: Tensor) -> Tensor:
        with quiet_pillow():
            return self._batch((self._square(index) for index in indices.tolist()), len(indices))

    def _open(self, index: int) -> AbstractContextManager[Image.Image]:
        """Opens a picture to be cut; its pixels need not be decoded yet."""
        return open_image(self.file_list.place(self.root, index))

    def _batch(self, squares: Iterable[Image.Image], count: int) -> Tensor:
        """Copies images into a batch `[B, C, H, W]` uint8 in the memory layout `[B, H, W, C]`."""
        batch = np.empty((count, self.side, self.side, self.channels), np.uint8)
        for place, image in zip(batch, squares, strict=True):
            place[:] = np.asarray(image).reshape(place.shape)
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _random_part(self, index: int, view: int, seed: int, scale: tuple[float, float]) -> Image.Image:
        with self._open(index) as stored:
            width, height = upright_size(stored)
            box, flip = self._box(seed, view, index, (width, height), scale)
            # A JPEG may be decoded smaller as long as the box keeps the pixels that are asked for. The same
            # bound for both sides, because it is for the image as stored, which may lie on its side.
            across, down = box[2] - box[0], box[3] - box[1]
            least = math.ceil(self.side * max(width / across, height / down))
            stored.draft(None, (least, least))
            image = decode_image(stored, self.channels)
        x, y = image.width / width, image.height / height
        scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        image = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box=scaled)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _box(
        self, seed: int, view: int, index: int, size: tuple[int, int], scale: tuple[float, float]
    ) -> tuple[tuple[float, float, float, float], bool]:
        """Draws the part of a picture to keep, (left, top, right, bottom) in pixels, and if it is mirrored.

        Of a picture that is squeezed, the part is drawn after the squeeze: then it is as distorted as the
        pictures of the evaluation.
        """
        if self.fit == "crop":
            return crop_box(seed, view, int(self.ids[index]), *size, scale)
        longer = max(size)
        box, flip = crop_box(seed, view, int(self.ids[index]), longer, longer, scale)
        x, y = size[0] / longer, size[1] / longer
        return (box[0] * x, box[1] * y, box[2] * x, box[3] * y), flip

    def _padded_part(self, index: int, view: int, seed: int, scale: tuple[float, float]) -> Image.Image:
        """Cuts a random part out of the picture on its border, moved so that its centre is on the picture."""
        with self._open(index) as stored:
            longer = max(upright_size(stored))
            box, flip = crop_box(seed, view, int(self.ids[index]), longer, longer, scale)
            least = math.ceil(self.side * longer / min(box[2] - box[0], box[3] - box[1]))
            stored.draft(None, (least, least))
            image = decode_image(stored, self.channels)
        image = _part_on_border(image, box, longer, self.side)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _square(self, index: int) -> Image.Image:
        with self._open(index) as stored:
            image = decode_image(stored, self.channels)
        if self.fit == "whole":
            return image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        if self.fit == "pad":
            image = image.resize(fitted_size(image.size, self.side), Image.Resampling.BILINEAR)
            return _on_border(image, self.side)
        return self._central_part(image)

    def _central_part(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        width, height = (max(self.side, int(self.resize * length / short)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        return image.crop((left, top, left + self.side, top + self.side))


def _numbered(ids: Tensor, count: int) -> Tensor:
    """Returns the ids of N images as int64; given none: 0 to N - 1."""
    if len(ids) == 0:
        return torch.arange(count)
    assert len(ids) == count, (len(ids), count)
    return ids.to("cpu", torch.int64)


def _on_border(image: Image.Image, side: int) -> Image.Image:
    """Puts an image in the middle of a grey square."""
    square = Image.new(image.mode, (side, side), BORDER if image.mode == "L" else (BORDER,) * 3)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _part_on_border(image: Image.Image, box: Box, longer: int, side: int) -> Image.Image:
    """Cuts a part out of a picture on its border, and resizes it to a square.

    Args:
        image: The picture, perhaps decoded smaller than it is.
        box: The part, in pixels of the padded square of the picture as it is.
        longer: Pixels of that square's side.
        side: Pixels of the result.
    """
    scale = max(image.size) / longer
    left, top, right, bottom = (edge * scale for edge in box)
    spans = []
    for start, end, length in ((left, right, image.width), (top, bottom, image.height)):
        start, end = (edge - (max(image.size) - length) / 2 for edge in (start, end))  # in the picture
        centre = (start + end) / 2
        move = min(max(centre, 0), length) - centre
        start, end = start + move, end + move
        first, last = max(start, 0.0), min(end, float(length))
        places = [round((edge - start) * side / (end - start)) for edge in (first, last)]
        spans.append((first, last, min(places[0], side - 1), max(places[1], min(places[0], side - 1) + 1)))
    (x, x_end, column, last_column), (y, y_end, row, last_row) = spans
    size = (last_column - column, last_row - row)
    part = image.resize(size, Image.Resampling.BILINEAR, box=(x, y, x_end, y_end))
    square = Image.new(image.mode, (side, side), BORDER if image.mode == "L" else (BORDER,) * 3)
    square.paste(part, (column, row))
    return square
