"""A data set as a run uses it: cut into splits, in the networks' channels and size, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kdcompress import discovery
from kdcompress.data.augment import resolve_preset
from kdcompress.data.batch import Batch, DataInfo, no_labels
from kdcompress.data.extra import KEY as EXTRA_ROOT
from kdcompress.data.extra import Extra
from kdcompress.data.image_check import image_file, shared_images
from kdcompress.data.input_spec import InputSpec
from kdcompress.data.joined import JoinedSource
from kdcompress.data.loader import EvaluationLoader
from kdcompress.data.pools import EXTRA, LABELLED, REAL, UNLABELLED, Pool
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.data.source import FolderSource, MemorySource, Source
from kdcompress.data.splits import LABELS_SEED, stratified
from kdcompress.errors import DataError, UserError
from kdcompress.recipe import DataSection

__all__ = ["Data", "OnProgress", "Raw", "open_data"]

TEST_SHARE = 0.1
"""Of a set without an official split: 80/10/10 with the default `data.held_out` of 0.1."""
TINY_CLASS = 10
"""Training images below which a class is warned of."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of image folders, whose networks mostly start from weights made with them."""
_CHUNK = 4096  # images whose pixels are added up at once
_NAMED = 5


@dataclass(frozen=True)
class Data:
    """A data set, ready for a run.

    Args:
        name: As in `kdcompress datasets`.
        class_names: K names; labels are positions in it. Empty where nobody has told the classes.
        channels: 1 or 3, of the images that the sources give.
        train: What is trained on.
        held_out: On which choices are made, or None.
        test: Read at the end.
        mean: Per channel, of images in [0, 1].
        std: Per channel.
        listing_sha256: Hash of what the set consists of.
        counts: Images by split (`train`, `held_out`, `test`) and `broken` files.
        warnings: Sentences for the user.
        augment: Name of the training images' augmentation.
        license: Of the images, or None if not known.
        labelled_share: Least share of a batch that has labels, where only some training images have.
        pools: What each batch is made of; empty where all images are alike.
        extra: Generated images that join the training images of who is taught by them too.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    train: Source
    held_out: Source | None
    test: Source
    mean: tuple[float, ...]
    std: tuple[float, ...]
    listing_sha256: str
    counts: dict[str, int]
    warnings: tuple[str, ...]
    augment: str
    license: str | None
    labelled_share: float = 0.5
    pools: tuple[Pool, ...] = ()
    extra: Extra | None = None

    @property
    def labelled(self) -> int:
        """Training images that have a label."""
        return int((self.train.labels >= 0).sum())

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images that the sources give."""
        return self.train.image_size

    def input_spec(self) -> InputSpec:
        """What a network trained on this data expects of its input."""
        height, width = self.image_size
        resize = crop = None
        if isinstance(self.train, FolderSource):
            resize, crop = self.train.resize, self.train.side
        elif isinstance(self.train, MemorySource) and self.train.size is not None:
            resize, crop = min(height, width), min(height, width)
        return InputSpec(self.channels, height, width, self.mean, self.std, resize, crop)

    def taught(self, *, labels: bool, unlabelled: bool) -> Data:
        """The data as a method trains on it, generated images behind the real ones.

        Args:
            labels: Whether labels teach it.
            unlabelled: Whether an image without a label teaches it too; if not, those are left out.

        Raises:
            DataError: Nothing is left.
        """
        real = self._real(labels=labels, unlabelled=unlabelled)
        if self.extra is None:
            return real
        made, train = self.extra.source, real.train
        if not unlabelled:
            made = made.subset((made.labels >= 0).nonzero().flatten())
            if len(made) == 0:
                raise DataError(
                    f"{EXTRA_ROOT}: this training needs labels, and no generated image has one; sort them "
                    "into a folder per class, or let a teacher label them (--set data.extra.relabel=true)"
                )
        assert isinstance(train, MemorySource | FolderSource)
        whole = (Pool(REAL, torch.arange(len(train)), 1.0),)
        pools = [replace(pool, share=pool.share * (1 - self.extra.share)) for pool in real.pools or whole]
        behind = torch.arange(len(train), len(train) + len(made))
        return replace(
            real,
            train=JoinedSource((train, made)).with_augment(self.augment),
            pools=(*pools, Pool(EXTRA, behind, self.extra.share)),
            extra=None,
        )

    def _real(self, *, labels: bool, unlabelled: bool) -> Data:
        """The same of the real images."""
        has_label = self.train.labels >= 0
        if bool(has_label.all()):
            return self
        with_label, without = has_label.nonzero().flatten(), (~has_label).nonzero().flatten()
        if not unlabelled:
            if len(with_label) == 0:
                raise DataError("data: this training needs labels, and no training image has one")
            return replace(self, train=self.train.subset(with_label), pools=())
        if len(with_label) == 0 or not labels:
            return self
        share = max(self.labelled_share, len(with_label) / len(self.train))
        return replace(self, pools=(Pool(LABELLED, with_label, share), Pool(UNLABELLED, without, 1 - share)))

    def info(
        self,
        class_weights: Literal["none", "balanced"] | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        train_batch_size: int = 0,
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> DataInfo:
        """What a method may know of the data.

        Args:
            class_weights: As `train.class_weights` of a recipe.
            label_smoothing: In [0, 1).
            train_batch_size: Global, as `data.batch_size` of a recipe; 0: not known.
            batch_size: Of the held-out batches.
            device: Of the held-out batches.
            workers: Processes that decode the held-out images.

        Raises:
            UserError: The list of class weights does not fit the classes.
        """
        held_out: EvaluationLoader | tuple[Batch, ...] = ()
        if self.held_out is not None:
            held_out = EvaluationLoader(self.held_out, batch_size=batch_size, device=device, workers=workers)
        return DataInfo(
            num_classes=self.num_classes,
            labels=self.train.labels,
            image_size=self.image_size,
            channels=self.channels,
            held_out=held_out,
            class_weights=scaled_class_weights(
                class_weights, self.train.labels, self.num_classes, self._often()
            ),
            label_smoothing=label_smoothing,
            # As the loader has it: a set smaller than one batch is one batch.
            batch_size=min(train_batch_size, len(self.train)),
        )

    def _often(self) -> Tensor | None:
        """`[N]` float64: how often each image is met, 1 on the average; None: all alike."""
        if not self.pools:
            return None
        often = torch.zeros(len(self.train), dtype=torch.float64)
        for pool in self.pools:
            often[pool.indices] = pool.share * len(often) / len(pool.indices)
        return often


def open_data(
    section: DataSection, *, channels: frozenset[int] = frozenset({1, 3}), progress: OnProgress | None = None
) -> Data:
    """Reads, checks, cuts and measures a data set.

    Official splits are used where there are. A set that comes uncut gives a tenth to the test split and the
    share `data.held_out` of all its images (80/10/10 by default); a set with a test split alone gives that
    share of its training images. The cuts are stratified and the same for every seed.

    Args:
        section: `data:` of the recipe.
        channels: What all networks of the run accept. Grey images are repeated on three channels where 1 is
            not in it.
        progress: Told of downloads and of the check of the image files.

    Raises:
        DataError: The data cannot be used; the message says why and what to change.
        DownloadError: The data is nowhere and cannot be downloaded.
    """
    read: Callable[[DataSection, OnProgress | None], Raw] = discovery.load("dataset", section.dataset).read
    raw = read(section, progress)
    train, held_out, test, warnings = _cut(raw, section.held_out)
    preset = raw.augment if section.augment == "auto" else resolve_preset(section.augment, raw.augment)
    if isinstance(train, MemorySource):
        mean, std = channel_statistics(train.images)  # of the pixels as they come, whatever size is asked for
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    train, held_out = _seen_labels(train, held_out, section.labels, raw.class_names)
    known = {"train": train, "held_out": held_out, "test": test}
    splits = {
        name: _fitted(source, section, channels, preset)
        for name, source in known.items()
        if source is not None
    }
    train = splits["train"]
    warnings = [*raw.warnings, *warnings, *_shared(splits)]
    if bool((train.labels >= 0).any()):
        warnings += _tiny_classes(train.labels, raw.class_names)
    mean, std = _of_channels(mean, train.channels), _of_channels(std, train.channels)
    counts = {name: len(splits[name]) if name in splits else 0 for name in known}
    return Data(
        name=section.dataset,
        class_names=raw.class_names,
        channels=train.channels,
        train=train,
        held_out=splits.get("held_out"),
        test=splits["test"],
        mean=mean,
        std=std,
        listing_sha256=raw.listing_sha256,
        counts={**counts, "broken": raw.broken},
        warnings=tuple(warnings),
        augment=preset,
        license=raw.license,
        labelled_share=section.labelled_share,
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of images in [0, 1], over all pixels, rounded to six decimals.

    Args:
        images: `[N, C, H, W]` uint8.

    Returns:
        (mean, std); the std of a channel that is the same everywhere is 1, so that it can be divided by.
    """
    channels = images.shape[1]
    total, squares = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    for part in torch.split(images, _CHUNK):  # whole numbers: the sums are exact, in whatever order
        # Through a histogram: 256 products instead of one per pixel.
        for channel in range(channels):
            counts = torch.bincount(part[:, channel].reshape(-1), minlength=256)
            values = torch.arange(256)
            total[channel] += (counts * values).sum()
            squares[channel] += (counts * values * values).sum()
    pixels = images.numel() // channels
    mean = total.double() / pixels / 255
    std = (squares.double() / pixels / 255**2 - mean**2).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())


def scaled_class_weights(
    weights: Literal["none", "balanced"] | Sequence[float] | None,
    labels: Tensor,
    num_classes: int,
    often: Tensor | None = None,
) -> Tensor | None:
    """`[K]` float32 whose mean over the labelled images is 1, or None.

    Args:
        weights: `balanced`: inversely to a class's frequency; a list: one per class; `none` or None: all
            alike.
        labels: `[N]` int64; -1 means no label.
        num_classes: K.
        often: `[N]` how often each image is met, where they are not met alike.

    Raises:
        UserError: A list of another length, with a negative weight, or without a positive one.
    """
    if weights is None or weights == "none":
        return None
    has_label = labels >= 0
    met = None if often is None else often[has_label]
    counts = torch.bincount(labels[has_label], weights=met, minlength=num_classes).double()
    if float(counts.sum()) == 0:
        raise UserError("train.class_weights: no training image has a label to weight")
    if isinstance(weights, str):
        raw = torch.where(counts > 0, 1 / counts, 1)  # of a class without images: anything finite
    else:
        raw = torch.tensor(list(weights), dtype=torch.float64)
        if len(raw) != num_classes:
            raise UserError(
                f"train.class_weights: expected {num_classes} numbers, one per class, got {len(raw)}"
            )
        if not bool(((raw >= 0) & raw.isfinite()).all()) or float((raw * counts).sum()) == 0:
            raise UserError(
                "train.class_weights: expected numbers from 0 on, and a positive one for a class with images"
            )
    return (raw * counts.sum() / (raw * counts).sum()).float()


_Cut = tuple[
    MemorySource | FolderSource, MemorySource | FolderSource | None, MemorySource | FolderSource, list[str]
]


def _cut(raw: Raw, held_out: float) -> _Cut:
    """(train, held-out, test, warnings) by the rules that `open_data` states."""
    train, test, warnings = raw.train, raw.test, []
    everything = len(train)
    if test is None:
        kept, cut = stratified(train.labels, TEST_SHARE)
        train, test = train.subset(kept), train.subset(cut)
    if raw.held_out is not None:
        if held_out > 0:
            return train, raw.held_out, test, []
        warnings.append(
            f"the validation split of {len(raw.held_out)} images is left out, since data.held_out is 0"
        )
    if held_out == 0:
        return train, None, test, warnings
    # A share is meant of all images that came uncut, so that 0.1 gives 80/10/10.
    count = held_out if held_out >= 1 else max(1, round(held_out * everything))
    kept, cut = stratified(train.labels, count)
    return train.subset(kept), train.subset(cut), test, warnings


def _seen_labels(
    train: MemorySource | FolderSource,
    held_out: MemorySource | FolderSource | None,
    labels: Literal["all", "none"] | int,
    class_names: Sequence[str],
) -> tuple[MemorySource | FolderSource, MemorySource | FolderSource | None]:
    """Training and held-out images with the labels that `data.labels` lets be seen.

    A number leaves the held-out labels: they choose among epochs and teach nothing.
    """
    if labels == "all":
        return train, held_out
    if labels == "none":
        hidden = None if held_out is None else replace(held_out, labels=no_labels(len(held_out)))
        return replace(train, labels=no_labels(len(train))), hidden
    known = int((train.labels >= 0).sum())
    if known == 0:
        raise DataError(f"data.labels: {labels}, and no training image has a label")
    most = known - len(class_names)
    if not len(class_names) <= labels <= most:
        raise DataError(
            f"data.labels: {labels} of {known} training labels in {len(class_names)} classes; expected "
            f"{len(class_names)} to {most}, or all"
        )
    hidden_at, _ = stratified(train.labels, labels, LABELS_SEED)
    seen = train.labels.clone()
    seen[hidden_at] = -1
    return replace(train, labels=seen), held_out


def _fitted(
    source: MemorySource | FolderSource, section: DataSection, accepted: frozenset[int], preset: str
) -> MemorySource | FolderSource:
    channels = source.channels
    if channels not in accepted:
        # A file can be decoded to grey; pixels in memory are only ever repeated, never thrown away.
        possible = {3} if isinstance(source, MemorySource) else {1, 3}
        if not accepted & possible:
            wanted = ", ".join(map(str, sorted(accepted))) or "no common number of"
            raise DataError(
                f"data.dataset: {section.dataset} has {channels} channels, the networks accept {wanted}; "
                "choose another network or data set"
            )
        channels = max(accepted & possible)
    source = replace(source, channels=channels).with_augment(preset)
    if isinstance(source, MemorySource) and section.image_size is not None:
        size = (section.image_size, section.image_size)
        return source if source.image_size == size else source.with_size(size)
    return source


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    # Grey repeated on three channels, or colour files decoded to grey.
    return values * channels if len(values) == 1 else (round(sum(values) / len(values), 3),)


def _tiny_classes(labels: Tensor, class_names: Sequence[str]) -> list[str]:
    counts = torch.bincount(labels[labels >= 0], minlength=len(class_names)).tolist()
    tiny = [(count, name) for name, count in zip(class_names, counts, strict=True) if count < TINY_CLASS]
    if not tiny:
        return []
    named = ", ".join(f"{name!r} ({count})" for count, name in sorted(tiny)[:_NAMED])
    more = f" and {len(tiny) - _NAMED} more" if len(tiny) > _NAMED else ""
    classes = "1 class has" if len(tiny) == 1 else f"{len(tiny)} classes have"
    return [f"{classes} fewer than {TINY_CLASS} training images: {named}{more}"]


def _shared(splits: dict[str, MemorySource | FolderSource]) -> list[str]:
    """A sentence if image files stand in two splits: what is measured on them is then too good."""
    folders = {name: source for name, source in splits.items() if isinstance(source, FolderSource)}
    if not folders:
        return []
    root = folders["train"].root
    files = {name: [image_file(root, file) for file in source.files] for name, source in folders.items()}
    found = shared_images(root, files)
    if not found:
        return []
    first, one, second, other = found[0]
    count = "1 image stands" if len(found) == 1 else f"{len(found)} images stand"
    return [
        f"{count} in two splits, for example {one} ({first}) and {other} ({second}); "
        "what is measured on them is too good"
    ]
