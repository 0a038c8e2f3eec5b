"""The base of methods that give every network exits on its stages, and compare all of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.contrast_method import ContrastMethod
from kdcompress.methods.requirements import pooled_width
from kdcompress.methods.stage_gradient import StageGradient, with_gradient_share
from kdcompress.networks.activations import Want
from kdcompress.networks.exits import exit_after
from kdcompress.networks.tapped import Tapped, wide

READS: Want = frozenset({"logits", "pooled", "stages"})
"""Outputs that are read from every network."""

End = tuple[int, int]
"""An exit: number of its network, number of the exit there (the last is the network's own output)."""
ByExit = Sequence[Sequence[Tensor]]
"""One tensor for each exit of each network."""


class ExitMethod(ContrastMethod):
    """Holds each network's exits, and embedding heads, aggregators and projections for them.

    Attributes:
        stages: Of each network the stages with an exit, shallow to deep.
        exits: Of each network an exit on each of these stages.
        heads: Of each network an embedding head for each exit; here and below the network's own output is
            the last exit.
        aggregators: Of each network the layers that weight its exits' logits.
        matchers: Of each network a projection for each exit, whose cosines match two exits.
    """

    class Config(ContrastMethod.Config, StageGradient):
        """Options of the contrast, and of the exits."""

    config: Config

    def build_exits(self, method: str, exits: int, blocks: int | None, matching_width: int) -> None:
        """Builds all parts.

        Args:
            method: Name of the method, for messages.
            exits: Largest number of exits of a network, its own output included.
            blocks: Largest number of blocks of each stage in an exit; None: all.
            matching_width: Width of the projections.

        Raises:
            NetworkError: A network has a single stage, or no pooled features.
            Uncuttable: A network is no straight chain behind a stage.
        """
        self.exits = nn.ModuleList()
        self.heads = nn.ModuleList()
        self.aggregators = nn.ModuleList()
        self.matchers = nn.ModuleList()
        self.stages: list[list[str]] = []
        for name, network in zip(self.names(), self.architectures(), strict=True):
            role = name.rstrip("0123456789")
            features = pooled_width(method, "embeds the pooled features of each exit", role, network)
            self.stages.append(exit_stages(method, network, exits))
            count = 1 + len(self.stages[-1])
            self.exits.append(nn.ModuleList(exit_after(network, s, blocks=blocks) for s in self.stages[-1]))
            self.heads.append(nn.ModuleList(self.embedding_head(features) for _ in range(count)))
            self.aggregators.append(_aggregator(features, count))
            self.matchers.append(nn.ModuleList(nn.Linear(features, matching_width) for _ in range(count)))

    def read_exits(
        self, images: Tensor, stage_gradient: float = 1.0
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Returns pooled features `[B, D]` and logits `[B, K]` of every exit of every network.

        Args:
            images: `[B, C, H, W]`.
            stage_gradient: Factor on the gradient that the exits but the last give the stages.
        """
        features: list[list[Tensor]] = []
        logits: list[list[Tensor]] = []
        for network, stages, exits in zip(self.architectures(), self.stages, _lists(self.exits), strict=True):
            whole = network(images, READS)
            maps = [with_gradient_share(whole.stages[s], stage_gradient) for s in stages]
            reads = [branch(own_map) for own_map, branch in zip(maps, exits, strict=True)]
            features.append([read.pooled for read in (*reads, whole)])
            logits.append([read.logits for read in (*reads, whole)])
        return features, logits

    def embeddings(self, features: ByExit) -> list[list[Tensor]]:
        """Computes the unit embeddings `[B, E]` of all exits."""
        return [
            [self.embed(head, rows_BD) for head, rows_BD in zip(heads, rows, strict=True)]
            for heads, rows in zip(_lists(self.heads), features, strict=True)
        ]

    def match(self, features: ByExit) -> dict[tuple[End, End], Tensor]:
        """Computes the weight `[B]` of each pair of exits of two networks, the lower network first."""
        projected: dict[End, Tensor] = {}
        for i, (matchers, rows) in enumerate(zip(_lists(self.matchers), features, strict=True)):
            for k, (matcher, rows_BD) in enumerate(zip(matchers, rows, strict=True)):
                with self.networks.student.autocast():
                    rows_BM = matcher(rows_BD)
                projected[i, k] = losses.unit_rows(wide(rows_BM))
        return {(a, b): losses.match(projected[a], projected[b]) for a, b in _pairs(projected)}

    def aggregate(self, features: ByExit, logits: ByExit) -> list[Tensor]:
        """Mixes each network's logits over its exits to `[B, K]`, with weights for each image."""
        mixed = []
        for aggregator, rows, each in zip(self.aggregators, features, logits, strict=True):
            with self.networks.student.autocast():
                shares_BS = aggregator(torch.cat(list(rows), 1))
            mixed.append(losses.mixed_logits(wide(shares_BS), torch.stack(list(each), 1)))
        return mixed


def by_end(values: ByExit) -> dict[End, Tensor]:
    """Returns the tensors of all exits in one dictionary."""
    return {(i, k): value for i, exits in enumerate(values) for k, value in enumerate(exits)}


def _pairs(ends: Mapping[End, Tensor]) -> list[tuple[End, End]]:
    return [(a, b) for a, b in itertools.combinations(ends, 2) if a[0] != b[0]]


def exit_stages(method: str, network: Tapped, exits: int) -> list[str]:
    """Lists the stages that have an exit behind them, shallow to deep.

    Raises:
        NetworkError: The network has a single stage.
    """
    stages = list(network.shapes().stages)
    if len(stages) < 2:
        raise NetworkError(
            f"method {method}: needs two stages or more, {network.model} has {len(stages)}; name them "
            "in taps or take larger images"
        )
    return stages[:-1][-(exits - 1) :]


def _aggregator(features: int, exits: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(exits * features, features), nn.ReLU(), nn.Linear(features, exits))


def _lists(modules: nn.ModuleList) -> list[nn.ModuleList]:
    """Types the inner lists, of which torch says only that they are modules."""
    return [each for each in modules if isinstance(each, nn.ModuleList)]
