"""Helpers with which a family lists the stages of its networks in `segments`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

Chain = list[tuple[str, nn.Module]]
"""`stem`, `stage1` … `stageN`, `head`, in the order they are run."""


def chain(stem: nn.Module, stages: Sequence[nn.Module], head: nn.Module) -> Chain:
    """Names the pieces.

    A stem whose map is the last of its resolution is a stage: it becomes stage1, and the stem is empty.
    """
    if down_samples(stages[0]):
        stem, stages = nn.Sequential(), [stem, *stages]
    return [("stem", stem), *((f"stage{i}", stage) for i, stage in enumerate(stages, 1)), ("head", head)]


def head(*parts: nn.Module) -> nn.Sequential:
    """Builds pooling, flattening and classifier: `[B, C, H, W]` to `[B, K]`.

    Args:
        parts: Modules before the flattening, and last the classifier.
    """
    *before, classifier = parts
    return nn.Sequential(*before, nn.Flatten(1), classifier)


def by_stride(blocks: Iterable[nn.Module]) -> list[nn.Sequential]:
    """Groups blocks into stages: a block that down-samples begins the next one."""
    groups: list[list[nn.Module]] = []
    for block in blocks:
        if not groups or down_samples(block):
            groups.append([])
        groups[-1].append(block)
    return [nn.Sequential(*group) for group in groups]


def down_samples(block: nn.Module) -> bool:
    """Tells if any convolution or pooling inside has a stride above 1."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            stride = module.stride
            if max(stride if isinstance(stride, tuple) else (stride,)) > 1:
                return True
    return False


def flat(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """Returns the blocks without the plain containers around them."""
    opened: list[nn.Module] = []
    for block in blocks:
        # Exactly Sequential: its subclasses (a convolution with its norm and activation) are blocks.
        opened += flat(block.children()) if type(block) is nn.Sequential else [block]
    return opened
