"""A network that computes as its int8 file will, while it stays the module that it is and can be trained.

onnxruntime's QDQ graph rounds the tensors between operators to 256 levels, and weights to 255 levels for each
output channel. The same is done here around the functions that a network calls in a pass: whatever reads a
tensor reads it rounded. What onnxruntime does in one operator is not rounded inside: a batch norm is folded
into the convolution before it (which only multiplies a channel's weights and their scale by the same number,
so nothing need be folded here), and the levels of an activation's output begin where the activation ends, so
it is its output that is rounded. Gradients pass through the rounding, except where a value was beyond the
range (straight-through; Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdcompress.errors import NetworkError
from kdcompress.networks.levels import (
    MOST,
    activation_levels,
    rounded_activation,
    rounded_weight,
    to_whole,
    weight_scales,
)
from kdcompress.networks.rounding_rules import Pass


@dataclass(slots=True)
class Plan:
    """The tensors that are rounded in a pass, in the order of their use.

    Args:
        reads: (function, site): the function reads the tensor of that site; -1: what it reads are levels
            already.
        folds: For each batch norm, True if it is folded into the convolution before it.
        uses: Number of reads of each site.
        layers: Number of convolutions, linear layers and matrix products.
    """

    reads: list[tuple[str, int]] = field(default_factory=list)
    folds: list[bool] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)
    layers: int = 0


class Rounding(nn.Module):
    """The levels of a network's activations, and the passes that are rounded to them.

    Args:
        network: In whose passes; any module of one tensor argument. Its copies have the same passes.
        images: Normalised batches `[B, C, H, W]`, those that the file will be calibrated with, on the
            network's device.
        weight_bits: 8, or 7 for processors whose sums of two products saturate.

    Attributes:
        plan: The tensors that are rounded.
        scales: `[S]` float32, of the levels of each tensor.
        zeros: `[S]` int32, the level that means 0.

    Raises:
        NetworkError: There is nothing to round.
    """

    scales: Tensor
    zeros: Tensor

    def __init__(self, network: nn.Module, images: Sequence[Tensor], *, weight_bits: int = 8) -> None:
        super().__init__()
        self.weight_bits = weight_bits
        # Beside this module, not inside it: its own buffers are all that a checkpoint should hold of it.
        self._beside = (tuple(images),)
        first = _RecordingPass()
        with torch.no_grad(), first:
            network(images[0])
        recording = _RecordingPass(first.shared_layers)
        with torch.no_grad(), recording:
            network(images[0])
        self.plan = recording.plan
        if not self.plan.layers:
            raise NetworkError("it has no convolution and no linear layer, so there is nothing to be int8")
        sites = len(self.plan.uses)
        self.register_buffer("scales", torch.ones(sites, device=images[0].device))
        self.register_buffer("zeros", torch.zeros(sites, dtype=torch.int32, device=images[0].device))
        self.measure(network)

    @torch.no_grad()
    def measure(self, network: nn.Module) -> None:
        """Takes the levels anew, from the least to the greatest values that float passes have on the images.

        Args:
            network: In evaluation mode.
        """
        measuring = _MeasuringPass(self.plan, self.scales.device)
        for images in self._beside[0]:
            with measuring.new():
                network(images)
        scales, zeros = activation_levels(measuring.low_S, measuring.high_S)
        self.scales.copy_(scales)
        self.zeros.copy_(zeros)

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Rounds the tensors of one forward pass within the block.

        Raises:
            NetworkError: The pass computes otherwise than the one that was recorded.
        """
        with _RoundingPass(self):
            yield


class _RecordingPass(Pass):
    """Finds out what is read where. Tensors are told apart as objects, in the version that was read.

    Args:
        shared: Numbers of the layers whose output is not for a batch norm alone, which an earlier recording
            has found out: such a batch norm cannot go into the layer.

    Attributes:
        plan: The recorded plan.
        shared_layers: Numbers of the layers whose output something else than a batch norm reads.
    """

    def __init__(self, shared: Collection[int] = ()) -> None:
        super().__init__()
        self.plan = Plan()
        self.shared_layers: set[int] = set()
        self._shared = frozenset(shared)
        self._sites: dict[tuple[int, int], int] = {}
        self._layers: dict[tuple[int, int], int] = {}
        self._levels: set[tuple[int, int]] = set()
        self._alive: list[Tensor] = []  # a freed one's identity would be handed out again

    def read(self, tensor: Tensor, function: str) -> Tensor:
        key, site = self._key(tensor), -1
        if key in self._layers:
            self.shared_layers.add(self._layers[key])
        if key not in self._levels:
            site = self._sites.setdefault(key, len(self._sites))
            if site == len(self.plan.uses):
                self.plan.uses.append(0)
            self.plan.uses[site] += 1
        self.plan.reads.append((function, site))
        return tensor

    def folds(self, tensor: Tensor) -> bool:
        layer = self._layers.get(self._key(tensor))
        folds = layer is not None and layer not in self._shared
        self.plan.folds.append(folds)
        return folds

    def record_output(self, outputs: Any, *, by_layer: bool = False, levels: bool = False) -> None:
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                if by_layer:
                    self._layers[self._key(tensor)] = self.plan.layers
                if levels:
                    self._levels.add(self._key(tensor))
        self.plan.layers += by_layer

    def copy_scale(self, source: Tensor, output: Tensor) -> None:
        if self._key(source) in self._layers:
            self.shared_layers.add(self._layers[self._key(source)])
        if self._key(source) in self._levels:
            self._levels.add(self._key(output))

    def _key(self, tensor: Tensor) -> tuple[int, int]:
        self._alive.append(tensor)
        return id(tensor), tensor._version


