"""The interface of all distillation methods.

Shape letters are those of `kdcompress.data.batch`.

A method is an `nn.Module` that owns only what is discarded after training (heads, memory banks, queues,
gates, temperatures). The networks stand beside it, unregistered and unmodified, so nothing has to be cut out
of the student afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from torch import Tensor, nn

from kdcompress import discovery
from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.data.orders import Order
from kdcompress.methods import losses
from kdcompress.methods.gather import gather_rows, row_share
from kdcompress.methods.memory import SampleMemory
from kdcompress.methods.presets import Preset, PublishedFigure
from kdcompress.methods.short_runs import short_run_factor
from kdcompress.networks.activations import LOGITS, Want
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.recipe import OptimSection
from kdcompress.tasks import CLASSIFICATION, Task

LEAST_NOTICED = 10_000_000
"""Bytes of per-image memories from which they are announced before a training."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Requirements of a method on a run, known from its Config alone.

    Args:
        teacher: True if there must be a frozen teacher.
        peers: The least number of whole networks trained beside the student (branches of the student are no
            peers); None: the method cannot use any.
        views: Augmentations of each image in a batch.
        turned: True if the teacher reads view k of each image turned by k quarter turns (`methods.turned`).
        augment: Augmentation preset of each view (`kdcompress.data.augment`); empty: the recipe's for all.
        order: Name of the batch order (`kdcompress.data.orders`).
        labels: True if there must be labels.
        unlabelled: True if the method also learns from images without a label; otherwise they are left out.
        student: Outputs read from the student. A method that runs branches itself (`networks.cohort`) names
            what it reads there.
        read_of_teacher: Outputs read from the teacher.
        cached: Outputs that the method reads from the teacher in a separate call, which a cache can then
            answer; None: it reads all of `read_of_teacher` in one call.
        top_k: True if only the teacher's largest probabilities count: soft labels at a temperature of at most
            1.5, so that a cache may keep those alone.
        cut: True if the student must be a network that can be split at its stages, since heads or branches
            have the architecture of the later ones. `exit_after` and `Cohort` refuse other networks.
        compiles: False if the method runs branches, which are parts of the student and stay uncompiled.
        task: Task of the student. Embedding if no classifier is trained: the student is built without one,
            and its output is its pooled features.
    """

    teacher: bool = False
    peers: int | None = None
    views: int = 1
    turned: bool = False
    augment: tuple[str, ...] = ()
    order: Order = "shuffled"
    labels: bool = True
    unlabelled: bool = False
    student: Want = LOGITS
    read_of_teacher: Want = LOGITS
    cached: Want | None = None
    top_k: bool = False
    cut: bool = False
    compiles: bool = True
    task: Task = CLASSIFICATION


@dataclass(frozen=True, slots=True)
class ParameterSet:
    """Parameters that share one optimiser.

    Args:
        parameters: At least one.
        lr_scale: Factor on the learning rate.
        optim: Optimiser, weight decay and schedule of this set alone; None: the recipe's `optim:` section.
        weight_decay: Replaces the weight decay of that section; None: it stays.
        schedule: Replaces its learning-rate schedule, unless the phase has one; None: it stays.
    """

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    optim: OptimSection | None = None
    weight_decay: float | None = None
    schedule: Literal["constant", "cosine"] | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training with a learning-rate schedule of its own.

    Args:
        name: Shown in the log.
        share: Share of the run; the shares of all phases add up to 1.
        sets: Names of the parameter sets that are trained; every other parameter is frozen.
        freeze_bn: True keeps all batch-norm statistics fixed: networks, branches and heads.
        keep_optimiser: True continues with the optimiser state (momentum) that a set had in the phase before;
            False starts with fresh optimisers.
        whole_epochs: True rounds the share to whole epochs, at least one; False to steps, so that the phase
            may end within an epoch, whose log line then has the terms of both phases.
        schedule: Course of the learning rate in the phase: the recipe's, or after the recipe's warm-up
            constant or a half cosine.
    """

    name: str
    share: float
    sets: tuple[str, ...]
    freeze_bn: bool = False
    keep_optimiser: bool = False
    whole_epochs: bool = True
    schedule: Literal["recipe", "constant", "cosine"] = "recipe"


