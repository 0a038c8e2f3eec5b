"""Sources of images: a tensor in memory, or files on disk; both give uint8 batches by index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdcompress.data import fast_views
from kdcompress.data.augment import augment, pipeline_of, resolve_preset
from kdcompress.data.border import FloatBox, cut_on_border, on_border
from kdcompress.data.colour import adjust_colours
from kdcompress.data.crop import CropTable, crop_box, fitted_size, resize_images, usual_pad
from kdcompress.data.decode import decode_image, open_image, quiet_pillow, upright_size
from kdcompress.data.file_list import FileList
from kdcompress.data.input_spec import Fit
from kdcompress.data.prefetch import moved

Decoder = Literal["pillow", "simplejpeg"]
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
        decoder: What random parts of pictures for training are decoded and resized by: "pillow", or
            "simplejpeg" with torch (`fast_views`). Pictures for evaluation are Pillow's.
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
    decoder: Decoder = "pillow"

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
            slow = self._padded_part if self.fit == "pad" else self._random_part
            part = slow if self.decoder == "pillow" else self._fast_part
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

    @contextmanager
    def _picture(self, index: int) -> Iterator[fast_views.Picture]:
        """Opens a picture for the fast way."""
        with self._open(index) as stored:
            yield fast_views.OpenPicture(stored, self.channels)

    def _batch(self, squares: Iterable[Image.Image | NDArray[np.uint8]], count: int) -> Tensor:
        """Copies images into a batch `[B, C, H, W]` uint8 in the memory layout `[B, H, W, C]`."""
        batch = np.empty((count, self.side, self.side, self.channels), np.uint8)
        for place, image in zip(batch, squares, strict=True):
            place[:] = np.asarray(image).reshape(place.shape)
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _random_part(self, index: int, view: int, seed: int, scale: tuple[float, float]) -> Image.Image:
        with self._open(index) as stored:
            width, height = upright_size(stored)
            box, flip = self._box(seed, view, index, (width, height), scale)
            least = self._least(box, (width, height))
            stored.draft(None, (least, least))
            image = decode_image(stored, self.channels)
        x, y = image.width / width, image.height / height
        scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        image = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box=scaled)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _fast_part(self, index: int, view: int, seed: int, scale: tuple[float, float]) -> NDArray[np.uint8]:
        """Cuts the part that `_random_part` or `_padded_part` cuts, `[H, W, C]`, from whole pixels."""
        with self._picture(index) as stored:
            size, padded = stored.size, self.fit == "pad"
            box, flip = self._box(seed, view, index, size, scale)
            picture = stored.pixels(self._least(box, (max(size), max(size)) if padded else size))
        part = fast_views.part_with_border if padded else fast_views.part
        image = part(picture, size, box, self.side)
        return image[:, ::-1] if flip else image

    def _least(self, box: FloatBox, size: tuple[int, int]) -> int:
        """Returns the pixels that both sides of a picture must keep so that a part of it has enough.

        A JPEG may be decoded smaller. It is the same bound for both sides, because it is for the image as
        stored, which may lie on its side.
        """
        across, down = box[2] - box[0], box[3] - box[1]
        return math.ceil(self.side * max(size[0] / across, size[1] / down))

    def _box(
        self, seed: int, view: int, index: int, size: tuple[int, int], scale: tuple[float, float]
    ) -> tuple[FloatBox, bool]:
        """Draws the part of a picture to keep, (left, top, right, bottom) in pixels, and if it is mirrored.

        Of a picture that is squeezed, the part is drawn after the squeeze: then it is as distorted as the
        pictures of the evaluation. On a border it is a part of the padded square.
        """
        if self.fit == "crop":
            return crop_box(seed, view, int(self.ids[index]), *size, scale)
        longer = max(size)
        box, flip = crop_box(seed, view, int(self.ids[index]), longer, longer, scale)
        if self.fit == "pad":
            return box, flip
        x, y = size[0] / longer, size[1] / longer
        return (box[0] * x, box[1] * y, box[2] * x, box[3] * y), flip

    def _padded_part(self, index: int, view: int, seed: int, scale: tuple[float, float]) -> Image.Image:
        """Cuts a random part out of the picture on its border, moved so that its centre is on the picture."""
        with self._open(index) as stored:
            longer = max(upright_size(stored))
            box, flip = self._box(seed, view, index, (longer, longer), scale)
            least = math.ceil(self.side * longer / min(box[2] - box[0], box[3] - box[1]))
            stored.draft(None, (least, least))
            image = decode_image(stored, self.channels)
        image = cut_on_border(image, box, longer, self.side)
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
            return on_border(image, self.side)
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
