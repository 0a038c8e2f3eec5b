"""A network cut in two at a stage: what comes before the map, and fresh copies of what comes after it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError, Uncuttable, suggest
from kdcompress.networks import build
from kdcompress.networks.trace import undisturbed

if TYPE_CHECKING:
    from kdcompress.networks.tapped import Tapped


@dataclass(frozen=True, slots=True)
class Cut:
    """A network's chain of segments, parted behind a stage's map.

    Args:
        stem: From the normalised images to the map; shares the network's modules.
        rest: From the map to the logits, segment by segment; shares the network's modules.
        position: How many pieces of the flat chain lie in the stem.
    """

    stem: nn.Sequential
    rest: nn.Sequential
    position: int


def cut(tapped: Tapped, stage: str) -> Cut:
    """Cuts a network behind a stage.

    Args:
        tapped: Left as it was.
        stage: One of its stages.

    Raises:
        NetworkError: No such stage.
        Uncuttable: The network is no straight chain, or the map lies inside one of its pieces.
    """
    known = tapped.shapes().stages
    if stage not in known:
        raise NetworkError(f"{tapped.model}: no stage {stage!r}{suggest(stage, known)}")
    wanted = tapped.dry_run(frozenset({"stages"})).stages[stage]
    end = flat(tapped.network.get_submodule(tapped.taps.stages[stage].path))[-1]
    position, certain = None, False
    with undisturbed(tapped.network):
        map_BCHW = tapped.sample()
        for index, piece in enumerate(pieces(tapped.model, tapped.network), start=1):
            map_BCHW = piece(map_BCHW)
            if _same(map_BCHW, wanted) and (piece is end or not certain):
                # Else the last one that fits: a block whose last norm starts at zero gives what it was given.
                position, certain = index, piece is end
    if position is None:
        path = tapped.taps.stages[stage].path
        raise Uncuttable(
            f"{tapped.model}: cannot be cut behind {stage} ({path}), which is no border between its segments"
        )
    return _parted(build.segments(tapped.model, tapped.network), position)


def fresh(tapped: Tapped, position: int) -> Cut:
    """A newly drawn network of the same class and device, cut at `position`."""
    return _parted(build.segments(tapped.model, fresh_network(tapped)), position)


def fresh_network(tapped: Tapped) -> nn.Module:
    """A newly drawn network of the same class, from torch's global generator, on the same device."""
    network = build.build(
        tapped.model, num_classes=tapped.num_classes, channels=tapped.channels, image_size=tapped.image_size,
        allow_code=True,  # the network exists, so its code was allowed
    )  # fmt: skip
    return network.to(tapped.device).to(memory_format=torch.channels_last)


def shortened(tapped: Tapped, stage: str, rest: nn.Sequential, blocks: int) -> nn.Sequential:
    """The chain with at most `blocks` blocks in each later stage, and those that a change of shape needs.

    A block is a child of a stage that holds a convolution; norms, activations and pooling go with the block
    before them.

    Args:
        tapped: Whose tail this is.
        stage: Where it was cut.
        rest: From `fresh`; in the end it shares its modules with the result.
        blocks: At least 1.
    """
    if blocks < 1:
        raise NetworkError(f"{tapped.model}: a tail keeps at least 1 block of each stage, got {blocks}")
    map_BCHW = tapped.dry_run(frozenset({"stages"})).stages[stage]
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    with undisturbed(rest):
        for name, segment in rest.named_children():
            if name.startswith("stage") and _is_sequence(segment):
                segment = _first_blocks(segment, blocks, map_BCHW)
            kept[name] = segment
            map_BCHW = segment(map_BCHW)
    return nn.Sequential(kept)


def pieces(model: str, network: nn.Module) -> list[nn.Module]:
    """The flat chain that a network consists of.

    Raises:
        Uncuttable: It is no straight chain.
    """
    return [piece for _, segment in build.segments(model, network) for piece in flat(segment)]


def flat(module: nn.Module) -> list[nn.Module]:
    """The pieces that run one after the other, with all plain containers around them taken off."""
    if not _is_sequence(module):
        return [module]
    return [piece for child in module.children() for piece in flat(child)]


def _same(a: Tensor, b: Tensor) -> bool:
    # A GPU may take another algorithm for the same convolution in the second pass.
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * b.abs().max())


def _is_sequence(module: nn.Module) -> bool:
    # A subclass with a forward of its own does more than run its children.
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _parted(chain: list[tuple[str, nn.Module]], position: int) -> Cut:
    stem: OrderedDict[str, nn.Module] = OrderedDict()
    rest: OrderedDict[str, nn.Module] = OrderedDict()
    begin = 0
    for name, segment in chain:
        pieces = flat(segment)
        end = begin + len(pieces)
        if end <= position:
            stem[name] = segment
        elif begin >= position:
            rest[name] = segment
        else:
            stem[name] = nn.Sequential(*pieces[: position - begin])
            rest[name] = nn.Sequential(*pieces[position - begin :])
        begin = end
    return Cut(nn.Sequential(stem), nn.Sequential(rest), position)


def _first_blocks(segment: nn.Module, blocks: int, map_BCHW: Tensor) -> nn.Sequential:
    kept: list[nn.Module] = []
    count, keeping = 0, True
    for child in segment.children():
        after = child(map_BCHW)
        if any(isinstance(module, nn.Conv2d) for module in child.modules()):
            count += 1
            keeping = count <= blocks or after.shape != map_BCHW.shape
        if keeping:
            kept.append(child)
            map_BCHW = after
    return nn.Sequential(*kept)