class _PlannedPass(Pass):
    """A pass that goes through the plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._next = self._next_fold = 0

    def site(self, function: str) -> int:
        """Returns the site that is read next; -1: levels already."""
        if self._next == len(self._plan.reads) or self._plan.reads[self._next][0] != function:
            raise NetworkError(
                f"the network computes otherwise from pass to pass (here a {function}, then not), so it "
                "cannot be tuned for int8"
            )
        site = self._plan.reads[self._next][1]
        self._next += 1
        return site

    def folds(self, tensor: Tensor) -> bool:
        folds = self._plan.folds[self._next_fold]
        self._next_fold += 1
        return folds


class _MeasuringPass(_PlannedPass):
    """Passes in float that see how far each tensor reaches."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        super().__init__(plan)
        self.low_S = torch.full((len(plan.uses),), float("inf"), device=device)
        self.high_S = torch.full((len(plan.uses),), float("-inf"), device=device)
        self._seen: set[int] = set()

    def new(self) -> _MeasuringPass:
        """Resets the counters for the next pass and returns this object."""
        self._next = self._next_fold = 0
        self._seen = set()
        return self

    def read(self, tensor: Tensor, function: str) -> Tensor:
        site = self.site(function)
        if site >= 0 and site not in self._seen:
            self._seen.add(site)
            low, high = torch.aminmax(tensor.detach())
            self.low_S[site] = torch.minimum(self.low_S[site], low)
            self.high_S[site] = torch.maximum(self.high_S[site], high)
        return tensor


class _RoundingPass(_PlannedPass):
    """A pass in int8."""

    # Called in the order read, weight, bias and, for a folded batch norm, shift; each uses what the one
    # before stored.

    def __init__(self, rounding: Rounding) -> None:
        super().__init__(rounding.plan)
        self._scales, self._zeros = rounding.scales.unbind(), rounding.zeros.unbind()
        self._bits = rounding.weight_bits
        self._last = -1
        self._unit_C: Tensor | None = None
        self._bias: Tensor | None = None
        # What is read more than once is rounded once, and kept until its last reader has it.
        self._kept: dict[int, list[Any]] = {}

    def read(self, tensor: Tensor, function: str) -> Tensor:
        self._last = site = self.site(function)
        if site < 0:
            return tensor
        kept = self._kept.get(site)
        if kept is not None:
            kept[1] -= 1
            if kept[1] == 0:
                del self._kept[site]
            found: Tensor = kept[0]
            return found
        rounded = rounded_activation(tensor.float(), self._scales[site], self._zeros[site])
        if self._plan.uses[site] > 1:
            self._kept[site] = [rounded, self._plan.uses[site] - 1]
        return rounded

    def requantise(self, tensor: Tensor) -> Tensor:
        if self._last < 0:
            return tensor
        return rounded_activation(tensor, self._scales[self._last], self._zeros[self._last])

    def weight(self, weight: Tensor, axis: int | None) -> Tensor:
        return rounded_weight(weight.float(), axis, self._bits)

    def bias(self, bias: Tensor | None, weight: Tensor, axis: int | None) -> Tensor | None:
        # Products of levels are summed, and the bias with them: in their unit, as int32.
        self._unit_C, self._bias = None, bias
        if self._last >= 0:
            self._unit_C = self._scales[self._last] * weight_scales(weight, axis, MOST[self._bits])
        if bias is None or self._unit_C is None:
            return bias
        return bias + to_whole(bias.detach(), self._unit_C)

    def shift(self, arguments: dict[str, Any]) -> Tensor | None:
        bias: Tensor | None = arguments.get("bias")
        if bias is None or self._unit_C is None:
            return bias
        with torch.no_grad():
            factor_C = torch.rsqrt(arguments["running_var"] + arguments.get("eps", 1e-5))
            if arguments.get("weight") is not None:
                factor_C = factor_C * arguments["weight"]
            mean_C = arguments["running_mean"]
            added_C = torch.zeros_like(mean_C)
            if self._bias is not None:
                # The convolution has added it in its own unit; folded, it is rounded only once.
                added_C = to_whole(self._bias, self._unit_C)
                mean_C = mean_C - self._bias
            folded_C = bias - mean_C * factor_C
            change_C = to_whole(folded_C, self._unit_C * factor_C.abs()) - added_C * factor_C
        shifted: Tensor = bias + change_C
        return shifted
