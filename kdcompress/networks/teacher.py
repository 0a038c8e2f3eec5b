"""Teachers: the interface that methods read, and a frozen copy of a network behind it."""

from __future__ import annotations

import copy
import hashlib
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcompress.data.batch import TurnedViews, View
from kdcompress.data.input_spec import InputSpec
from kdcompress.errors import NetworkError
from kdcompress.networks.activations import LOGITS, Activations, Want
from kdcompress.networks.fold import fold_batch_norm, foldable, overwritable, overwrite
from kdcompress.networks.tapped import Tapped
from kdcompress.tasks import Task

FOLD_TOLERANCE = 1e-6
"""Largest difference of a folded reading in float64, relative to the largest value of that reading."""


class Teacher(Protocol):
    """Gives outputs that do not change during a training: a frozen network, a file or a cache."""

    @property
    def model(self) -> str:
        """`FAMILY/NAME`, or another name for messages."""

    @property
    def tapped(self) -> Tapped | None:
        """Its network with taps, read at its own size; None: it is no network."""

    @property
    def num_classes(self) -> int:
        """K; 0 for a backbone."""

    @property
    def task(self) -> Task:
        """Classification, or embedding for a teacher without a classifier."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) in pixels that images are resized to; None: they go in as they come."""

    @property
    def input_spec(self) -> InputSpec:
        """The way from an image to its input, with its own mean and std."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that its outputs depend on, but size and normalisation."""

    @property
    def normalisation(self) -> list[list[float]]:
        """Mean and std per channel as float32 numbers, for the keys of cached results."""

    @property
    def device(self) -> torch.device:
        """The device that its images must be on."""

    @property
    def precision(self) -> torch.dtype | None:
        """Autocast type of the passes; None is float32 throughout."""

    @precision.setter
    def precision(self, precision: torch.dtype | None) -> None: ...

    def to(self, device: torch.device | str) -> Self:
        """Moves it to a device."""

    def compile(self, *, graphs: bool = False) -> None:
        """Compiles its passes where that is possible; with `graphs` they replay CUDA graphs."""

    def __call__(self, images: View | TurnedViews | Tensor, want: Want = LOGITS) -> Activations:
        """Returns float32 readings without gradients.

        Args:
            images: A view, turned views, or `[B, C, H, W]` float32 in [0, 1].
            want: Fields to read; the rest stays empty.
        """

    def classify(self, pooled: Tensor) -> Tensor:
        """Returns its classifier's logits `[B, K]` of pooled features `[B, D]`; gradients reach `pooled`."""

    def shapes(self, image_size: tuple[int, int] | None = None) -> Activations:
        """Returns the readings of a batch of two as tensors without data."""

    def assert_unchanged(self) -> None:
        """Raises an AssertionError if anything changed since it was made."""

    def on_epoch_end(self) -> None:
        """Finishes what other processes may read in the next epoch."""


def teacher_network(teacher: Teacher, purpose: str) -> Tapped:
    """Returns the network of a teacher that has one, such as for heads that are copies of its stages.

    Args:
        teacher: The teacher.
        purpose: Begins the message: who needs the network for what.

    Raises:
        NetworkError: The teacher is no network.
    """
    if teacher.tapped is not None:
        return teacher.tapped
    raise NetworkError(f"{purpose}: needs the teacher as a network, and {teacher.model} is none")


