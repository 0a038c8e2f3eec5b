"""Splits a network behind a stage, and builds fresh copies of what follows the stage."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError, Uncuttable, suggest
from kdcompress.networks.build import CHOOSE, cuttable, segments
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.undisturbed import undisturbed


@dataclass(frozen=True, slots=True)
class Split:
    """Holds a network's chain of segments in two parts: up to a stage's map, and from it on.

    Args:
        stem: From the normalised images to the map; shares the network's modules.
        rest: From the map to the network's output, segment by segment; shares the network's modules.
        position: Number of pieces of the flat chain that lie in the stem.
    """

    stem: nn.Sequential
    rest: nn.Sequential
    position: int


def split(tapped: Tapped, stage: str) -> Split:
    """Splits a network behind a stage.

    Args:
        tapped: Not changed.
        stage: One of its stages.

    Raises:
        NetworkError: No such stage.
        Uncuttable: The network is no straight chain, or the map lies inside one of its pieces.
    """
    known = tapped.shapes().stages
    if stage not in known:
        raise NetworkError(f"{tapped.model}: no stage {stage!r}{suggest(stage, known)}")
    expected = tapped.dry_run(frozenset({"stages"})).stages[stage]
    end = flatten(tapped.network.get_submodule(tapped.taps.stages[stage].path))[-1]
    position, certain = None, False
    with undisturbed(tapped.network):
        map_BCHW = tapped.sample()
        for index, piece in enumerate(pieces(tapped.model, tapped.network), start=1):
            map_BCHW = piece(map_BCHW)
            if _same(map_BCHW, expected) and (piece is end or not certain):
                # Else the last one that fits: a block whose last norm starts at zero returns its input.
                position, certain = index, piece is end
    if position is None:
        path = tapped.taps.stages[stage].path
        raise Uncuttable(
            f"{tapped.model}: cannot be cut behind {stage} ({path}), which is no border between its "
            f"segments; name another module in its taps, or {CHOOSE} {cuttable()}"
        )
    return split_at(tapped.model, tapped.network, position)


def split_at(model: str, network: nn.Module, position: int) -> Split:
    """Splits a network behind a number of pieces of its flat chain.

    Args:
        model: The network was built from it.
        network: Shares its modules with the result.
        position: Taken from the split of another network of the same specification.
    """
    stem: OrderedDict[str, nn.Module] = OrderedDict()
    rest: OrderedDict[str, nn.Module] = OrderedDict()
    begin = 0
    for name, segment in segments(model, network):
        inner = flatten(segment)
        end = begin + len(inner)
        if end <= position:
            stem[name] = segment
        elif begin >= position:
            rest[name] = segment
        else:
            stem[name] = nn.Sequential(*inner[: position - begin])
            rest[name] = nn.Sequential(*inner[position - begin :])
        begin = end
    return Split(nn.Sequential(stem), nn.Sequential(rest), position)


def fresh_network(tapped: Tapped) -> nn.Module:
    """Builds a network of the same class, device and number format, drawn from torch's global generator."""
    number_format = next(tapped.network.parameters()).dtype
    return tapped.spec.build().to(tapped.device, number_format).to(memory_format=torch.channels_last)


def shortened(tapped: Tapped, stage: str, rest: nn.Sequential, blocks: int) -> nn.Sequential:
    """Keeps at most `blocks` blocks of each later stage, and those that a change of shape needs.

    A block is a child of a stage that holds a convolution; norms, activations and pooling go with the block
    before them.

    Args:
        tapped: The network that was split.
        stage: The stage behind which it was split.
        rest: The chain behind the stage, in a network of the same class; shares its modules with the result.
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
    """Lists the modules of the flat chain that a network consists of.

    Raises:
        Uncuttable: It is no straight chain.
    """
    return [piece for _, segment in segments(model, network) for piece in flatten(segment)]


def flatten(module: nn.Module) -> list[nn.Module]:
    """Lists the modules that run one after the other, without the plain containers around them."""
    if not _is_sequence(module):
        return [module]
    return [piece for child in module.children() for piece in flatten(child)]


def _same(a: Tensor, b: Tensor) -> bool:
    # A GPU may take another algorithm for the same convolution in the second pass.
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * b.abs().max())


def _is_sequence(module: nn.Module) -> bool:
    # A subclass with a forward of its own does more than run its children.
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


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
