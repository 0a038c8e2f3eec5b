"""Keeps decoded training pictures in the cache folder, scaled down to little more than the training size.

What it changes: without the cache, a random part is cut out of the picture as it is stored and resized to the
training size. With it, the picture is first scaled down so that its short side is `MARGIN` times the training
size (its long side where pictures are put on a border), and the part is cut out of that. A small part then
has fewer pixels and looks softer, as with sets that are resized beforehand. `raw` keeps these pixels as they
are; `jpeg` keeps them as a JPEG of quality 90, which changes them a little more. So the student's bits depend
on it, and the recipe names it. Pictures for evaluation, and so all figures, always come from the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import PIL
import torch
from PIL import Image, features
from torch import Tensor

from kdcompress.data.cache import cache_folder
from kdcompress.data.decode import decode_image, open_image, quiet_pillow, upright_size, why_unreadable
from kdcompress.data.fast_views import StoredPicture
from kdcompress.data.file_list import ImageFile, is_unchanged, place_of
from kdcompress.data.input_spec import Fit
from kdcompress.data.pixel_store import SEGMENT, Picture, PixelStore, fill_segments
from kdcompress.data.raw import OnProgress
from kdcompress.data.source import FolderSource
from kdcompress.errors import UnreadableImage

Kind = Literal["raw", "jpeg"]
MARGIN = (8, 7)
"""Short side of a stored picture to the side of the training images: 256 to 224."""
QUALITY = 90
RAW_BYTES = 4 << 30
"""`auto` keeps raw pixels of up to 4 GiB."""
JPEG_BYTES = 64 << 30
"""`auto` keeps JPEG files of up to 64 GiB; ImageNet's 1.28 million pictures at 224 take about 31."""
_SAMPLE = 32  # pictures from which the size is estimated


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """The form of stored pictures.

    Args:
        kind: "raw" pixels or "jpeg" files.
        side: Pixels of the measured side; smaller pictures stay as they are.
        channels: 1 or 3.
        fit: `FolderSource.fit`; with "pad" the longer side is measured, else the shorter.
    """

    kind: Kind
    side: int
    channels: int
    fit: Fit

    @classmethod
    def of(cls, source: FolderSource, kind: Kind) -> Self:
        """Returns the form for a set's training images."""
        side = max(source.resize, math.ceil(source.side * MARGIN[0] / MARGIN[1]))
        return cls(kind, side, source.channels, source.fit)

    def key(self, root: Path) -> bytes:
        """Hashes what determines the pixels, beside the names, sizes and times of the files."""
        parts = [
            root.resolve(), self.kind, self.side, "long" if self.fit == "pad" else "short", self.channels,
            QUALITY, PIL.__version__, features.version("jpg"), features.version("libjpeg_turbo"),
        ]  # fmt: skip
        return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()

    def picture(self, root: Path, file: ImageFile) -> Picture:
        """Decodes and scales a file.

        Args:
            root: Folder that the file's name is relative to.
            file: As it was listed.

        Raises:
            UnreadableImage: It cannot be read, or was changed since it was listed.
        """
        path = place_of(root, file)
        with open_image(path) as stored:
            # A JPEG much larger than needed is decoded at a half, a quarter or an eighth.
            shrink = min(1.0, 2 * self.side / self._measured(upright_size(stored)))
            stored.draft(None, (math.ceil(stored.width * shrink), math.ceil(stored.height * shrink)))
            image = decode_image(stored, self.channels)
        if not is_unchanged(root, file):
            raise UnreadableImage(f"{path}: was changed after the run had listed it")
        length = self._measured(image.size)
        if length > self.side:
            width, height = (max(1, self.side * edge // length) for edge in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return Picture(self._content(image), image.width, image.height)

    @contextmanager
    def opened(self, picture: Picture) -> Iterator[Image.Image]:
        """Opens a stored picture like an image file.

        Raises:
            UnreadableImage: It is no JPEG; another program wrote it.
        """
        if self.kind == "raw":
            mode = "RGB" if self.channels == 3 else "L"
            yield Image.frombytes(mode, (picture.width, picture.height), picture.content)
            return
        try:
            with Image.open(io.BytesIO(picture.content), formats=("JPEG",)) as stored:
                yield stored
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableImage(
                f"a picture of the pixel cache: {why_unreadable(error)}; delete {cache_folder() / 'pixels'}"
            ) from None

    def fits(self, picture: Picture) -> bool:
        """Tells if a stored picture has a size and length of this form."""
        width, height = picture.width, picture.height
        if min(width, height) < 1 or self._measured((width, height)) > self.side:
            return False
        if self.kind == "raw":
            return len(picture.content) == width * height * self.channels
        try:
            with self.opened(picture) as stored:
                return stored.size == (width, height)
        except UnreadableImage:
            return False

    def fast(self, picture: Picture) -> StoredPicture:
        """Returns a stored picture for `FolderSource`'s fast way."""
        size = (picture.width, picture.height)
        return StoredPicture(picture.content, size, self.channels, self.kind == "raw")

    def _measured(self, size: tuple[int, int]) -> int:
        return max(size) if self.fit == "pad" else min(size)

    def _content(self, image: Image.Image) -> bytes:
        if self.kind == "raw":
            return image.tobytes()
        clean = Image.new(image.mode, image.size)  # no profile or comment of the file goes along
        clean.paste(image)
        file = io.BytesIO()
        clean.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()


@dataclass(frozen=True, eq=False)
class PixelCachedSource(FolderSource):
    """Image files whose training images are cut out of stored pictures; those of evaluation out of the files.

    A stored picture that turns out damaged is made again from its file, so the pixels are the same.

    Args:
        form: Form of the stored pictures.
        store: Their places, one per file.
    """

    form: PictureFormat | None = None
    store: PixelStore | None = None

    def subset(self, indices: Tensor) -> Self:
        """Selects the images at these positions, renumbered from 0."""
        assert self.store is not None
        return dataclasses.replace(super().subset(indices), store=self.store.subset(indices))

    def evaluation_images(self, indices: Tensor) -> Tensor:
        """Returns the pictures as squares, `[B, C, H, W]` uint8, decoded from the files.

        Raises:
            DataError: A file cannot be read.
        """
        return self.uncached().evaluation_images(indices)

    def uncached(self) -> FolderSource:
        """Returns the same images without the cache."""
        fields = dataclasses.fields(FolderSource)
        return FolderSource(**{field.name: getattr(self, field.name) for field in fields})

    @contextmanager
    def _open(self, index: int) -> Iterator[Image.Image]:
        assert self.form is not None
        with self.form.opened(self._stored(index)) as image:
            yield image

    @contextmanager
    def _picture(self, index: int) -> Iterator[StoredPicture]:
        assert self.form is not None
        yield self.form.fast(self._stored(index))

    def _stored(self, index: int) -> Picture:
        assert self.store is not None
        assert self.form is not None

        def file() -> ImageFile:
            return self.file_list.file(self.root, index)

        return self.store.read(index, file, self.form.fits) or self.form.picture(self.root, file())


@dataclass(frozen=True, slots=True)
class PixelCache:
    """The stored pictures of a set of image files.

    Args:
        source: The files.
        form: Form of the stored pictures.
    """

    source: FolderSource
    form: PictureFormat

    @property
    def folder(self) -> Path:
        """Folder of the stored pictures, below the cache folder."""
        return cache_folder() / "pixels" / self.form.key(self.source.root).hex()

    def open(self) -> PixelCachedSource:
        """Returns the images with those stored pictures that there are."""
        files = self.source.file_list.image_files(self.source.root)
        store = PixelStore.opened(self.folder, self.form.key(self.source.root), files)
        fields = {field.name: getattr(self.source, field.name) for field in dataclasses.fields(FolderSource)}
        return PixelCachedSource(**fields, form=self.form, store=store)

    def fill(self, missing: Sequence[int], progress: OnProgress, *, rank: int = 0, world: int = 1) -> None:
        """Decodes and stores pictures, in as many threads as there are cores.

        Args:
            missing: Positions of the pictures.
            progress: Called with the number of finished pictures.
            rank: Number of this process, which stores each `world`-th segment.
            world: Number of processes.

        Raises:
            DataError: A file cannot be read, or was changed since it was listed.
            KdcompressError: The folder cannot be written to.
        """
        root = self.source.root
        files = self.source.file_list.subset(torch.tensor(missing, dtype=torch.int64)).image_files(root)
        chunks = [files[start : start + SEGMENT] for start in range(0, len(files), SEGMENT)][rank::world]
        with quiet_pillow():
            fill_segments(
                self.folder,
                self.form.key(root),
                chunks,
                lambda file: self.form.picture(root, file),
                progress,
            )


def estimate_bytes(source: FolderSource, kind: Kind) -> int:
    """Estimates the bytes of all stored pictures from up to 32 of them, equally spaced.

    The same for every run on the same files, on any machine with the same Pillow.

    Raises:
        DataError: A file cannot be read.
    """
    form = PictureFormat.of(source, kind)
    chosen = torch.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).round().long()
    files = source.file_list.subset(chosen).image_files(source.root)
    with quiet_pillow():
        sizes = [len(form.picture(source.root, file).content) for file in files]
    return math.ceil(len(source) * sum(sizes) / len(sizes))


def choose_kind(source: FolderSource) -> Kind | None:
    """Chooses the form that `data.pixel_cache: auto` means for a set; None: it is too large for both."""
    if estimate_bytes(source, "raw") <= RAW_BYTES:
        return "raw"
    return "jpeg" if estimate_bytes(source, "jpeg") <= JPEG_BYTES else None
