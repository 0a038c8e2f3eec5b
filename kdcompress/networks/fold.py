"""Making a frozen network faster: batch norm folded into convolutions, activations in place.

In evaluation mode batch norm is an affine map per channel, and so is absorbed by the convolution's weight
and bias (Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018, section 3.2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from kdcompress.networks.tapped import Tapped
from kdcompress.networks.trace import record

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)
_FRESH = frozenset(
    {"convolution", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "add"}
)
"""Operations whose result is a tensor of its own."""


def foldable(tapped: Tapped) -> list[tuple[str, str]]:
    """Finds each convolution whose output goes into one batch norm and nowhere else, by module paths.

    Left out: subclasses of the convolution (their weight need not be what is convolved with), modules called
    several times or sharing their weights, batch norm without running statistics, and convolutions whose own
    output is tapped.
    """
    trace = record(tapped.network, tapped.sample(), tapped.model)
    readers = trace.consumers()
    called: dict[str, int] = {}
    for call in trace.calls:
        called[call.path] = called.get(call.path, 0) + 1
    uses: dict[int, int] = {}
    for module in tapped.network.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    tapped_outputs = {tap.path for tap in [*tapped.taps.stages.values(), *tapped.taps.pre.values()]}
    wrote = {
        call.wrote: call
        for call in trace.calls
        if type(call.module) is nn.Conv2d
        and called[call.path] == 1
        and uses[id(call.module.weight)] == 1
        and call.path not in tapped_outputs
    }
    return [
        (wrote[call.read].path, call.path)
        for call in trace.calls
        if isinstance(call.module, nn.BatchNorm2d)
        and (type(call.module) is nn.BatchNorm2d or _has_activation(call.module))
        and call.module.running_mean is not None
        and called[call.path] == 1
        and call.read is not None
        and call.read in wrote
        and len(readers[call.read]) == 1
    ]


def fold_batch_norm(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Folds in place: each convolution takes over its batch norm, which leaves its activation or nothing.

    Args:
        network: In evaluation mode.
        pairs: Paths of convolution and batch norm, from `foldable`.
    """
    for conv_path, norm_path in pairs:
        conv, norm = network.get_submodule(conv_path), network.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        _absorb(conv, norm)
        # Under the same names, so that what was tapped inside still is.
        inside = OrderedDict(norm.named_children())
        network.set_submodule(norm_path, nn.Sequential(inside) if inside else nn.Identity())


def overwritable(tapped: Tapped) -> list[str]:
    """Finds each activation that may write its result over its input, which no other operation reads.

    The input must be a tensor of its own, not a view of one that others read.
    """
    trace = record(tapped.network, tapped.sample(), tapped.model)
    readers = trace.consumers()
    safe: dict[str, bool] = {}
    for call in trace.calls:
        if type(call.module) in _ACTIVATIONS:
            own = call.read is not None and trace.nodes[call.read].operation in _FRESH
            alone = own and call.read is not None and len(readers[call.read]) == 1
            safe[call.path] = safe.get(call.path, True) and alone
    return [path for path, is_safe in safe.items() if is_safe]


def overwrite(network: nn.Module, paths: Iterable[str]) -> None:
    """Lets activations write over their input, in place.

    Args:
        network: Frozen.
        paths: From `overwritable`.
    """
    for path in paths:
        network.get_submodule(path).inplace = True  # type: ignore[assignment]


def _has_activation(norm: nn.BatchNorm2d) -> bool:
    # timm's BatchNormAct2d: batch norm, then its children one after the other.
    return [name for name, _ in norm.named_children()] == ["drop", "act"]


def _absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    # In float64: a dead channel's variance is near zero, and the scale then is large.
    scale = (variance.double() + norm.eps).rsqrt()
    shift = -mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        conv.weight.copy_(weight)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
