"""Keys and shapes that a network's tensors must have, for any number of classes and channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError
from kdcompress.networks.build import NetworkSpec, accepted_channels
from kdcompress.networks.read_checkpoint import unusual_kind

COUNTER = ".num_batches_tracked"
"""Checkpoints from before PyTorch 0.4.1 lack it, and nothing but a cumulative average reads it."""

STATISTICS = (".running_mean", ".running_var")
"""Statistics of batch norm; averages of weights are sometimes saved without them."""
_FEW, _MORE = 2, 3
"""Numbers of classes that the network is built with, to see which of its sizes follow them."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The result of comparing tensors with a network.

    Args:
        num_classes: K that they tell, or None: none of their sizes says it.
        channels: C that they tell, or None.
        right: Number of the network's keys that they have as expected.
        missing: Keys of the network that they lack; counters of batches do not count.
        wrong: Tensors of another shape or kind, one `key (…) for (…)` each.
    """

    num_classes: int | None
    channels: int | None
    right: int
    missing: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """True if nothing is missing or wrong."""
        return not self.missing and not self.wrong

    @property
    def weights_only(self) -> bool:
        """True if statistics of batch norm are missing and nothing else is."""
        lacking = bool(self.missing) and all(key.endswith(STATISTICS) for key in self.missing)
        return lacking and not self.wrong


class Pattern:
    """The keys and shapes of a network of any number of classes and channels.

    The network is built with two numbers of classes and, if it can be, of channels; sizes that differ depend
    on that number.

    Args:
        model: `FAMILY/NAME`, or `python:package.module:function`.
        image_size: (H, W); some networks have tensors that follow it.
        allow_code: True: a `python:` network may be built.

    Attributes:
        keys: Keys of the state dictionary, in its order.
        needed: Those of them that a checkpoint must have.
        parts: Names of the network's own children.

    Raises:
        NetworkError: No such network, or not for these images.
        UserError: Code is not allowed, or the family's package is missing.
    """

    def __init__(self, model: str, *, image_size: tuple[int, int], allow_code: bool = False) -> None:
        self.model = model
        accepted = accepted_channels(model)
        self._most, self._least = max(accepted), min(accepted)

        def built(classes: int, channels: int) -> nn.Module:
            # The generators stand as they stood: looking draws no random numbers.
            with torch.random.fork_rng(devices=[]):
                return NetworkSpec(model, classes, channels, image_size, allow_code).build()

        network = built(_FEW, self._most)
        self.parts = frozenset(name for name, _ in network.named_children())
        self._own = _tensors(network)
        self._classes = _slopes(self._own, _tensors(built(_MORE, self._most)), _MORE - _FEW)
        self._channels: dict[str, tuple[int, ...]] = {}
        # A network of the user's own may take any number there and build for one alone.
        with suppress(NetworkError):
            if self._least != self._most:
                fewer = _tensors(built(_FEW, self._least))
                self._channels = _slopes(self._own, fewer, self._least - self._most)
        self.keys = tuple(self._own)
        self.needed = frozenset(key for key in self.keys if not key.endswith(COUNTER))

    def fit(self, tensors: Mapping[str, Tensor]) -> Fit:
        """Compares tensors with the network by its own keys; other keys are ignored."""
        classes = self._infer_count(tensors, self._classes, _FEW)
        channels = self._infer_count(tensors, self._channels, self._most)
        if channels not in {self._least, self._most}:
            channels = None
        missing = [key for key in self.keys if key in self.needed and key not in tensors]
        wrong = [
            f"{key} {problem}"
            for key in self.keys
            if key in tensors and (problem := self._problem(key, tensors[key], classes, channels))
        ]
        right = sum(key in tensors for key in self.keys) - len(wrong)
        return Fit(classes, channels, right, tuple(missing), tuple(wrong))

    def _infer_count(
        self, tensors: Mapping[str, Tensor], slopes: dict[str, tuple[int, ...]], start: int
    ) -> int | None:
        """Derives the number from the sizes of the tensors that depend on it."""
        for key, slope in slopes.items():
            own = self._own[key].shape
            if key not in tensors or unusual_kind(tensors[key]) or tensors[key].ndim != len(own):
                continue
            for size, base, step in zip(tensors[key].shape, own, slope, strict=True):
                if step and (size - base) % step == 0 and start + (size - base) // step > 0:
                    return start + (size - base) // step
        return None

    def _problem(self, key: str, tensor: Tensor, classes: int | None, channels: int | None) -> str | None:
        own = self._own[key]
        if (kind := unusual_kind(tensor)) is not None:
            return f"{kind} for {str(own.dtype).removeprefix('torch.')}"
        more = (_FEW if classes is None else classes) - _FEW
        fewer = (self._most if channels is None else channels) - self._most
        still = (0,) * own.ndim
        along = zip(
            own.shape, self._classes.get(key, still), self._channels.get(key, still), strict=True
        )  # fmt: skip
        expected = tuple(size + more * step + fewer * other for size, step, other in along)
        if tuple(tensor.shape) != expected:
            return f"{tuple(tensor.shape)} for {expected}"
        same_kind = tensor.is_floating_point() == own.is_floating_point() or key.endswith(COUNTER)
        return None if same_kind else f"{tensor.dtype} for {own.dtype}".replace("torch.", "")


def elements(tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Counts the elements of all tensors but batch-norm statistics."""
    return sum(tensor.numel() for name, tensor in tensors if not name.endswith((*STATISTICS, COUNTER)))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def _slopes(own: dict[str, Tensor], other: dict[str, Tensor], apart: int) -> dict[str, tuple[int, ...]]:
    """Computes how much each axis of a tensor grows per class (or channel), for tensors that grow."""
    slopes = {}
    for key, tensor in own.items():
        larger = other.get(key)
        if larger is not None and larger.ndim == tensor.ndim and larger.shape != tensor.shape:
            slopes[key] = tuple((b - a) // apart for a, b in zip(tensor.shape, larger.shape, strict=True))
    return slopes
