"""Heads on the stages of a network: fresh copies of what follows a stage in the network itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError, Uncuttable
from kdcompress.networks.activations import Activations
from kdcompress.networks.build import CHOOSE, cuttable
from kdcompress.networks.hooks import reading
from kdcompress.networks.split import Split, fresh_network, shortened, split, split_at
from kdcompress.networks.tap_points import Tap
from kdcompress.networks.tapped import Tapped, wide
from kdcompress.networks.undisturbed import undisturbed


class Exit(nn.Sequential):
    """Computes logits, pooled features and the last map from a stage's map, in the network's precision.

    Its children are the later stages and `head`, as in `build.segments`. A copy of it runs in the precision
    of the same network.

    Args:
        tapped: Its precision is that of the passes.
        rest: The chain from the stage's map to the output; shares its modules with the result.
        classifier: Path of the linear classifier within `rest`; None: the head has none.
        sample_BCHW: A map of the stage.
    """

    def __init__(
        self, tapped: Tapped, rest: nn.Sequential, classifier: str | None, sample_BCHW: Tensor
    ) -> None:
        super().__init__(OrderedDict(rest.named_children()))
        self._has_classes = tapped.task.has_classes
        self._pooled = None if classifier is None else Tap(classifier, 0, "input", clone=False)
        # A function, since deepcopy takes those over as they are, and not the network with them.
        self._autocast: Callable[[], torch.autocast] = lambda: tapped.autocast()
        # In-place operations would change a map that others read.
        self._copies_input = self._copies_last_map = False
        with undisturbed(self):
            map_BCHW = sample_BCHW.clone()
            last_BCHW = self._last_map(map_BCHW)
            self._copies_input = map_BCHW._version > 0
            before = last_BCHW._version
            self[-1](last_BCHW)
            self._copies_last_map = last_BCHW._version > before

    def forward(self, map_BCHW: Tensor) -> Activations:
        """Runs the exit.

        Args:
            map_BCHW: A map of the stage, of whatever precision.

        Returns:
            Float32 logits `[B, K]`, pooled features `[B, D]` (None where the network has no linear
            classifier), and the last map `[B, C, H, W]` as `stages["map"]`.
        """
        taps = [] if self._pooled is None else [self._pooled]
        with self._autocast(), reading(self, taps) as read:
            last_BCHW = self._last_map(map_BCHW.clone() if self._copies_input else map_BCHW)
            output = self[-1](last_BCHW.clone() if self._copies_last_map else last_BCHW)
        logits, pooled = (output, None) if self._has_classes else (None, output)
        if self._pooled is not None:
            pooled = read[self._pooled]
        return Activations(
            logits=None if logits is None else wide(logits),
            pooled=None if pooled is None else wide(pooled),
            stages={"map": wide(last_BCHW)},
        )

    def _last_map(self, map_BCHW: Tensor) -> Tensor:
        for stage in list(self)[:-1]:
            map_BCHW = stage(map_BCHW)
        return map_BCHW


class WithExits(nn.Module):
    """Computes a network's output and the outputs of exits on its stages in one pass.

    Args:
        network: Takes normalised images.
        exits: Where each exit reads its map, and its layers, shallowest first.
    """

    def __init__(self, network: nn.Module, exits: Sequence[tuple[Tap, nn.Module]]) -> None:
        super().__init__()
        self.network = network
        self.exits = nn.ModuleList(layers for _, layers in exits)
        self._taps = [tap for tap, _ in exits]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the network's output, then that of each exit."""
        with reading(self.network, self._taps) as read:
            output = self.network(images)
        pairs = zip(self._taps, self.exits, strict=True)
        return (output, *(layers(read[tap]) for tap, layers in pairs))


def exit_after(
    tapped: Tapped, stage: str, *, blocks: int | None = None, num_classes: int | None = None
) -> Exit:
    """Builds an exit behind a stage, with weights from torch's global generator.

    Args:
        tapped: Not changed.
        stage: The exit takes its map; one of `shapes().stages`.
        blocks: Largest number of blocks of each later stage (those beyond it that a change of shape needs
            are kept). None: all.
        num_classes: Width of its logits; None: that of the network.

    Returns:
        On the network's device, in training mode.

    Raises:
        NetworkError: No such stage, or other classes and no linear classifier that could have them.
        Uncuttable: The network is no straight chain behind that stage.
    """
    position = split(tapped, stage).position
    network = fresh_network(tapped)
    rest = split_at(tapped.model, network, position).rest
    if blocks is not None:
        rest = shortened(tapped, stage, rest, blocks)
    path = classifier_path(tapped, network, rest)
    if num_classes is not None:
        _resize_classifier(tapped, rest, path, num_classes)
    return Exit(tapped, rest, path, tapped.dry_run(frozenset({"stages"})).stages[stage])


def own_exit(tapped: Tapped, stage: str) -> tuple[Split, Exit]:
    """Splits a network behind a stage, and wraps its own later part as an exit without copying it.

    Args:
        tapped: Shares its modules with the result.
        stage: One of its stages.

    Raises:
        NetworkError: No such stage.
        Uncuttable: The network is no straight chain behind that stage.
    """
    parts = split(tapped, stage)
    path = classifier_path(tapped, tapped.network, parts.rest)
    return parts, Exit(tapped, parts.rest, path, tapped.dry_run(frozenset({"stages"})).stages[stage])


def classifier_path(tapped: Tapped, network: nn.Module, rest: nn.Module) -> str | None:
    """Finds the classifier of a network, which `tapped` has at the same path, within its last part.

    Raises:
        Uncuttable: It lies elsewhere.
    """
    if tapped.taps.classifier is None:
        return None
    classifier = network.get_submodule(tapped.taps.classifier.path)
    for path, module in rest.named_modules():
        if module is classifier:
            return str(path)
    raise Uncuttable(f"{tapped.model}: its classifier does not lie in the branches; {CHOOSE} {cuttable()}")


def _resize_classifier(tapped: Tapped, rest: nn.Module, path: str | None, num_classes: int) -> None:
    old = None if path is None else rest.get_submodule(path)
    if path is None or not isinstance(old, nn.Linear):
        raise NetworkError(
            f"{tapped.model}: does not end in a linear classifier, so there can be none of {num_classes} "
            "classes behind its stages; choose another network"
        )
    parent, _, name = path.rpartition(".")
    new = nn.Linear(old.in_features, num_classes, old.bias is not None, old.weight.device, old.weight.dtype)
    rest.get_submodule(parent).add_module(name, new)
