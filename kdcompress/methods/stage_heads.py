"""Heads on a stage's map that are shaped by hand; `networks.exits` has those of the network's own layers."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from kdcompress.networks.activations import Activations


class StageHead(nn.Module):
    """Classifies a stage's map: attention gate, layers that shrink it, average over positions, linear layer.

    Args:
        chain: Turns the map `[B, C, H, W]` into one of D channels.
        width: D, width of the student's pooled features.
        num_classes: K.
        gate: Layers to a smaller map of C channels, whose sigmoid, enlarged, weights each element of the
            stage's map; None: no gate.
    """

    def __init__(self, chain: nn.Module, width: int, num_classes: int, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.gate = gate
        self.chain = chain
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, map_BCHW: Tensor) -> Activations:
        """Computes logits `[B, K]`, pooled features `[B, D]`, and the last map as `stages["map"]`."""
        if self.gate is not None:
            gate = F.interpolate(
                self.gate(map_BCHW), size=map_BCHW.shape[2:], mode="bilinear", align_corners=False
            )
            map_BCHW = map_BCHW * gate.sigmoid()
        last_BDHW = self.chain(map_BCHW)
        pooled_BD = last_BDHW.mean((2, 3))
        return Activations(self.classifier(pooled_BD), pooled_BD, {"map": last_BDHW})


class StageClassifier(nn.Module):
    """Computes the logits `[B, K]` of a stage's map alone, as an exported file does.

    Args:
        head: Shares its modules with this one.
    """

    def __init__(self, head: StageHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, K]`."""
        logits_BK = self.head(map_BCHW).logits
        assert isinstance(logits_BK, Tensor)
        return logits_BK


def attention_head(channels: int, width: int, num_classes: int, halvings: int) -> StageHead:
    """Builds the head of BYOT's journal code: attention gate, then depthwise-separable strided blocks.

    Args:
        channels: Channels of the stage map.
        width: D.
        num_classes: K.
        halvings: Number of strided blocks; the last one has D channels.
    """
    gate = nn.Sequential(*_separable(channels, channels))
    # Channels grow to D geometrically, rounded, as in the stages of the backbone.
    ratio = (width / channels) ** (1 / halvings)
    steps = [channels, *(round(channels * ratio**k) for k in range(1, halvings)), width]
    blocks = [layer for before, after in itertools.pairwise(steps) for layer in _separable(before, after)]
    return StageHead(nn.Sequential(*blocks), width, num_classes, gate)


def bottleneck_head(channels: int, width: int, num_classes: int, shrink: tuple[int, int]) -> StageHead:
    """Builds a bottleneck: 1x1 convolution to D/4 channels, one with kernel = stride = `shrink`, 1x1 to D.

    Args:
        channels: Channels of the stage map.
        width: D.
        num_classes: K.
        shrink: Size of the stage map over that of the last map, (rows, columns).
    """
    inner = max(1, width // 4)
    layers = [
        *_normalised(nn.Conv2d(channels, inner, 1, bias=False)),
        *_normalised(nn.Conv2d(inner, inner, shrink, shrink, bias=False)),
        *_normalised(nn.Conv2d(inner, width, 1, bias=False)),
    ]
    return StageHead(nn.Sequential(*layers), width, num_classes)


def _separable(before: int, after: int) -> list[nn.Module]:
    """Builds a depthwise-separable convolution that halves the map."""
    return [
        nn.Conv2d(before, before, 3, stride=2, padding=1, groups=before, bias=False),
        *_normalised(nn.Conv2d(before, after, 1, bias=False)),
    ]


def _normalised(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
