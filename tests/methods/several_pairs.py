"""Pairs of networks as users bring them, each teacher made ready once; prints which methods refuse which.

python tests/methods/several_pairs.py
"""

from __future__ import annotations

import functools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_training import Small, tapped

from kdcompress import discovery
from kdcompress.errors import NetworkError
from kdcompress.networks.teacher import FrozenTeacher

OFFLINE = [name for name in discovery.names("method") if discovery.header("method", name).group == "offline"]
BATCH = 4
SETTINGS = {
    # Beside a resnet50 the defaults take half a gigabyte in every checkpoint, and show no more.
    "mlkd": {"expansion": 1},
    "seed": {"queue": 64},
    # Else the heads learn nothing in the first epoch, which is all there is here.
    "reviewkd": {"warmup_epochs": 0},
}


@dataclass(frozen=True)
class Pair:
    """Two networks, the side of the images, and that of the teacher's if it resizes them."""

    teacher: str
    student: str
    side: int
    teacher_side: int | None = None

    def __str__(self):
        resized = f"@{self.teacher_side}" if self.teacher_side else ""
        return f"{self.teacher}{resized} → {self.student}@{self.side}"


PAIRS = [
    Pair("cifar/resnet14", "cifar/resnet8", 16),
    # At 64 pixels the stages of these have 16, 8, 4 and 2 (those of the MobileNets 32 besides): at 32 the
    # deepest map would be a single pixel.
    Pair("torchvision/resnet50", "torchvision/mobilenet_v3_small", 64),
    Pair("torchvision/resnet50", "torchvision/shufflenet_v2_x1_0", 64),
    Pair("timm/resnet10t", "timm/mobilenetv3_small_050", 64),
    # A student without convolutional stages; it has one map, of 4×4 patches.
    Pair("timm/test_resnet", "timm/test_vit", 64),
    # A student whose logits are the mean of two classifiers', so that none reads its pooled vector.
    Pair("timm/test_resnet", "timm/levit_128s", 64),
    # A teacher of another image size: no map of the one is as large as one of the other.
    Pair("timm/test_resnet", "cifar/resnet8", 32, teacher_side=48),
]


def training(folder, method, pair, *, precision=None, watcher=None):
    """A method on a pair: two steps for each of its phases, nothing held out.

    With a watcher there is a checkpoint after every step, else after every phase.

    Raises:
        NetworkError: The method refuses the pair.
    """
    return Small(
        folder, method, student=pair.student, side=pair.side, frozen=frozen(pair, precision),
        config=SETTINGS.get(method), batch_size=BATCH, count=2 * BATCH, held_out=0, precision=precision,
        train={"epochs": phases(method), "checkpoint_minutes": 1e-9 if watcher else 5}, watcher=watcher,
    )  # fmt: skip


@functools.cache
def phases(method):
    """How many phases a method has, and so how many epochs at the least."""
    with tempfile.TemporaryDirectory() as folder:
        return len(Small(Path(folder), method, config=SETTINGS.get(method)).method.phases())


@functools.cache
def frozen(pair, precision=None):
    """The teacher of a pair, shared by whatever is trained beside it."""
    made = _teacher(pair.teacher, pair.side)
    made.precision = precision
    return FrozenTeacher(made, size=None if pair.teacher_side is None else (pair.teacher_side,) * 2)


@functools.cache
def _teacher(model, side):
    torch.manual_seed(0)
    made = tapped(model, side)
    # As after a training: untouched statistics of 0 and 1 let the readings of 50 layers grow a thousandfold.
    for module in made.network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all passes, which is this one
    made.train_mode(True)
    with torch.no_grad():
        made(torch.rand(16, 3, side, side))
    return made


def refusals(cases):
    """What methods say of pairs that they cannot run on: {(method, pair): message}."""
    said = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, pair in cases:
            try:
                training(Path(folder), method, pair)
            except NetworkError as error:
                said[method, pair] = str(error)
    return said


def table(said):
    """The refusals as a Markdown table."""
    lines = ["| method | teacher → student | refused because |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {method} | {pair} | {text} |" for (method, pair), text in said.items())])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(refusals((method, pair) for pair in PAIRS for method in OFFLINE)))  # noqa: T201
