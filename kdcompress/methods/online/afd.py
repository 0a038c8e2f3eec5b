"""Adversarial feature distillation (Chung et al., ICML 2020): networks make maps that pass for a peer's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Minimise, Needs, ParameterSet
from kdcompress.methods.cohort_method import CohortMethod, last_map, logits_of
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.shared_norm import SharedBatchNorm2d
from kdcompress.networks.activations import Want
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped, wide
from kdcompress.networks.undisturbed import frozen_state
from kdcompress.recipe import OptimSection

_STAGES: Want = frozenset({"stages"})


class AFD(CohortMethod):
    """Trains networks on labels, on their predecessor's predictions, and against discriminators of maps.

    Network k learns from network k - 1, the first from the last. A step has three updates. First, every
    network descends CE + weight · KL(predecessor ‖ own), with the recipe's optimiser. Second, every network
    up to its last map descends (1 - D_k(T_k(own map)))², with an AdamW of its own at a much smaller rate.
    Third, every discriminator D_k descends (1 - D_k(predecessor's map))² + D_k(T_k(own map))².

    The maps of the second and third update are computed anew with the weights after the first, in a second
    pass that leaves batch-norm statistics alone; the published method runs one pass. With `train.accumulate`
    only the last batch of a step sees the weights after the first update. D_k is small, ends in
    one number per image, and normalises by the statistics of all processes' rows. The transfer layer T_k
    (1×1 convolution, batch norm, ReLU) exists where the channels of the two maps differ and is trained in the
    second update, at the discriminators' rate. Discriminators and transfer layers are discarded.

    Two optimisers cannot hold the same parameters here. So the second one holds copies of the networks'
    weights (`features`): they receive the weights before the second update and return them after it, and the
    optimiser's moments are in the checkpoint. Its weight decay is that of AdamW, not Adam's.

    Source:
        Chung, Park, Kim & Kwak, Feature-map-level Online Adversarial Knowledge Distillation, ICML 2020. No
        code was found: losses and updates follow reading notes. The rates, the decay and the layout of the
        discriminator are recalled and not verified.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Not verified: recalled values. Published with batches of 128.",
            epochs=300, optim={"lr": 0.1, "milestones": [150, 225], "weight_decay": 1e-4},
            temperature=3.0, weight=1.0, feature_lr=2e-5, feature_weight_decay=0.1,
        ),
        "imagenet": imagenet(
            "No setting is known: the values are those recalled for CIFAR-100.",
            temperature=3.0, weight=1.0, feature_lr=2e-5, feature_weight_decay=0.1,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 74.03, "note on the AFD paper (69.38 alone)", None),
        PublishedFigure("imagenet", "", "torchvision/resnet18", 70.39, "AFD paper's table", None),
        PublishedFigure("imagenet", "", "torchvision/resnet34", 74.0, "AFD paper's table", None),
    )  # fmt: skip

    class Config(Section):
        """Recalled values of the paper, not verified, with rates that fall at shares of the run."""

        temperature: float = Field(3.0, gt=0)
        """Of the divergence, which has the factor T²."""
        weight: float = Field(1.0, ge=0)
        """Weight of the divergence beside the cross-entropy."""
        feature_lr: float = Field(2e-5, gt=0)
        """Rate of the networks' second optimiser, which follows the discriminators; divided by ten after a
        quarter and after half of the run."""
        feature_weight_decay: float = Field(0.1, ge=0)
        """Weight decay of that optimiser, multiplied by its rate."""
        discriminator_lr: float = Field(2e-5, gt=0)
        """Rate of discriminators and transfer layers, with the same schedule and without weight decay."""
        hidden: int = Field(64, ge=1)
        """Channels within a discriminator."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        each = (networks.student, *networks.peers)
        widths = [_last_width(network) for network in each]
        self._paths = [_paths_tolast_map(network) for network in each]
        self.features = nn.ModuleList(
            WeightCopies([network.network.get_parameter(path) for path in paths])
            for network, paths in zip(each, self._paths, strict=True)
        )
        self.transfer = nn.ModuleList(
            nn.Identity() if widths[k] == widths[k - 1] else transfer_layer(widths[k], widths[k - 1])
            for k in range(len(each))
        )
        self.discriminators = nn.ModuleList(
            Discriminator(widths[k - 1], config.hidden) for k in range(len(each))
        )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires at least one peer, and the last maps."""
        return Needs(peers=1, student=frozenset({"logits", "stages"}))

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Sets main, features, discriminators, and transfer where channels differ."""
        c = self.config
        networks = tuple(p for network in self.networks.trained() for p in network.parameters())
        heads = _adamw(c.discriminator_lr, 0.0)
        sets = {
            "main": ParameterSet(tuple(p for p in networks if p.requires_grad)),
            "features": ParameterSet(
                tuple(self.features.parameters()), optim=_adamw(c.feature_lr, c.feature_weight_decay)
            ),
            "discriminators": ParameterSet(tuple(self.discriminators.parameters()), optim=heads),
        }
        transfer = tuple(self.transfer.parameters())
        return sets | ({"transfer": ParameterSet(transfer, optim=heads)} if transfer else {})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of all three updates, at the present weights; `step` minimises each by its own sets."""
        self._take_weights()
        maps = self._maps(batch)
        return {**self._label_terms(batch), **self._feature_terms(maps), **self._discriminator_terms(maps)}

    def step(self, batch: Batch, minimise: Minimise) -> None:
        """Updates the networks by their logits, then their features, then the discriminators."""
        minimise(self._label_terms(batch), "main")
        self._take_weights()
        maps = self._maps(batch)
        transfer = ["transfer"] if list(self.transfer.parameters()) else []
        minimise(self._feature_terms(maps), "features", *transfer)
        self._return_weights()
        minimise(self._discriminator_terms(maps), "discriminators")

    def logit_loss(self, own_BK: Tensor, peer_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Computes cross-entropy and weighted divergence of a network; the peer's logits are a constant."""
        c = self.config
        divergence = c.weight * losses.kl(own_BK, peer_BK.detach(), c.temperature)
        return self.cross_entropy(own_BK, labels_B), divergence

    def _label_terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = logits_of(self.read_all(batch))
        terms = {}
        for k, name in enumerate(self.names()):
            ce, mimicry = self.logit_loss(logits[k], logits[k - 1], batch.labels)
            terms[f"ce_{name}"], terms[f"mimicry_{name}"] = ce, mimicry
        return terms

    def _maps(self, batch: Batch) -> list[Tensor]:
        """Computes each network's last map, with gradients to the copies of its weights alone."""
        maps = []
        for k, network in enumerate(self.architectures()):
            copies = dict(zip(self._paths[k], self.features[k].parameters(), strict=True))
            maps.append(last_map(network.functional(copies, batch.images, _STAGES)))
        return maps

    def _feature_terms(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            f"feature_{name}": losses.imitation_loss(self._judge(k, self._transferred(k, maps[k])))
            for k, name in enumerate(self.names())
        }

    def _discriminator_terms(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        terms = {}
        for k, name in enumerate(self.names()):
            own, peer = self._transferred(k, maps[k]).detach(), maps[k - 1].detach()
            judgement = losses.discriminator_loss(self._judge(k, own), self._judge(k, peer))
            terms[f"discriminator_{name}"] = judgement
        return terms

    def _transferred(self, k: int, map_BCHW: Tensor) -> Tensor:
        with self.networks.student.autocast():
            return wide(self.transfer[k](map_BCHW))

    def _judge(self, k: int, map_BCHW: Tensor) -> Tensor:
        with self.networks.student.autocast():
            logits_B = wide(self.discriminators[k](map_BCHW))
        return logits_B.sigmoid()

    @torch.no_grad()
    def _take_weights(self) -> None:
        for copy, weight in self._pairs():
            copy.copy_(weight)

    @torch.no_grad()
    def _return_weights(self) -> None:
        for copy, weight in self._pairs():
            weight.copy_(copy)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (copy, network.network.get_parameter(path))
            for network, paths, copies in zip(self.architectures(), self._paths, self.features, strict=True)
            for path, copy in zip(paths, copies.parameters(), strict=True)
        ]


class WeightCopies(nn.Module):
    """Holds copies of weights, for an optimiser of their own."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight.detach().clone()) for weight in weights)


class Discriminator(nn.Module):
    """Judges if a map is the peer's: convolution, batch norm, LeakyReLU, convolution, mean over positions.

    Args:
        channels: Of the map.
        hidden: Channels within.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            SharedBatchNorm2d(hidden),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, 1, 3, padding=1),
        )

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` of any size to `[B]`, whose sigmoid is the judgement."""
        judgement: Tensor = self.layers(map_BCHW).mean((1, 2, 3))
        return judgement


def transfer_layer(channels: int, target: int) -> nn.Module:
    """Builds a 1×1 convolution with batch norm and ReLU from one number of channels to another."""
    return nn.Sequential(nn.Conv2d(channels, target, 1, bias=False), SharedBatchNorm2d(target), nn.ReLU())


def _adamw(lr: float, weight_decay: float) -> OptimSection:
    return OptimSection(
        name="adamw", lr=lr, weight_decay=weight_decay, schedule="multistep", milestones=[0.25, 0.5]
    )


def _last_width(network: Tapped) -> int:
    stages = network.shapes().stages
    if not stages:
        raise NetworkError(
            f"method afd: compares the last maps, and {network.model} has no stage; name stages in its taps, "
            "or choose another network"
        )
    return list(stages.values())[-1].shape[1]


def _paths_tolast_map(network: Tapped) -> list[str]:
    """Returns the paths of the parameters that the last map depends on."""
    names, parameters = zip(*network.network.named_parameters(), strict=True)
    image = torch.zeros(2, network.channels, *network.image_size, device=network.device)
    with frozen_state([network.network], parameters=False), torch.enable_grad():
        total = last_map(network(image, _STAGES)).sum()
        found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]
