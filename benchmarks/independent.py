"""Trainings by kdcompress beside a plain PyTorch loop that was written from the specifications.

    python benchmarks/independent.py --teacher RUN [--only NAME ...] [--steps 465]

RUN is the run folder of a ResNet-20 trained on Fashion-MNIST (benchmarks/methods.py leaves one in
WORK/teacher). The student is a ResNet-8; 3,000 labelled images, batches of 64, no augmentation, SGD at 0.05
with a half cosine, the methods' defaults. Both sides start from the same weights, heads and banks and get the
same batches (and, for crd, the same negatives); nothing else is shared: forward passes, losses, optimiser
steps and schedule of the plain loop are written out here. The control is the plain loop from weights that
differ by 1e-7, which shows how fast rounding alone drives two trainings apart.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import kdcompress
from kdcompress.data.batch import DataInfo
from kdcompress.data.datasets import fashion_mnist
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.source import MemorySource
from kdcompress.methods.base import find_method
from kdcompress.networks.build import build
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.progress import Progress
from kdcompress.recipe import DataSection, OptimSection, TrainSection
from kdcompress.train.job import Job
from kdcompress.train.journal import Journal
from kdcompress.train.processes import Processes
from kdcompress.train.trainer import Trainer

BATCH, IMAGES, CLASSES, SIDE = 64, 3_000, 10, 28
LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
METHODS = ("kd", "at", "crd", "ab", "reviewkd")


# ---- the side of kdcompress


class Setting:
    """Networks, method, batches and trainer of kdcompress, drawn from seeds.

    Args:
        name: Name of the method.
        teacher: Plain network, and its input specification.
        images: Training images.
        steps: Optimiser steps of the run.
        folder: For the trainer's log.
    """

    def __init__(self, name, teacher, images, steps, folder):
        torch.manual_seed(0)
        network, spec = teacher
        student = build("cifar/resnet8", num_classes=CLASSES, channels=1, image_size=(SIDE, SIDE))
        shape = {"image_size": (SIDE, SIDE), "channels": 1, "mean": spec.mean, "std": spec.std}
        self.student = Tapped(student, "cifar/resnet8", **shape)
        self.teacher = Tapped(copy.deepcopy(network), "cifar/resnet20", **shape)
        networks = Networks(self.student, FrozenTeacher(self.teacher))
        cls = find_method(name)
        info = DataInfo(CLASSES, images.labels, (SIDE, SIDE), 1, batch_size=BATCH)
        self.method = cls(cls.Config(), networks, info)
        self.loader = TrainingLoader(images, batch_size=BATCH, seed=0, augment="none", device="cpu")
        self.epochs = -(-steps // self.loader.steps)
        train = TrainSection(epochs=self.epochs, max_steps=steps, precision="fp32", bn_statistics="off")
        optim = OptimSection(lr=LR, momentum=MOMENTUM, nesterov=False, weight_decay=DECAY, schedule="cosine")
        job = Job("student", folder, train, optim, self.epochs, False, "")
        alone = Processes(0, 1, torch.device("cpu"))
        self.trainer = Trainer(self.method, self.loader, None, job, alone, Journal(folder), Progress())

    def batches(self):
        """Yields (epoch, batch) without end."""
        for epoch in range(self.epochs):
            for batch in self.loader.epoch(epoch):
                yield epoch, batch

    def train(self):
        """Runs the trainer; returns the total loss of every step."""
        totals, step = [], self.method.step

        def recorded(batch, minimise):
            step(batch, minimise)
            totals.append(sum(term.item() for term in minimise.terms.values()))

        self.method.step = recorded
        self.trainer.run()
        del self.method.step
        return totals


# ---- the plain loop


def read(network, images):
    """Runs a CIFAR ResNet: maps before and after the last activation of each stage, pooled, logits."""
    x = F.relu(network.bn1(network.conv1(images)))
    before, after = [], []
    for layer in (network.layer1, network.layer2, network.layer3):
        for block in layer:
            shortcut = x if block.downsample is None else block.downsample(x)
            inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + shortcut
            x = F.relu(inner)
        before.append(inner)
        after.append(x)
    pooled = x.mean((2, 3))
    return before, after, pooled, network.fc(pooled)


def soft_labels(student, teacher, temperature):
    """T² · KL(teacher ‖ student), summed over classes, mean over rows."""
    target = F.softmax(teacher / temperature, 1)
    each = F.kl_div(F.log_softmax(student / temperature, 1), target, reduction="sum")
    return temperature**2 * each / len(student)


class Plain:
    """A training written out; a method's term is a function of the two networks' outputs.

    Args:
        setting: Its start weights are copied.
        steps: Optimiser steps of the run.
    """

    split = 0
    """Steps of a first phase."""

    def __init__(self, setting, steps):
        self.student, self.teacher = (
            copy.deepcopy(which.network) for which in (setting.student, setting.teacher)
        )
        self.method = copy.deepcopy(setting.method)
        self.mean, self.std = setting.student.mean.flatten(), setting.student.std.flatten()
        self.config, self.steps = self.method.config, steps
        self.student.train()
        self.teacher.eval()

    def heads(self):
        """Modules that train beside the student."""
        return []

    def term(self, ours, theirs, batch, step, epoch):
        """The method's own term."""
        return 0.0

    def loss(self, ours, theirs, batch, step, epoch):
        """The total loss of a step."""
        total = self.config.ce_weight * F.cross_entropy(ours[3], batch.labels)
        total = total + self.config.kd_weight * soft_labels(ours[3], theirs[3], self.config.temperature)
        return total + self.term(ours, theirs, batch, step, epoch)

    def parameters(self, step):
        """What the phase of a step trains."""
        modules = [self.student, *self.heads()]
        return [p for module in modules for p in module.parameters()]

    def train(self, batches):
        """Runs the steps; returns the total loss of each."""
        totals, optimiser = [], None
        for step, (epoch, batch) in zip(range(self.steps), batches, strict=False):
            if step in (0, self.split):
                optimiser = torch.optim.SGD(self.parameters(step), LR, momentum=MOMENTUM, weight_decay=DECAY)
            phase_step, phase_steps = step - self.split, self.steps - self.split
            share = 1.0 if step < self.split else (1 + math.cos(math.pi * phase_step / phase_steps)) / 2
            for group in optimiser.param_groups:
                group["lr"] = LR * share
            images = (batch.images - self.mean) / self.std
            with torch.no_grad():
                theirs = read(self.teacher, images)
            loss = self.loss(read(self.student, images), theirs, batch, step, epoch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            self.after_step(batch)
            totals.append(loss.item())
        return totals

    def after_step(self, batch):
        """What follows an update."""


class At(Plain):
    """Squared difference of normalised attention, 3.9 · positions each: a sum over positions, times 3.9."""

    def term(self, ours, theirs, batch, step, epoch):
        total = 0.0
        for s, t in zip(ours[1], theirs[1], strict=True):
            maps = [F.normalize((x**2).mean(1).flatten(1), dim=1) for x in (s, t)]
            total = total + 1000 / 256 * ((maps[0] - maps[1]) ** 2).sum(1).mean()
        return total


class Ab(Plain):
    """A first phase of 1/9 of the steps on the signs of the teacher's pre-activations; then soft labels."""

    @property
    def split(self):
        return round(self.steps / 9)

    def loss(self, ours, theirs, batch, step, epoch):
        if step >= self.split:
            return super().loss(ours, theirs, batch, step, epoch)
        total, weight = 0.0, 1 / ours[0][-1][0].numel()
        for i, (s, t) in enumerate(zip(ours[0], theirs[0], strict=True)):
            wrong = torch.where(t > 0, F.relu(1 - s), F.relu(1 + s))
            total = total + weight / 2 ** (2 - i) * (wrong**2).sum() / len(s)
        return total

    def parameters(self, step):
        chosen = super().parameters(step)
        if step >= self.split:
            return chosen
        rest = {id(p) for p in self.student.fc.parameters()}
        return [p for p in chosen if id(p) not in rest]


class Crd(Plain):
    """Noise-contrastive loss against banks of both networks' embeddings, for both networks."""

    def __init__(self, setting, steps):
        super().__init__(setting, steps)
        self.banks = [self.method.bank_student.clone(), self.method.bank_teacher.clone()]
        self.scale = None

    def heads(self):
        return [self.method.embed_student, self.method.embed_teacher]

    def term(self, ours, theirs, batch, step, epoch):
        self.method.draws.steps.fill_(step)
        columns = self.method.columns(batch.indices)  # the draws alone are shared
        size, negatives = len(self.banks[0]), columns.shape[1] - 1
        pairs = zip(self.heads(), (ours[2], theirs[2]), strict=True)
        self.embeddings = [F.normalize(head(pooled), dim=1) for head, pooled in pairs]
        scores = [
            torch.exp((bank[columns] * own[:, None]).sum(2) / 0.07)
            for own, bank in zip(self.embeddings, reversed(self.banks), strict=True)
        ]
        if self.scale is None:
            self.scale = [float(each.mean() * size) for each in scores]
        total, noise = 0.0, negatives / size
        for each, scale in zip(scores, self.scale, strict=True):
            p = each / scale
            right = torch.log(p[:, 0] / (p[:, 0] + noise + 1e-7))
            wrong = torch.log(noise / (p[:, 1:] + noise + 1e-7)).sum(1)
            total = total - (right + wrong).mean()
        return total / (1 + math.log(negatives))

    def after_step(self, batch):
        for bank, new in zip(self.banks, self.embeddings, strict=True):
            mixed = 0.5 * bank[batch.indices] + 0.5 * new.detach()
            bank[batch.indices] = mixed / mixed.norm(dim=1, keepdim=True)


class ReviewKd(Plain):
    """Fuses the student's maps from the deepest up and compares each with the teacher's at four scales."""

    def heads(self):
        return [self.method.fusions]

    def term(self, ours, theirs, batch, step, epoch):
        ramp = 20 / 240 * (-(-self.steps // (IMAGES // BATCH)))
        weight = 5 * (min(1.0, epoch / ramp) if ramp >= 1 else 1.0)
        students = [ours[2][:, :, None, None], *reversed(ours[1])]
        teachers = [theirs[2][:, :, None, None], *reversed(theirs[0])]
        total, below = 0.0, None
        for fusion, s, t in zip(self.method.fusions, students, teachers, strict=True):
            x = fusion.reduce(s)
            if below is not None:
                below = F.interpolate(below, size=x.shape[2:], mode="nearest")
                gates = torch.sigmoid(fusion.gates[0](torch.cat([x, below], 1)))
                x = x * gates[:, :1] + below * gates[:, 1:]
            below = F.interpolate(x, size=t.shape[2:], mode="nearest")
            total = total + at_scales(fusion.expand(below), t)
        return weight * total


def at_scales(student, teacher):
    """Mean squared differences at full size and averaged to 4, 2 and 1 pixels, weighted 1, 1/2, 1/4, 1/8."""
    parts, weights = [F.mse_loss(student, teacher)], [1.0]
    for side in (4, 2, 1):
        if side < student.shape[2]:
            weights.append(weights[-1] / 2)
            pair = (F.adaptive_avg_pool2d(x, side) for x in (student, teacher))
            parts.append(weights[-1] * F.mse_loss(*pair))
    return sum(parts) / sum(weights)


LOOPS = {"kd": Plain, "at": At, "crd": Crd, "ab": Ab, "reviewkd": ReviewKd}


# ---- the comparison


def accuracy(network, setting, test):
    """Top-1 in percent on the test images, with running statistics."""
    network.eval()
    with torch.no_grad():
        images = test.images.float() / 255
        logits = torch.cat([network(setting.student.normalise(part)) for part in images.split(500)])
    return 100 * (logits.argmax(1) == test.labels).float().mean().item()


def shown(steps):
    """Lists the steps whose losses are compared."""
    return [step for step in (1, 10, 100) if step < steps] + [steps]


def row(name, teacher, images, test, steps):
    """Trains all three and returns a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(name, teacher, images, steps, Path(folder))
        plain, control = LOOPS[name](setting, steps), LOOPS[name](setting, steps)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for p in control.student.parameters():
                p *= 1 + 1e-7 * torch.randn(p.shape, generator=generator)
        # The plain loops first: the trainer changes the setting's student and heads.
        by_hand, nudged = plain.train(setting.batches()), control.train(setting.batches())
        ours = setting.train()
    assert len(ours) == len(by_hand) == steps, (len(ours), len(by_hand))
    cells = []
    for step in shown(steps):
        pairs = [abs(other[step - 1] / by_hand[step - 1] - 1) for other in (ours, nudged)]
        cells.append("{:.0e} / {:.0e}".format(*pairs))
    networks = (setting.student.network, plain.student, control.student)
    shares = [f"{accuracy(network, setting, test):.2f}" for network in networks]
    return f"| {name} | {' | '.join(cells)} | {' | '.join(shares)} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=465)
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw = fashion_mnist.read(DataSection(dataset="fashion-mnist"), None)
    images = MemorySource(raw.train.images[:IMAGES], raw.train.labels[:IMAGES])
    teacher = kdcompress.load(options.teacher)
    titles = [
        "method",
        *(f"step {step}" for step in shown(options.steps)),
        "kdcompress",
        "plain loop",
        "control",
    ]
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|")
    for name in options.only:
        print(row(name, teacher, images, raw.test, options.steps), flush=True)


if __name__ == "__main__":
    main()