@dataclass(frozen=True, slots=True)
class Preparation:
    """An extra training before the student's, for heads attached to the teacher.

    Its result is cached in the run folder and the user cache, and reused by later runs with the same inputs.

    Args:
        method: Trains its own modules beside the frozen teacher and lists them in `candidates`; it must not
            use `networks.student`.
        config: Config of that method.
        epochs: Number of epochs.
        lr: Base learning rate.
        milestones: Fractions of the training after which the rate is divided by ten.
        name: Tells several preparations of one method apart; also names log lines and files.
    """

    method: type[Method]
    config: Any
    epochs: int
    lr: float
    milestones: tuple[float, ...]
    name: str = "preparation"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained network that may ship.

    Args:
        like: A network of the architecture that the state fits. Architecture, input normalisation and
            precision are taken from it, so that a peer is scored and shipped with its own.
        state: Returns the state dictionary of that plain network as it is now.
        module: The module that holds this state and can be scored directly; None: `state` is loaded into a
            scratch network for scoring.
        outputs: Names of the outputs of the exported file.
    """

    like: Tapped
    state: Callable[[], Mapping[str, Tensor]]
    module: nn.Module | None = None
    outputs: tuple[str, ...] = ("logits",)

    @classmethod
    def of(cls, tapped: Tapped) -> Self:
        """Makes a candidate of a whole network."""
        return cls(tapped, tapped.network.state_dict, tapped.network)

    @property
    def model(self) -> str:
        """`FAMILY/NAME` of the plain class."""
        return self.like.model


class Minimise(Protocol):
    """The trainer's interface for `Method.step`; it handles precision, clipping and several processes."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes `Method.losses`; a method with a `step` of its own may call it any number of times."""

    def __call__(self, terms: Mapping[str, Tensor], *sets: str) -> None:
        """Checks that the terms are finite and updates the named sets (none named: all of the phase)."""

    @property
    def is_last_batch(self) -> bool:
        """True in the last batch of an optimiser step, in which a call updates parameters."""

    def rate(self, name: str) -> float:
        """Returns the present learning rate of a parameter set."""

    def log(self, figures: Mapping[str, float | Tensor]) -> None:
        """Adds scalars to the log that are not minimised; the log holds their mean over an epoch's steps."""


