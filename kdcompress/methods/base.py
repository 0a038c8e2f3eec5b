"""The one interface: what differs between distillation methods, and nothing else.

A method is an `nn.Module` that owns only what is thrown away after training (heads, banks, queues, gates,
temperatures). The networks stand beside it, unregistered and unmodified, so nothing has to be cut out of the
student afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from kdcompress import discovery
from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.gather import gather_rows, row_share
from kdcompress.methods.presets import Preset, PublishedFigure
from kdcompress.networks.activations import LOGITS, Want
from kdcompress.networks.networks import Networks


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method asks of a run, known from its Config alone.

    Args:
        teacher: Whether there must be a frozen teacher.
        peers: The least number of peers beside the student, or None if the method has no use for any.
        views: Augmentations of each image a batch holds.
        labels: Whether there must be labels.
        unlabelled: Whether an image without a label teaches too. Else the images that have none are left out
            of the training.
        student: What is read of the student.
        read_of_teacher: What is read of the teacher.
        cut: Whether the student must be a family whose stages can be cut (heads or branches are made of
            them).
        backbone: Whether what ships is a backbone, since nothing trains a classifier: the student is built
            without one, and its output is its pooled features.
    """

    teacher: bool = False
    peers: int | None = None
    views: int = 1
    labels: bool = True
    unlabelled: bool = False
    student: Want = LOGITS
    read_of_teacher: Want = LOGITS
    cut: bool = False
    backbone: bool = False

    @property
    def student_maps(self) -> bool:
        """Whether more than logits is read of the student."""
        return self.student != LOGITS


@dataclass(frozen=True, slots=True)
class ParameterSet:
    """Parameters that one optimiser moves.

    Args:
        parameters: At least one.
        lr_scale: Multiplies the recipe's learning rate.
    """

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the training with optimisers of its own.

    Args:
        name: Named in the log.
        share: Of the run's epochs; the shares of all phases add up to 1.
        sets: The parameter sets that move; every other parameter is held still.
        freeze_bn: Whether the networks' batch-norm statistics stay as they are.
    """

    name: str
    share: float
    sets: tuple[str, ...]
    freeze_bn: bool = False


@dataclass(frozen=True, slots=True)
class Preparation:
    """A training of its own, before the student's, of what the teacher lacks.

    What it leaves is kept and found again like a prepared teacher.

    Args:
        method: Trains its own modules beside the frozen teacher, and names them in `candidates`; its
            `networks.student` is not for use.
        config: Of that method.
        epochs: Of this training.
        lr: Base learning rate.
        milestones: Fractions of the training after which the rate is divided by ten.
    """

    method: type[Method]
    config: Any
    epochs: int
    lr: float
    milestones: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that may ship; the best one on held-out data does.

    Args:
        module: The trained module.
        model: The `FAMILY/NAME` whose plain class its state dictionary fits.
    """

    module: nn.Module
    model: str


class Minimise(Protocol):
    """What the trainer hands to `Method.step`; precision, clipping and processes are behind it."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`Method.losses`, through what keeps several processes equal; at most once a step."""

    def __call__(self, terms: dict[str, Tensor], *sets: str) -> None:
        """Checks that the terms are finite and moves the named sets (none named: all of the phase)."""


class Method(nn.Module):
    """Base of all methods.

    Args:
        config: The recipe's `method:` section.
        networks: Student, teacher and peers, built and placed.
        data: What may be known of the data.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {}
    FIGURES: ClassVar[tuple[PublishedFigure, ...]] = ()

    class Config(Section):
        """Fields of the recipe's `method:` section, beside its name."""

    config: Any
    class_weights: Tensor | None

    def __init__(self, config: Any, networks: Networks, data: DataInfo) -> None:
        super().__init__()
        self.config = config
        # Beside the method, not inside it: a plain tuple keeps nn.Module from registering them.
        self._beside = (networks,)
        self.data = data
        self.epoch = 0
        self.epochs = 1
        self.phase = ""
        self._some_unlabelled = bool((data.labels < 0).any())
        weights = data.class_weights
        self.register_buffer("class_weights", None if weights is None else weights.float(), persistent=False)

    @property
    def networks(self) -> Networks:
        """The networks that are trained or read."""
        return self._beside[0]

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """What this method asks of a run."""
        return Needs()

    @classmethod
    def preparation(cls, config: Any) -> Preparation | None:
        """What has to be trained beside the teacher first; by default nothing."""
        return None

    def take_prepared(self, state: dict[str, Tensor]) -> None:
        """Takes over what the preparation left: the state dictionary of its chosen candidate."""
        raise NotImplementedError(f"{type(self).__name__} has no preparation")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of one batch, scalars; their sum is what is minimised, and each is logged."""
        raise NotImplementedError(f"{type(self).__name__} defines no losses")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`losses`; the name that DistributedDataParallel calls."""
        return self.losses(batch)

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """What is trained, by name; by default one set "main": student, peers and method."""
        modules: Iterable[nn.Module] = (*self.networks.trained(), self)
        unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        return {"main": ParameterSet(tuple(unique.values()))}

    def phases(self) -> list[Phase]:
        """The stretches of the training; by default one that trains every set."""
        return [Phase("main", 1.0, tuple(self.parameter_sets()))]

    def step(self, batch: Batch, minimise: Minimise) -> None:
        """One step; by default the sum of the losses moves everything."""
        minimise(minimise.losses(batch))

    def on_phase_start(self, name: str) -> None:
        """Called before each phase and after a resume within it; losses that differ read `self.phase`."""
        self.phase = name

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Called before each epoch (0-based, over all phases); ramps and curricula read `self.epoch`."""
        self.epoch, self.epochs = epoch, epochs

    def after_step(self, batch: Batch) -> None:
        """Called once per optimiser step; banks, queues and averages are brought up to date here."""

    def on_epoch_end(self) -> None:
        """Called after the last step of each epoch, before the candidates are scored."""

    def candidates(self) -> dict[str, Candidate]:
        """What may ship; by default the student alone."""
        student = self.networks.student
        return {"student": Candidate(student.network, student.model)}

    def cross_entropy(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """`losses.cross_entropy` with the run's label smoothing and class weights.

        A mean over the labelled rows of all processes, once the processes' gradients are averaged.
        """
        mean = losses.cross_entropy(logits_BK, labels_B, self.class_weights, self.data.label_smoothing)
        if not self._some_unlabelled:
            return mean
        return mean * row_share((labels_B >= 0).sum(), labels_B)

    def both_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits `[B, K]` of the first view; the teacher gets no gradient."""
        assert self.networks.teacher is not None
        student = self.networks.student(batch.images).logits
        teacher = self.networks.teacher(batch.views[0]).logits
        assert student is not None
        assert teacher is not None
        return student, teacher

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, for a loss that is no mean over rows.

        Args:
            rows: `[B, ...]`, as many in every process.

        Returns:
            `[B · processes, ...]` by rank, with gradients to every process's rows; `rows` itself in a run of
            one process.
        """
        return gather_rows(rows)


def find_method(name: str) -> type[Method]:
    """The Method subclass that a plugin file defines.

    Args:
        name: As listed by `kdcompress methods`.

    Raises:
        UserError: No such method.
    """
    cls = discovery.load_class("method", name, "parameter_sets")
    assert issubclass(cls, Method), f"{cls} is no Method"
    return cls


def configured(section: dict[str, Any]) -> tuple[type[Method], Any]:
    """A checked recipe's method and its Config.

    Args:
        section: The recipe's `method:`, its name included.
    """
    cls = find_method(section["name"])
    return cls, cls.Config.model_validate({key: value for key, value in section.items() if key != "name"})
