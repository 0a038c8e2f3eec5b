"""FitNets (Romero et al., ICLR 2015): a middle map imitates the teacher's through a trained regressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError, suggest
from kdcompress.methods import losses
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.losses import Pair
from kdcompress.methods.presets import CRD_TABLES, Preset, cifar100, crd_table, imagenet
from kdcompress.networks.activations import Activations, Want
from kdcompress.networks.networks import Networks


class FitNet(FeatureKD):
    """ce_weight · CE(labels) + weight · MSE(regressor(student map), teacher map) + kd_weight · KL.

    Trained jointly, as every re-implementation on torch does; the paper trains the student up to the guided
    stage on the hint alone first. The regressor is trained along and thrown away.

    Source:
        Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015; regressor, weight and middle stage are
        those of the RepDistiller code.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "The published pairs of residual networks use stage2 of both networks.",
            weight=100.0, ce_weight=1.0, kd_weight=0.0,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            weight=100.0, ce_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = crd_table(
        CRD_TABLES, 73.58, 72.24, 69.21, 68.99, 71.06, 73.50, 71.02, 64.14, 63.16, 70.69, 73.59, 73.54, 73.73
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """The hint is a mean over all elements of the map; the other terms are means over rows."""

        weight: float = Field(100.0, gt=0)
        """Weight of the hint."""
        hint: str | None = None
        """The teacher's stage. None: the middle one of those that a regressor can reach (of an even number
        the shallower)."""
        guided: str | None = None
        """The student's stage. None: the one of the hint's resolution."""
        pre_activation: bool = False
        """Read the teacher before its activation function; the regressor then ends without one, since a ReLU
        cannot reach negative values."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        self.pair = self._select_pair()
        self.regressor = Regressor(
            self.pair.student_shape, self.pair.teacher_shape, activation=not config.pre_activation
        )

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns the stage maps of both networks, the teacher's before activation if so configured."""
        teacher: Want = frozenset({"pre"} if config.pre_activation else {"stages"})
        return frozenset({"stages"}), teacher

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the term hint."""
        with self.networks.student.autocast():
            regressed = self.regressor(ours.stages[self.pair.student])
        hint = (theirs.pre if self.config.pre_activation else theirs.stages)[self.pair.teacher]
        return {"hint": self.config.weight * losses.mse(regressed, hint)}

    def _select_pair(self) -> Pair:
        """Returns the configured pair, or the middle one of those that a regressor can connect.

        Raises:
            NetworkError: A stage does not exist, or no regressor joins any pair.
        """
        assert self.networks.teacher is not None
        c, student, teacher = self.config, self.networks.student, self.networks.teacher
        ours, theirs = student.shapes(), teacher.shapes()
        for key, name, stages in (("guided", c.guided, ours.stages), ("hint", c.hint, theirs.stages)):
            if name is not None and name not in stages:
                raise NetworkError(f"method.{key}: no stage {name!r}{suggest(name, stages)}")
        if c.guided is not None and c.hint is not None:
            pairs: tuple[Pair, ...] = (losses.pair(ours, theirs, c.guided, c.hint),)
        else:
            pairs = losses.pairs(ours, theirs)
        fitting = [
            pair
            for pair in pairs
            if c.guided in (None, pair.student)
            and c.hint in (None, pair.teacher)
            and reachable(pair.student_shape, pair.teacher_shape)
        ]
        if not fitting:
            raise NetworkError(
                "method fitnet: no regressor leads from a stage of the student "
                f"{losses.stage_maps(student.model, ours)} to its counterpart in the teacher "
                f"{losses.stage_maps(teacher.model, theirs)}: the student's map must be exactly half "
                "as large, or as large or larger; name two such stages in method.guided and method.hint"
            )
        return fitting[(len(fitting) - 1) // 2]


def reachable(student_CHW: Sequence[int], teacher_CHW: Sequence[int]) -> bool:
    """Tells if a regressor leads from one map's shape to the other's."""
    _, h, w = student_CHW
    _, height, width = teacher_CHW
    return (2 * h, 2 * w) == (height, width) or (h >= height and w >= width)


class Regressor(nn.Module):
    """Maps the student's map to the teacher's shape: convolution, batch norm and, by default, ReLU.

    A map of half the size goes through a transposed 4×4 convolution of stride 2, one of twice the size
    through a 3×3 convolution of stride 2, any other through an unpadded convolution whose kernel gives the
    teacher's size (1×1 between maps of one size).

    Args:
        student_CHW: Shape of the input.
        teacher_CHW: Shape of the output; `reachable`.
        activation: True to end with a ReLU.
    """

    def __init__(
        self, student_CHW: Sequence[int], teacher_CHW: Sequence[int], *, activation: bool = True
    ) -> None:
        super().__init__()
        assert reachable(student_CHW, teacher_CHW)
        before, h, w = student_CHW
        after, height, width = teacher_CHW
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if (2 * h, 2 * w) == (height, width):
            self.conv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
        elif (h, w) == (2 * height, 2 * width):
            self.conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(before, after, (1 + h - height, 1 + w - width))
        self.norm = nn.BatchNorm2d(after)
        self.activation = nn.ReLU() if activation else nn.Identity()

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Returns the student's map in the teacher's shape."""
        regressed: Tensor = self.activation(self.norm(self.conv(map_BCHW)))
        return regressed