class Method(nn.Module):
    """Base class of all methods.

    Several processes: each computes on its rows of the global batch, and the trainer averages gradients.
    Buffers of a method must be equal in all processes (write them with gathered rows, see `gather`); the
    first process's values are copied to the others at each checkpoint. Batch-norm statistics are averaged.

    Half precision: heads and gates run under `networks.student.autocast()`, and their outputs become float32
    with `networks.tapped.wide` (`Cohort` and `Exit` do both). Every softmax, logarithm, norm or matrix
    product of a loss stands in a function under `methods.losses.widening.full_precision`.

    A constructor draws weights from torch's global generator, which is seeded before. The networks are on
    their device; the method is moved there afterwards.

    Args:
        config: The recipe's `method:` section.
        networks: Student, teacher and peers, built and placed.
        data: Facts about the training data.
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
        self.networks = networks  # a dataclass, so nn.Module registers none of them
        self.data = data
        self.epoch = 0
        self.epochs = 1
        self.phase = ""
        self._some_unlabelled = bool((data.labels < 0).any())
        weights = data.class_weights
        self.register_buffer("class_weights", None if weights is None else weights.float(), persistent=False)

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """Returns this method's requirements on a run."""
        return Needs()

    @classmethod
    def preparations(cls, config: Any) -> tuple[Preparation, ...]:
        """Lists the trainings that come before the student's, in their order; by default none."""
        return ()

    def take_prepared(self, name: str, state: dict[str, Tensor]) -> None:
        """Loads the result of a preparation.

        Args:
            name: `Preparation.name`.
            state: State dictionary of its chosen candidate.
        """
        raise NotImplementedError(f"{type(self).__name__} has no preparation")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the weighted scalar terms of one batch; their sum is minimised, and each is logged."""
        raise NotImplementedError(f"{type(self).__name__} defines no losses")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Computes `losses`, under the name that DistributedDataParallel calls."""
        return self.losses(batch)

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Names the trained parameters; by default one set "main": student, peers and method."""
        modules: Iterable[nn.Module] = (*self.networks.trained(), self)
        unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        return {"main": ParameterSet(tuple(unique.values()))}

    def phases(self) -> list[Phase]:
        """Lists the parts of the training; by default one that trains every set."""
        return [Phase("main", 1.0, tuple(self.parameter_sets()))]

    def step(self, batch: Batch, minimise: Minimise) -> None:
        """Handles one batch; by default the sum of the losses updates everything.

        With `train.accumulate` several batches make an optimiser step.
        """
        minimise(minimise.losses(batch))

    @property
    def has_own_step(self) -> bool:
        """True if `step` may call `minimise` more than once, or on something else than `losses`."""
        return type(self).step is not Method.step

    def notices(self) -> tuple[str, ...]:
        """Returns sentences for the user before the training; by default the size of per-image memories."""
        memories = [module for module in self.modules() if isinstance(module, SampleMemory)]
        size = sum(memory.bytes for memory in memories)
        if size < LEAST_NOTICED:
            return ()
        places = " and ".join(sorted({"on the CPU" if m.on_cpu else "on the device" for m in memories}))
        return (
            f"the method stores {size / 1e6:,.0f} MB of numbers for the training images, {places}, and in "
            "every checkpoint",
        )

    def on_phase_start(self, name: str, resumed: bool) -> None:
        """Prepares a phase; losses that differ between phases read `self.phase`.

        Args:
            name: The phase's.
            resumed: True after a resume within the phase. The method's state was restored then: copies made
                at the start of the phase (such as a frozen student) must not be made again.
        """
        self.phase = name

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Prepares an epoch (0-based, over all phases); ramps and curricula read `self.epoch`.

        Called again where an epoch goes on: after a resume, and in a phase that begins within an epoch.
        """
        self.epoch, self.epochs = epoch, epochs

    def epochs_of(self, share: float, epochs: float | None) -> float:
        """Returns the length of a ramp in epochs: `epochs`, or if that is None a share of this run's."""
        return share * self.epochs if epochs is None else epochs

    def short_run_factor(self) -> float:
        """Returns the factor on the weights of a method whose options are `ShortRuns`."""
        return short_run_factor(self.epochs, self.config.full_weight_epochs)

    def after_step(self, batch: Batch) -> None:
        """Updates banks, queues and moving averages; called once per optimiser step, with its last batch.

        With `train.accumulate`, what the earlier batches gave is collected in `losses`.
        """

    def on_epoch_end(self) -> None:
        """Finishes an epoch, before the candidates are scored."""

    def candidates(self) -> dict[str, Candidate]:
        """Names the networks that may ship as the student; by default the student alone.

        The first one stands for the training: its figures are logged, and `train.ship: last` ships it.
        """
        return {"student": Candidate.of(self.networks.student)}

    def members(self) -> dict[str, Candidate]:
        """Names the networks of the ensemble that `train.ship: ensemble` exports; empty: there is none.

        At least one of them is also a candidate, under the same name: the best of those ships as the student.
        """
        return {}

    def statistics_images(self, images: Tensor) -> Tensor:
        """Returns the images on which the student's batch-norm statistics are re-estimated.

        A method that turns or mixes images gives the student both kinds in one batch, so its weights are used
        to the statistics of both: those of the plain images alone cost three to six points.

        Args:
            images: `[B, C, H, W]` of a batch, in [0, 1]; the call is made in one process only.

        Returns:
            What a training step shows the student of them, `[R, C, H, W]`; by default the images themselves.
        """
        return images

    def early_exits(self) -> dict[str, nn.Module]:
        """Names the heads that `export.exits` exports, by the student's stage; empty: there are none.

        Each takes the map `[B, C, H, W]` of its stage and returns logits `[B, K]`, by layers alone: no
        autocast and no hooks. They share their modules with the method; the student contains none of them.
        """
        return {}

    @classmethod
    def has_early_exits(cls) -> bool:
        """Returns True if the method defines `early_exits`."""
        return cls.early_exits is not Method.early_exits

    def cross_entropy(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """Computes `losses.cross_entropy` with the run's label smoothing and class weights.

        Returns:
            A mean over the labelled rows of all processes, once the processes' gradients are averaged.
        """
        mean = losses.cross_entropy(logits_BK, labels_B, self.class_weights, self.data.label_smoothing)
        if not self._some_unlabelled:
            return mean
        return mean * row_share((labels_B >= 0).sum(), labels_B)

    def both_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the student's and the teacher's logits `[B, K]` of the first view, the latter detached."""
        assert self.networks.teacher is not None
        student = self.networks.student(batch.images).logits
        teacher = self.networks.teacher(batch.views[0]).logits
        assert student is not None
        assert teacher is not None
        return student, teacher

    def gather(self, rows: Tensor) -> Tensor:
        """Collects the rows of all processes, for a loss that is no mean over rows.

        Args:
            rows: `[B, ...]`, equally many in every process.

        Returns:
            `[B · processes, ...]` by rank, with gradients to every process's rows; `rows` itself in a run of
            one process.
        """
        return gather_rows(rows)


def find_method(name: str) -> type[Method]:
    """Loads the Method subclass that a plugin file defines.

    Args:
        name: A name that `kdcompress methods` lists.

    Raises:
        UserError: No such method.
    """
    cls = discovery.load_class("method", name, "parameter_sets")
    assert issubclass(cls, Method), f"{cls} is no Method"
    return cls


def configured(section: dict[str, Any]) -> tuple[type[Method], Any]:
    """Loads the method of a checked recipe, with its Config.

    Args:
        section: The recipe's `method:`, its name included.
    """
    cls = find_method(section["name"])
    return cls, cls.Config.model_validate({key: value for key, value in section.items() if key != "name"})
