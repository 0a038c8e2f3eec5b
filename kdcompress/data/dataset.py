"""The data set of a run: opened, cut into splits, in the networks' channels and size, measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kdcompress import discovery
from kdcompress.data.augment import resolve_preset
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.data.class_weights import scaled_class_weights
from kdcompress.data.data_warnings import (
    warn_of_shared_images,
    warn_of_tiny_classes,
    warn_of_unequal_classes,
)
from kdcompress.data.extra import KEY as EXTRA_ROOT
from kdcompress.data.extra import Extra
from kdcompress.data.image_splits import VAL
from kdcompress.data.input_spec import BORDER, Fit, InputSpec
from kdcompress.data.joined import JoinedSource
from kdcompress.data.label_table import table_at
from kdcompress.data.loader import EvaluationLoader
from kdcompress.data.orders import Order
from kdcompress.data.pools import EXTRA, LABELLED, REAL, UNLABELLED, Pool
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.data.shard_files import shards_at
from kdcompress.data.source import FolderSource, MemorySource, Source
from kdcompress.data.splits import cut_splits, hide_labels
from kdcompress.data.statistics import normalisation
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

__all__ = ["Data", "OnProgress", "Raw", "open_data"]


@dataclass(frozen=True)
class Data:
    """A data set, ready for a run.

    Args:
        name: Name in `kdcompress datasets`.
        class_names: K names; labels are positions in it. Empty if the classes are not known.
        channels: 1 or 3, of the images of the sources.
        train: Training images.
        held_out: Images on which epochs and files are chosen, or None.
        test: Images read at the end.
        mean: Per channel, of images in [0, 1].
        std: Per channel.
        listing_sha256: Hash of the set's files or pixels.
        counts: Images by split (`train`, `held_out`, `test`) and `broken` files.
        warnings: Sentences for the user.
        augment: Name of the training images' augmentation.
        license: Licence of the images, or None if not known.
        labelled_share: Least share of a batch that has labels, where only some training images have.
        pools: Kinds of images with a fixed share of every batch; empty: one kind.
        extra: Generated images that `for_method` adds to the training images.
        order: Batch order of a method that asks for none.
        fit: How pictures become squares (`InputSpec.fit`).
        test_name: Name of the test split in texts: that of the folder it was read from, such as `val`.
        has_validation: The held-out images are the data's own validation split, beside its test split.
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
    order: Order = "shuffled"
    fit: Fit = "crop"
    test_name: str = "test"
    has_validation: bool = False

    @property
    def labelled(self) -> int:
        """Number of training images with a label."""
        return int((self.train.labels >= 0).sum())

    @property
    def in_files(self) -> bool:
        """True if no image is held in memory."""
        splits = (self.train, self.held_out, self.test, self.extra and self.extra.source)
        return all(isinstance(split, FolderSource) for split in splits if split is not None)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images of the sources."""
        return self.train.image_size

    def input_spec(self) -> InputSpec:
        """Describes the input of a network trained on this data."""
        height, width = self.image_size
        resize = crop = None
        if self.fit != "crop":
            border = BORDER if self.fit == "pad" else None
            return InputSpec(self.channels, height, width, self.mean, self.std, fit=self.fit, border=border)
        if isinstance(self.train, FolderSource):
            resize, crop = self.train.resize, self.train.side
        elif isinstance(self.train, MemorySource) and self.train.size is not None:
            resize, crop = min(height, width), min(height, width)
        return InputSpec(self.channels, height, width, self.mean, self.std, resize, crop)

    def split_called(self, name: str) -> Literal["test", "held_out"]:
        """Returns the split that a user means: test, held_out, or the name of one's folder.

        Raises:
            DataError: There is no split of that name.
        """
        if name in ("test", self.test_name):
            return "test"
        if name == "held_out" or (name in VAL and self.has_validation):
            return "held_out"
        own = "" if self.test_name == "test" else f", {self.test_name}"
        raise DataError(
            f"--split {name}: the data has no test split of that name; expected test, held_out{own}"
        )

    def for_method(self, *, labels: bool, unlabelled: bool) -> Data:
        """Selects the training images that a method can use, generated images behind the real ones.

        Args:
            labels: The method uses labels.
            unlabelled: The method also uses images without a label; if not, those are left out.

        Raises:
            DataError: Nothing is left.
        """
        real = self._real(labels=labels, unlabelled=unlabelled)
        if self.extra is None:
            return real
        generated, train = self.extra.source, real.train
        if not unlabelled:
            generated = generated.subset((generated.labels >= 0).nonzero().flatten())
            if len(generated) == 0:
                raise DataError(
                    f"{EXTRA_ROOT}: this training needs labels, and no generated image has one; sort them "
                    "into a folder per class, or let a teacher label them (--set data.extra.relabel=true)"
                )
        assert isinstance(train, MemorySource | FolderSource)
        whole = (Pool(REAL, torch.arange(len(train)), 1.0),)
        pools = [replace(pool, share=pool.share * (1 - self.extra.share)) for pool in real.pools or whole]
        behind = torch.arange(len(train), len(train) + len(generated))
        return replace(
            real,
            train=JoinedSource((train, generated)).with_augment(self.augment),
            pools=(*pools, Pool(EXTRA, behind, self.extra.share)),
            extra=None,
        )

    def with_clusters(self, assigned: Tensor, clusters: int) -> Data:
        """Returns the data whose training images have clusters for labels, drawn uniformly by cluster.

        Held-out images stay without a label, and test images keep theirs, which are no clusters.

        Args:
            assigned: `[N]` int64, the cluster of each training image.
            clusters: Number of clusters.
        """
        assert isinstance(self.train, MemorySource | FolderSource), "no generated images beside clusters"
        names = tuple(f"cluster {number}" for number in range(clusters))
        train = replace(self.train, labels=assigned)
        return replace(self, class_names=names, train=train, order="cluster_uniform")

    def _real(self, *, labels: bool, unlabelled: bool) -> Data:
        """Selects the real images; arguments as of `for_method`."""
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
        class_weights: Literal["auto", "none", "balanced"] | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        order: Order = "shuffled",
        train_batch_size: int = 0,
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> DataInfo:
        """Collects what a method may know of the data; opens nothing.

        Args:
            class_weights: `train.class_weights` of a recipe.
            label_smoothing: In [0, 1).
            order: Of the method's batches; that of clusters is the data's own.
            train_batch_size: Global, `data.batch_size` of a recipe; 0: not known.
            batch_size: Images of a held-out batch.
            device: Device of the held-out batches.
            workers: Processes that decode the held-out images; they are started at the first held-out batch
                and end with the iteration.

        Raises:
            UserError: The list of class weights does not fit the classes.
        """

        def held_out() -> Iterator[Batch]:
            if self.held_out is not None:
                loader = EvaluationLoader(
                    self.held_out, batch_size=batch_size, device=device, workers=workers
                )
                with contextlib.closing(loader):
                    yield from loader

        by_class = order != "shuffled" or self.order != "shuffled"
        if by_class and class_weights in ("auto", "balanced"):
            class_weights = "none"  # every class is drawn equally often
        return DataInfo(
            num_classes=self.num_classes,
            labels=self.train.labels,
            image_size=self.image_size,
            channels=self.channels,
            held_out=held_out,
            class_weights=scaled_class_weights(
                class_weights, self.train.labels, self.num_classes, self._frequency(by_class)
            ),
            label_smoothing=label_smoothing,
            # The same in the loader: a set smaller than one batch is one batch.
            batch_size=min(train_batch_size, len(self.train)),
        )

    def _frequency(self, by_class: bool) -> Tensor | None:
        """Returns how often each image is drawn, `[N]` float64 of mean 1; None: equally often.

        Args:
            by_class: True if every class is drawn equally often.
        """
        if by_class:
            known = self.train.labels.clamp(min=0)
            counts = torch.bincount(known[self.train.labels >= 0], minlength=self.num_classes).double()
            drawn = counts.sum() / ((counts > 0).sum() * counts)
            return torch.where(self.train.labels >= 0, drawn[known], 0.0)
        if not self.pools:
            return None
        frequency = torch.zeros(len(self.train), dtype=torch.float64)
        for pool in self.pools:
            frequency[pool.indices] = pool.share * len(frequency) / len(pool.indices)
        return frequency


def open_data(
    section: DataSection, *, channels: frozenset[int] = frozenset({1, 3}), progress: OnProgress | None = None
) -> Data:
    """Reads, checks, cuts and measures a data set.

    Official splits are used. A set that comes uncut gives a tenth to the test split and the
    share `data.held_out` of all its images (80/10/10 by default); a set with a test split alone gives that
    share of its training images. The cuts are as `data.cut` says, and the same for every seed.

    Args:
        section: `data:` of the recipe.
        channels: Numbers of channels that all networks of the run accept. Grey images are repeated on three
            channels if 1 is not among them.
        progress: Called during downloads and during the check of the image files.

    Raises:
        DataError: The data cannot be used; the message says why and what to change.
        DownloadError: The data is nowhere and cannot be downloaded.
    """
    name = data_set_name(section)
    read: Callable[[DataSection, OnProgress | None], Raw] = discovery.load("dataset", name).read
    raw = read(section, progress)
    train, held_out, test, warnings = cut_splits(raw, section.held_out, by_class=section.cut_by_class)
    preset = raw.augment if section.augment == "auto" else resolve_preset(section.augment, raw.augment)
    measured = train  # the pixels as they come, before a resize
    train, held_out = hide_labels(train, held_out, section.labels, raw.class_names)
    sources = {"train": train, "held_out": held_out, "test": test}
    splits = {
        name: _fitted(source, section, channels, preset)
        for name, source in sources.items()
        if source is not None
    }
    train = splits["train"]
    called = {raw.test_name if name == "test" else name: source for name, source in splits.items()}
    warnings = [*raw.warnings, *warnings, *warn_of_shared_images(called)]
    if bool((train.labels >= 0).any()):
        warnings += warn_of_tiny_classes(train.labels, raw.class_names)
        warnings += warn_of_unequal_classes(train.labels, raw.class_names)
    mean, std = normalisation(measured, train.channels)
    counts = {name: len(splits[name]) if name in splits else 0 for name in sources}
    return Data(
        name=name,
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
        license=section.license or raw.license,
        labelled_share=section.labelled_share,
        fit=section.resize,
        test_name=raw.test_name,
        has_validation=raw.held_out is not None and "held_out" in splits,
    )


def data_set_name(section: DataSection) -> str:
    """Returns the data set that a section names; an imagefolder may be an imagetable or imageshards.

    Raises:
        DataError: The folder has several tables, or shards for a part of its splits.
    """
    if section.dataset != "imagefolder":
        return section.dataset
    if table_at(section.root) is not None:
        return "imagetable"
    return "imageshards" if shards_at(section.root) is not None else "imagefolder"


def _fitted(
    source: MemorySource | FolderSource, section: DataSection, accepted: frozenset[int], preset: str
) -> MemorySource | FolderSource:
    channels = source.channels
    if channels not in accepted:
        # A file can be decoded to grey; pixels in memory are only ever repeated, never thrown away.
        possible = {3} if isinstance(source, MemorySource) else {1, 3}
        if not accepted & possible:
            if section.channels == 1:
                raise DataError(
                    f"data.channels: 1, but {section.dataset} comes in colour; leave data.channels out"
                )
            accepts = ", ".join(map(str, sorted(accepted))) or "no common number of"
            raise DataError(
                f"data.dataset: {section.dataset} has {channels} channels, the networks accept {accepts}; "
                "choose another network or data set"
            )
        channels = max(accepted & possible)
    source = replace(source, channels=channels).with_augment(preset)
    if isinstance(source, FolderSource):
        return replace(source, fit=section.resize)
    if section.image_size is not None:
        size = (section.image_size, section.image_size)
        return source if source.image_size == size else source.with_size(size)
    return source
