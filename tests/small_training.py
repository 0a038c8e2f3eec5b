"""A training that is small enough for a test, through the loop that every run goes through."""

from __future__ import annotations

import copy
import functools
import os
import signal
from contextlib import contextmanager

import torch

from kdcompress.data.batch import DataInfo
from kdcompress.data.loader import EvaluationLoader, TrainingLoader
from kdcompress.data.orders import batch_order
from kdcompress.data.source import MemorySource
from kdcompress.methods.base import find_method
from kdcompress.networks.build import build
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.tasks import task_of
from kdcompress.train.job import Job
from kdcompress.train.journal import Journal
from kdcompress.train.processes import Processes
from kdcompress.train.trainer import Trainer

CLASSES = 4
FOR_SELF = ("torchvision/resnet18", "torchvision/shufflenet_v2_x0_5")
"""Students that the self methods alone are tried on."""
SIDES = {"cifar/resnet8": 8, "torchvision/mobilenet_v3_small": 32, **dict.fromkeys(FOR_SELF, 32)}
TEACHER = "cifar/resnet14"
ALONE = Processes(0, 1, torch.device("cpu"))


def images(count, side, seed=0, labelled=True):
    """`count` images of noise whose brightness follows their class, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 128, (count, 3, side, side), generator=generator)
    pixels = noise + 30 * labels.reshape(-1, 1, 1, 1)
    return MemorySource(pixels.to(torch.uint8), labels if labelled else torch.full_like(labels, -1))


def tapped(model, side, device="cpu", precision=None, classes=CLASSES):
    network = build(model, num_classes=classes, channels=3, image_size=(side, side))
    made = Tapped(
        network, model, image_size=(side, side), channels=3, mean=(0.4,) * 3, std=(0.2,) * 3,
        task=task_of(classes),
    )  # fmt: skip
    made.precision = precision
    return made.to(device)


def widen(network):
    """Converts a Tapped network to float64, its normalisation too; its readings then are float64."""
    network.network.double()
    network.mean, network.std = network.mean.double(), network.std.double()
    network.to(network.device)


def backbone(model, side, device="cpu", precision=None):
    """The same without its classifier."""
    return tapped(model, side, device, precision, classes=0)


def initial_networks(student, peers, **arguments):
    """Draws student, frozen teacher or None, and peers from one seed; leaves the generator as the draw does.

    Tracing and folding a teacher takes ten times as long as copying it, so each process draws a set of
    networks once and hands out copies.
    """
    if arguments["device"].type != "cpu":
        networks, state = _draw_networks(student, peers, **arguments)
    else:
        networks, state = once = _draw_networks_once(student, peers, **arguments)
        first, frozen, beside = networks
        every = [first, *beside, *([] if frozen is None else [frozen.tapped, frozen._frozen])]
        tasks = {id(network.task): network.task for network in every}  # there is one object of each
        networks, state = copy.deepcopy(once, tasks)
    torch.set_rng_state(state)
    return networks


def _draw_networks(student, peers, *, teacher, has_classes, headless, side, device, precision, float64):
    torch.manual_seed(1)
    first = (tapped if has_classes else backbone)(student, side, device, precision)
    frozen = None
    if teacher is not None:
        frozen = FrozenTeacher((backbone if headless else tapped)(teacher, side, device, precision))
    beside = tuple(tapped(peer, side, device, precision) for peer in peers)
    if float64:
        for network in (first, *beside, *([] if frozen is None else [frozen._frozen])):
            widen(network)
    return (first, frozen, beside), torch.get_rng_state()


_draw_networks_once = functools.lru_cache(maxsize=32)(_draw_networks)


class Small:
    """A method beside freshly drawn networks, with data, optimiser settings and a folder.

    Everything is drawn from seeds, so that two of them with the same arguments begin equal. The student is
    what the method needs: a classifier, or a backbone; the teacher is the network `teacher`, a classifier
    unless `headless` is set.
    With `float64` everything is computed in it, so that two ways of computing the same agree to 1e-9.
    `statistics` gives the images for batch-norm statistics from the training images.
    """

    def __init__(
        self,
        folder,
        method="none",
        *,
        student="cifar/resnet8",
        peers=None,
        teacher=TEACHER,
        config=None,
        train=None,
        optim=None,
        count=40,
        batch_size=8,
        held_out=12,
        data=None,
        processes=ALONE,
        precision=None,
        watcher=None,
        frozen=None,
        side=None,
        headless=False,
        labelled=True,
        float64=False,
        exits=False,
        statistics=None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        device, side = processes.device, side or SIDES[student]
        cls = find_method(method)
        config = cls.Config(**(config or {}))
        needs = cls.needs(config)
        if peers is None:
            peers = [student] * (needs.peers or 0)
        own_teacher = needs.teacher and frozen is None
        self.student, self.frozen, self.peers = initial_networks(
            student, tuple(peers), teacher=teacher if own_teacher else None,
            has_classes=needs.task.has_classes, headless=headless, side=side, device=device,
            precision=precision, float64=float64,
        )  # fmt: skip
        self.teacher = self.frozen.tapped if own_teacher else None
        if needs.teacher and frozen is not None:
            self.frozen = frozen  # a Teacher that several trainings share
            if float64:
                widen(frozen._frozen)
        train_images = images(count, side, labelled=labelled)

        def held_out_batches():
            return EvaluationLoader(images(held_out, side, 1, labelled), device=device) if held_out else ()

        info = {
            "held_out": held_out_batches,
            "num_classes": CLASSES,
            "image_size": (side, side),
            "channels": 3,
            "batch_size": batch_size,
            **(data or {}),
        }
        networks = Networks(self.student, self.frozen, self.peers)
        self.method = cls(config, networks, DataInfo(labels=train_images.labels, **info)).to(device)
        if float64:
            self.method.double()
        self.folder = folder
        self.loader = TrainingLoader(
            train_images, batch_size=batch_size, views=needs.views, seed=0, augment="crop", device=device,
            rank=processes.rank, world=processes.world,
            order=batch_order(needs.order, train_images.labels, batch_size=batch_size, seed=0),
        )  # fmt: skip
        train = TrainSection(**{"epochs": 2, "precision": "fp32", **(train or {})})
        optim = OptimSection(**{"lr": 0.02, "schedule": "cosine", **(optim or {})})
        fp16 = precision == torch.float16
        hint = "kdcompress distill --resume"
        job = Job("student", folder, train, optim, train.epochs, fp16, hint, exits=exits)
        on_held_out = None
        if held_out:
            on_held_out = EvaluationLoader(
                images(held_out, side, 1, labelled), batch_size=5, device=device, rank=processes.rank,
                world=processes.world,
            )  # fmt: skip
        journal = Journal(folder if processes.first else None)
        torch.manual_seed(2 + processes.rank)
        self.trainer = Trainer(
            self.method, self.loader, on_held_out, job, processes, journal, watcher or Watcher(),
            statistics and statistics(train_images),
        )  # fmt: skip

    def run(self):
        return self.trainer.run()

    def tensors(self):
        """Everything a training changes, by name."""
        modules = self.trainer._modules()
        return {f"{name}.{key}": t for name, m in modules.items() for key, t in m.state_dict().items()}


class Watcher:
    """A Progress that nobody sees, and that can do something at a step."""

    def __init__(self, step=None, act=lambda: os.kill(os.getpid(), signal.SIGTERM)):
        self.step, self.act, self.seen = step, act, 0
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)

    @contextmanager
    def bar(self, description, total, done=0):
        self.seen = done
        yield self

    def report(self, text):
        pass

    def advance(self, amount=1, note=""):
        self.seen += amount
        if self.seen == self.step:
            self.act()


def assert_same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different
