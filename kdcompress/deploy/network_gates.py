"""The gates of the strip: the network that ships is the trained one, and nothing but it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.gate import Gate, at_most, equal, relative
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.strip import describe_misfits, misfits, without_wrappers

EQUAL_LIMIT = 1e-6
"""Trained module against plain network, over the largest output: the same sums, so rounding at most."""


def network_gates(
    trained: nn.Module, plain: nn.Module, fresh: Callable[[], nn.Module], spec: InputSpec, images: Tensor
) -> list[Gate]:
    """Compares the plain network: `strict_load`, `equal_outputs`, `same_keys`, `parameters`, `macs`.

    Args:
        trained: The module that was trained; takes normalised images.
        plain: The network that ships, on the CPU.
        fresh: Builds an untrained network of the student's class.
        spec: The student's input.
        images: `[B, C, H, W]` real images in [0, 1].
    """
    new = fresh()
    size = (spec.channels, spec.height, spec.width)
    return [
        strict_load(trained, new),
        _equal_outputs(trained, plain, spec, images),
        _same_keys(plain, new),
        equal("parameters", count_parameters(plain), count_parameters(new), "limit: a fresh student's"),
        equal(
            "macs", count_macs(plain, *size), count_macs(new, *size), "one image; limit: a fresh student's"
        ),
    ]


def strict_load(trained: nn.Module, fresh: nn.Module) -> Gate:
    """Checks that the trained module's tensors and a fresh network's are the same by name and shape."""
    problems = misfits(fresh, without_wrappers(trained.state_dict()))
    detail = (
        describe_misfits(problems) if problems else "every trained tensor has its place in a fresh student"
    )
    return equal("strict_load", sum(map(len, problems.values())), 0, detail)


def _equal_outputs(trained: nn.Module, plain: nn.Module, spec: InputSpec, images: Tensor) -> Gate:
    with torch.no_grad():
        expected = Deployed(_on_cpu(trained), spec).eval()(images)
        got = Deployed(_on_cpu(plain), spec).eval()(images)
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        shape = list(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        detail = f"the trained module gives {shape}, not {list(got.shape)}"
        return Gate("equal_outputs", False, None, EQUAL_LIMIT, detail)
    figure = relative(float((expected - got).abs().max()), float(got.abs().max()))
    detail = f"largest difference to the trained module over the largest output, {len(images)} real images"
    return at_most("equal_outputs", figure, EQUAL_LIMIT, detail)


def _same_keys(plain: nn.Module, fresh: nn.Module) -> Gate:
    shapes, of_fresh = (
        {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in module.state_dict().items()}
        for module in (plain, fresh)
    )
    apart = sorted(key for key in shapes.keys() | of_fresh.keys() if shapes.get(key) != of_fresh.get(key))
    detail = f"differ: {', '.join(apart[:3])}" if apart else f"{len(shapes)} tensors, as in a fresh student"
    return equal("same_keys", len(apart), 0, detail)


def _on_cpu(module: nn.Module) -> nn.Module:
    """Makes a contiguous float32 copy, unwrapped: another device or layout sums in another order."""
    inner = getattr(module, "_orig_mod", module)
    inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner
    copied = copy.deepcopy(getattr(inner, "_orig_mod", inner)).to("cpu", torch.float32)
    return copied.to(memory_format=torch.contiguous_format)