class FrozenTeacher:
    """Reads a frozen copy of a network in evaluation mode; the original network is never changed.

    Args:
        tapped: The trained network. Its precision is taken over.
        size: (H, W) in pixels that the network expects; images of another size are resized (bilinear,
            antialiased). None: images go in as they come.
        fold: Fold each batch norm into the convolution before it and let activations write in place, where
            no other operation reads that tensor. Outputs of float64 copies on the CPU are compared first;
            where they differ more than `FOLD_TOLERANCE`, nothing is folded and `folded` is 0.

    Attributes:
        tapped: The network with its taps, read at the teacher's own size.
        size: (H, W) in pixels that images are resized to; None: unchanged.
        folded: Number of batch norms that were folded.
        foldable: Number of batch norms that could be folded; `folded` is 0 if that would change the outputs.
    """

    def __init__(self, tapped: Tapped, *, size: tuple[int, int] | None = None, fold: bool = True) -> None:
        self.size = None if size is None else (int(size[0]), int(size[1]))
        # A network made for 224 pixels has other stages on images of 32.
        self.tapped: Tapped = tapped if self.size in (None, tapped.image_size) else tapped.at(self.size)
        self._pairs = foldable(self.tapped) if fold else []
        self._in_place = overwritable(self.tapped) if fold else []
        self._frozen = self._copy(self._pairs, self._in_place)
        self.foldable = len(self._pairs)
        if (self._pairs or self._in_place) and not self._folding_is_exact():
            self._pairs, self._in_place = [], []
            self._frozen = self._copy([], [])
        self.folded = len(self._pairs)
        self._before = _fingerprint(tapped.network)
        self._set_precision(tapped.precision)

    @property
    def model(self) -> str:
        """`FAMILY/NAME`."""
        return self.tapped.model

    @property
    def num_classes(self) -> int:
        """K; 0 for a backbone."""
        return self.tapped.num_classes

    @property
    def task(self) -> Task:
        """Classification, or embedding for a teacher without a classifier."""
        return self.tapped.task

    @property
    def input_spec(self) -> InputSpec:
        """The way from an image to its input, at its own size."""
        return self.tapped.input_spec

    @property
    def normalisation(self) -> list[list[float]]:
        """Mean and std per channel as float32 numbers."""
        return [self.tapped.mean.tolist(), self.tapped.std.tolist()]

    @property
    def fingerprint(self) -> str:
        """A hash of all its tensors."""
        text = "".join(f"{name}={digest};" for name, digest in sorted(self._before.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """The device that its images must be on."""
        return self._frozen.device

    @property
    def precision(self) -> torch.dtype | None:
        """Autocast type of the passes; None is float32 throughout."""
        return self._frozen.precision

    @precision.setter
    def precision(self, precision: torch.dtype | None) -> None:
        if precision != self._frozen.precision:
            device = self.device
            # From the original: weights that were once rounded do not come back.
            self._frozen = self._copy(self._pairs, self._in_place).to(device)
            self._set_precision(precision)

    def to(self, device: torch.device | str) -> Self:
        """Moves the frozen copy; the original network stays where it is."""
        self._frozen.to(device)
        return self

    def __call__(self, images: View | TurnedViews | Tensor, want: Want = LOGITS) -> Activations:
        """Runs one pass under `no_grad`.

        Args:
            images: A view, turned views, or `[B, C, H, W]` float32 in [0, 1].
            want: Fields to read; the rest stays empty.

        Returns:
            Float32 readings without gradients, at the teacher's own size.
        """
        tensor = images if isinstance(images, Tensor) else images.images
        with torch.no_grad():
            return self._frozen(self._resized(tensor), want)

    def compile(self, *, graphs: bool = False) -> None:
        """Compiles the passes of the frozen copy, until its precision is changed (`Tapped.compile`)."""
        self._frozen.compile(graphs=graphs)

    def classify(self, pooled: Tensor) -> Tensor:
        """Computes the frozen classifier's logits `[B, K]`, float32; gradients reach `pooled`.

        Args:
            pooled: `[B, D]`, as wide as the teacher's own pooled features.
        """
        return self._frozen.classify(pooled)

    @property
    def classifier(self) -> nn.Module | None:
        """The frozen layer that gives the logits of pooled features; None: there is no such layer."""
        frozen = self._frozen
        return frozen.classifier if frozen.task.has_classes and frozen.taps.classifier is not None else None

    def shapes(self, image_size: tuple[int, int] | None = None) -> Activations:
        """Returns the readings of a batch of two as tensors without data.

        Args:
            image_size: (H, W) in pixels of the images; None: the size given at construction. Ignored by a
                teacher that resizes.
        """
        return self.tapped.shapes(self.size or image_size)

    def on_epoch_end(self) -> None:
        """Does nothing: every pass is done when it returns."""

    def assert_unchanged(self) -> None:
        """Checks that original network and frozen copy are bit for bit what they were at construction.

        Raises:
            AssertionError: A parameter or buffer differs; the message names it.
        """
        pairs = [
            ("", self._before, self.tapped.network),
            ("frozen copy's ", self._frozen_before, self._frozen.network),
        ]
        for whose, before, network in pairs:
            after = _fingerprint(network)
            changed = sorted(
                name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
            )
            assert not changed, f"the teacher's {whose}{changed[0]} changed during training"

    def _resized(self, images: Tensor) -> Tensor:
        if self.size is None or tuple(images.shape[2:]) == self.size:
            return images
        return F.interpolate(images, size=self.size, mode="bilinear", antialias=True, align_corners=False)

    def _folding_is_exact(self) -> bool:
        # In float64 on the CPU: TF32 convolutions of a GPU, and float32 in a network that amplifies rounding,
        # differ between folded and unfolded by more than any wrong fold must be allowed to.
        plain = self._copy([], [], torch.float64)
        return _same_readings(self._copy(self._pairs, self._in_place, torch.float64), plain)

    def _copy(
        self, pairs: list[tuple[str, str]], in_place: list[str], dtype: torch.dtype | None = None
    ) -> Tapped:
        network = copy.deepcopy(self.tapped.network).eval().requires_grad_(False)
        if dtype is not None:
            network = network.to("cpu", dtype)
        overwrite(network, in_place)
        fold_batch_norm(network, pairs)
        return self.tapped.with_network(network)

    def _set_precision(self, precision: torch.dtype | None) -> None:
        self._frozen.precision = precision
        if precision is not None:
            # Autocast would round the same weights at every pass. Batch norm keeps float32, as under
            # autocast.
            for module in self._frozen.network.modules():
                if type(module) in (nn.Conv2d, nn.Linear):
                    module.to(precision)
        self._frozen_before = _fingerprint(self._frozen.network)


def _same_readings(folded: Tapped, plain: Tapped) -> bool:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, plain.channels, *plain.image_size, generator=generator, dtype=torch.float64)
    want: Want = frozenset({plain.task.activation, "stages"})
    with torch.no_grad():
        for tapped in (folded, plain):
            tapped.precision = None
        got, expected = folded(images, want), plain(images, want)
    outputs = [read.output(plain.task) for read in (got, expected)]
    assert outputs[0] is not None
    assert outputs[1] is not None
    pairs = [(outputs[0], outputs[1])]
    pairs += [(got.stages[name], expected.stages[name]) for name in expected.stages]
    return all(bool((a - b).abs().max() <= FOLD_TOLERANCE * b.abs().max()) for a, b in pairs)


def _fingerprint(network: nn.Module) -> dict[str, str]:
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in tensors}


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()  # bfloat16 has no NumPy type of its own
