"""Layer-wise mutual contrastive learning (Yang et al., TPAMI 2023): contrasts exits of all networks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Minimise, Needs, ParameterSet
from kdcompress.methods.exit_method import READS, ByExit, End, ExitMethod, by_end
from kdcompress.methods.hypergradient import SGD, Hypergradient, Objective, Stepped, Tensors, hypergradient
from kdcompress.methods.losses import ContrastColumns
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped

README = "L-MCL README: best exit, network and epoch on the test images"


class LMCL(ExitMethod):
    """Minimises CE of all exits and of their mixed logits, logit imitation, and weighted contrast of exits.

    Each network gets exits behind its earlier stages: copies of the later stages. For every ordered pair of
    networks and every pair of their exits the four losses of `mcl` are added, both directions each, with the
    anchors weighted by sigmoid(cosine of the two exits' projected features). An aggregator mixes the logits
    of a network's exits; its output teaches the last exit of every network. Exits, heads, aggregators,
    projections and banks are discarded.

    The projections (the meta-network) are trained so that steps on the contrast alone lower the exits' CE:
    `meta_times` SGD steps on the contrast and one on CE are simulated on the batch, and the gradient of the
    CE that follows is taken through them. Nothing but the projections changes. Simulated steps take the
    whole gradient, whatever `stage_gradient` is: a scaled one is the gradient of no loss, and the derivative
    through the steps would not be exact.

    Source:
        Yang et al., Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition,
        TPAMI 2023; the authors' code. Its meta-gradient lacks a factor (the weight decay in front of the
        momentum's adjoint); here it is exact, with the targets of the soft losses as constants in the second
        derivative too, as there. Its memory form reads the first network's bank for both sides; here each
        network has its own.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Two networks, batches of 128.",
            epochs=300, optim={"schedule": "cosine", "lr": 0.1, "nesterov": True},
            form="batch", vcl_weight=0.1, soft_vcl_weight=1.0, icl_weight=0.1, soft_icl_weight=1.0,
            contrast_temperature=0.1, soft_temperature=3.0, width=128,
            logit_weight=1.0, logit_temperature=3.0, exits=3, blocks=None, matching_width=128,
            meta_every=50, meta_times=2, meta_momentum=0.9, meta_weight_decay=5e-4, meta_lr_scale=1.0,
            stage_gradient=1.0,
        ),
        "imagenet": imagenet(
            "Two ResNets. The ShuffleNetV2 there has one block per stage in its first exit alone.",
            form="memory", vcl_weight=0.01, soft_vcl_weight=1.0, icl_weight=0.01, soft_icl_weight=1.0,
            contrast_temperature=0.07, soft_temperature=3.0, width=128, negatives=8192, bank_momentum=0.5,
            logit_weight=1.0, logit_temperature=3.0, exits=4, blocks=1, matching_width=128,
            meta_every=500, meta_times=2, meta_momentum=0.9, meta_weight_decay=1e-4, meta_lr_scale=1.0,
            stage_gradient=1.0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 75.82, README, "cifar100"),
        PublishedFigure("cifar100", "", "cifar/resnet56", 77.51, README, "cifar100"),
        PublishedFigure("cifar100", "", "cifar/resnet110", 79.48, README, "cifar100"),
        PublishedFigure("cifar100", "", "cifar/wrn-16-2", 77.31, README, "cifar100"),
        PublishedFigure("cifar100", "", "cifar/wrn-40-2", 80.96, README, "cifar100"),
        PublishedFigure("cifar100", "", "cifar/shufflenet-v2", 77.25, README, "cifar100"),
        PublishedFigure("imagenet", "", "torchvision/resnet34", 75.12, README, "imagenet"),
        PublishedFigure("imagenet", "", "torchvision/resnet50", 78.35, README, "imagenet"),
        PublishedFigure("imagenet", "", "torchvision/shufflenet_v2_x1_0", 65.91, README, None),
    )  # fmt: skip

    class Config(ExitMethod.Config, ShortRuns):
        """The contrast is a sum over ordered pairs of networks and all pairs of their exits."""

        exits: int = Field(3, ge=2)
        """Largest number of exits of a network, its own output included; those behind its last stages. The
        number of compared pairs grows with its square: 9 of two networks with 3 exits."""
        blocks: int | None = Field(None, ge=1)
        """Largest number of blocks of each stage in an exit; null: all. 1 in the authors' ImageNet code."""
        logit_weight: float = Field(1.0, ge=0)
        """Weight of T² · KL from every network's aggregated logits to the last exit of each."""
        logit_temperature: float = Field(3.0, gt=0)
        """T of that term."""
        matching_width: int = Field(128, ge=1)
        """Width of the projections whose cosines match two exits."""
        meta_every: int = Field(50, ge=1)
        """Steps between two meta-steps, the first of the run included; the first step of an epoch also has
        one if half as many lie behind. A meta-step takes about as long as ten steps, or as 34 where the other
        steps are in bf16 on a CPU: it is in float32. 500 in the authors' ImageNet setting."""
        meta_times: int = Field(2, ge=1)
        """Simulated steps on the contrast, before the one on the cross-entropy."""
        meta_momentum: float = Field(0.9, ge=0, lt=1)
        """Momentum of the simulated steps, which begin from rest; their learning rate is the run's."""
        meta_weight_decay: float = Field(5e-4, ge=0)
        """Weight decay of the simulated steps."""
        meta_lr_scale: float = Field(1.0, gt=0)
        """Factor on the learning rate of the projections' own optimiser."""

    config: Config
    progress: Tensor

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        self.build_exits("lmcl", config.exits, config.blocks, config.matching_width)
        self.build_banks("lmcl", self.count)
        # The batches so far of an optimiser step that has a meta-step.
        self._meta_batches: list[Batch] = []
        # Epoch of the last step, and number of steps since the last meta-step: at first one is due.
        self.register_buffer("progress", torch.tensor([-1, config.meta_every]))
        self._epoch_begins, self._since_meta_step = True, config.meta_every

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires a peer, networks that can be split, and class-paired batches in the batch form."""
        return Needs(
            peers=1,
            order="class_paired" if config.form == "batch" else "shuffled",
            student=READS,
            cut=True,
        )

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Names two sets: meta has the projections, main everything else."""
        meta = tuple(self.matchers.parameters())
        ids = {id(p) for p in meta}
        main = tuple(p for p in super().parameter_sets()["main"].parameters if id(p) not in ids)
        return {
            "main": ParameterSet(main),
            "meta": ParameterSet(meta, lr_scale=self.config.meta_lr_scale),
        }

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Reads from the state when a meta-step is due; also called first after a resume."""
        super().on_epoch_start(epoch, epochs)
        self._meta_batches.clear()  # of a step that an error ended
        last, self._since_meta_step = self.progress.tolist()
        self._epoch_begins = last != epoch

    @property
    def meta_step_is_due(self) -> bool:
        """True in all batches of an optimiser step that has a meta-step."""
        since, every = self._since_meta_step, self.config.meta_every
        return since >= every or (self._epoch_begins and 2 * since >= every)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Updates banks and counters."""
        super().after_step(batch)
        self._since_meta_step = 1 if self.meta_step_is_due else self._since_meta_step + 1
        self._epoch_begins = False
        self.progress[0].fill_(self.epoch)
        self.progress[1].fill_(self._since_meta_step)

    def step(self, batch: Batch, minimise: Minimise) -> None:
        """Updates everything but the projections, and those in a meta-step where one is due.

        With several batches per optimiser step the meta-step follows the last one and takes the mean of their
        meta-gradients.
        """
        minimise(minimise.losses(batch), "main")
        if not self.meta_step_is_due:
            return
        # The meta-gradient is that of the weights after the update, which the step's last batch makes.
        self._meta_batches.append(batch)
        if minimise.is_last_batch:
            self._meta_step(minimise)

    def _meta_step(self, minimise: Minimise) -> None:
        """Updates the projections with the mean meta-gradient of the optimiser step's batches."""
        began = self._clock()
        rate = minimise.rate("main")
        results = [self.meta_gradient(batch, rate) for batch in self._meta_batches]
        self._meta_batches.clear()
        # Linear in the projections, so that its gradient is the sum of the meta-gradients, which `minimise`
        # divides by the number of batches.
        gradients = [_sum(each) for each in zip(*(result.gradients for result in results), strict=True)]
        pairs = zip(self.matchers.parameters(), gradients, strict=True)
        slope = torch.stack([(p * g).sum() for p, g in pairs]).sum()
        loss = torch.stack([result.loss for result in results]).mean()
        minimise({"meta": loss + slope - slope.detach()}, "meta")
        minimise.log({"meta_seconds": self._clock() - began})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce of each network's exits, ce_aggregated, logits, vcl, soft_vcl, icl and soft_icl."""
        features, logits = self.read_exits(batch.images, self.config.stage_gradient)
        terms = self.logit_terms(logits, self.aggregate(features, logits), batch.labels)
        with torch.no_grad():
            weights = self.match(features)
        embeddings = self.embeddings(features)
        if self.draws is not None:
            self.keep(batch.indices, [exits[-1] for exits in embeddings])
            return terms | self.bank_contrast(embeddings, weights, self.draws(batch.indices))
        gathered = [[self.gather(rows_BE) for rows_BE in exits] for exits in embeddings]
        weights = {pair: self.gather(rows_B) for pair, rows_B in weights.items()}
        return terms | self.contrast(gathered, weights, self.gather(batch.labels))

    def logit_terms(
        self, logits: ByExit, aggregated: Sequence[Tensor], labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Computes the terms between logits and labels, and between logits and logits.

        Args:
            logits: `[B, K]` of every exit.
            aggregated: `[B, K]` of every network.
            labels_B: `[B]`.
        """
        c = self.config
        terms = {
            f"ce_{name}": _sum(self.cross_entropy(rows_BK, labels_B) for rows_BK in exits)
            for name, exits in zip(self.names(), logits, strict=True)
        }
        terms["ce_aggregated"] = _sum(self.cross_entropy(rows_BK, labels_B) for rows_BK in aggregated)
        imitation = _sum(
            losses.kl(exits[-1], target.detach(), c.logit_temperature)
            for exits, target in itertools.product(logits, aggregated)
        )
        terms["logits"] = self.short_run_factor() * c.logit_weight * imitation
        return terms

    def contrast(
        self, embeddings: ByExit, weights: Mapping[tuple[End, End], Tensor], labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Computes the weighted contrastive terms of a batch.

        Args:
            embeddings: `[B, E]` unit rows of every exit, of all processes.
            weights: `[B]` for each pair, as `match` gives them.
            labels_B: `[B]`.

        Returns:
            vcl, soft_vcl, icl and soft_icl.
        """
        rows = by_end(embeddings)
        columns = losses.batch_columns(labels_B, embeddings[0][0].dtype)
        own = {end: self.compare(rows_BE, rows_BE) for end, rows_BE in rows.items()}
        across = {}
        for a, b in weights:
            across[a, b] = self.compare(rows[a], rows[b])
            across[b, a] = across[a, b].T
        return self._terms(own, across, weights, columns, columns)

    def bank_contrast(
        self, embeddings: ByExit, weights: Mapping[tuple[End, End], Tensor], columns_BM: Tensor
    ) -> dict[str, Tensor]:
        """Computes the weighted contrastive terms against the banks, which remember last exits.

        Args:
            embeddings: `[B, E]` unit rows of every exit.
            weights: `[B]` for each pair, as `match` gives them.
            columns_BM: `[B, 2 + K]` rows of the banks: the image itself, another one of its class, negatives.

        Returns:
            vcl, soft_vcl, icl and soft_icl.
        """
        rows = by_end(embeddings)
        table = [
            dict(zip(rows, self.compare_with_bank(list(rows.values()), bank, columns_BM), strict=True))
            for bank in self.banks
        ]
        # Within a network the image's own row is left out: it is the embedding of a step before.
        own = {end: table[end[0]][end][:, 1:] for end in rows}
        across = {(a, b): table[b[0]][a] for pair in weights for a, b in (pair, pair[::-1])}
        count, columns = columns_BM.shape
        like = embeddings[0][0]
        return self._terms(
            own, across, weights, losses.bank_columns(count, columns - 1, 1, like),
            losses.bank_columns(count, columns, 2, like),
        )  # fmt: skip

    def meta_gradient(self, batch: Batch, rate: float) -> Hypergradient:
        """Computes the gradient of the projections in float32; networks, statistics and generators stay.

        Every process computes the whole of it on the images of all processes, so that no communication lies
        inside a graph that is differentiated twice.

        Args:
            batch: Its first view is used for all simulated steps and for the loss after them.
            rate: Learning rate of the simulated steps.
        """
        c = self.config
        steps, final, start = self.simulated_steps(batch)
        with _twice_differentiable(self.architectures()), _explain_missing_derivatives(self.architectures()):
            return hypergradient(
                steps, final, start, tuple(self.matchers.parameters()),
                SGD(rate, c.meta_momentum, c.meta_weight_decay),
            )  # fmt: skip

    def simulated_steps(self, batch: Batch) -> tuple[list[Objective], Objective, Tensors]:
        """Lists the losses of the simulated steps: `meta_times` of the contrast, then one of CE of all exits.

        Args:
            batch: Its first view is read.

        Returns:
            One loss per step, the loss after the last one (CE of all exits), and the parameters that are
            stepped: those of networks, exits and heads.
        """
        images, labels_B = self.gather(batch.images), self.gather(batch.labels)
        columns_BM = None if self.draws is None else self.draws(self.gather(batch.indices))

        def contrast() -> Tensor:
            features, _ = self.read_exits(images)
            embeddings, weights = self.embeddings(features), self.match(features)
            if columns_BM is None:
                return _sum(self.contrast(embeddings, weights, labels_B).values())
            return _sum(self.bank_contrast(embeddings, weights, columns_BM).values())

        def cross_entropy() -> Tensor:
            _, logits = self.read_exits(images)
            return _sum(
                losses.cross_entropy(rows_BK, labels_B, self.class_weights, self.data.label_smoothing)
                for rows_BK in itertools.chain.from_iterable(logits)
            )

        stepped = Stepped([*self.networks.trained(), self.exits, self.heads])
        inner, outer = stepped.objective(contrast), stepped.objective(cross_entropy)
        return [inner] * self.config.meta_times + [outer], outer, stepped.start()

    def _terms(
        self,
        own: Mapping[End, Tensor],
        across: Mapping[tuple[End, End], Tensor],
        weights: Mapping[tuple[End, End], Tensor],
        own_columns: ContrastColumns,
        across_columns: ContrastColumns,
    ) -> dict[str, Tensor]:
        """Sums over the pairs; `across[a, b]` has the anchors of exit a."""
        both = [(a, b, w_B) for pair, w_B in weights.items() for a, b in (pair, pair[::-1])]
        # The weights do not depend on the direction, and ordered pairs of networks count each pair twice.
        terms = self.weighted(
            vcl=2 * _sum(
                losses.class_contrast(s, own_columns, _sum(w_B for a, _, w_B in both if a == end))
                for end, s in own.items()
            ),
            soft_vcl=2 * _sum(self.imitate(own[a], own[b], w_B) for a, b, w_B in both),
            icl=2 * _sum(losses.class_contrast(across[a, b], across_columns, w_B) for a, b, w_B in both),
            soft_icl=2 * _sum(self.imitate(across[a, b], across[b, a], w_B) for a, b, w_B in both),
        )  # fmt: skip
        return {name: self.short_run_factor() * term for name, term in terms.items()}

    def _clock(self) -> float:
        """Returns seconds, after the device has finished its work: meta-steps are rare."""
        device = self.networks.student.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()


@contextmanager
def _twice_differentiable(networks: Sequence[Tapped]) -> Iterator[None]:
    """Lets networks, exits and heads compute in float32 within its block, and uncompiled.

    Compiled passes have no second derivative.
    """
    before = [(network.precision, network.compiled) for network in networks]
    try:
        for network in networks:
            network.precision = network.compiled = None
        with torch.autocast(networks[0].device.type, enabled=False):
            yield
    finally:
        for network, (precision, compiled) in zip(networks, before, strict=True):
            network.precision, network.compiled = precision, compiled


@contextmanager
def _explain_missing_derivatives(networks: Sequence[Tapped]) -> Iterator[None]:
    """Turns torch's error for an operation without a second derivative into one that names the networks."""
    try:
        yield
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        names = ", ".join(dict.fromkeys(network.model for network in networks))
        raise NetworkError(
            f"method lmcl: differentiates networks twice, and torch cannot do so for one of {names} "
            f"({str(error).splitlines()[0]}); choose other networks, or the method mcl"
        ) from error


def _sum(terms: object) -> Tensor:
    total = sum(terms)  # type: ignore[call-overload]
    assert isinstance(total, Tensor)
    return total
