"""A teacher of which only facts and its classifier are in memory; its outputs come from a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcompress.data.batch import TurnedViews, View
from kdcompress.errors import UserError
from kdcompress.networks.activations import LOGITS, Activations, Want
from kdcompress.networks.output_cache.facts import TeacherFacts, WithFacts
from kdcompress.networks.tapped import Tapped, wide
from kdcompress.networks.teacher import FrozenTeacher, Teacher


class StoredTeacher(WithFacts):
    """Stands for a teacher that was not built: only its last linear layer is there.

    Args:
        facts: Of the teacher.
        features: D, the width of its pooled features; None: no linear layer reads them.
        classifier: weight `[K, D]` and perhaps bias `[K]`, in the type that the frozen teacher has them in;
            empty for a backbone, or where the outputs that are kept are logits.
        precision: Autocast type of the teacher's passes; None is float32 throughout.
        device: The device of the classifier.
    """

    def __init__(
        self,
        facts: TeacherFacts,
        *,
        features: int | None,
        classifier: Mapping[str, Tensor],
        precision: torch.dtype | None,
        device: torch.device,
    ) -> None:
        super().__init__(facts)
        self.precision, self.device = precision, device
        self._features = features
        self._classifier = {name: tensor.to(device) for name, tensor in classifier.items()}
        self._built: Teacher | None = None

    @property
    def tapped(self) -> Tapped | None:
        """The network, once it was built."""
        return None if self._built is None else self._built.tapped

    def take(self, built: Teacher) -> None:
        """Takes the teacher itself, which answers from now on."""
        self._built = built

    def to(self, device: torch.device | str) -> Self:
        """Moves the classifier."""
        self.device = torch.device(device)
        self._classifier = {name: tensor.to(device) for name, tensor in self._classifier.items()}
        return self

    def compile(self, *, graphs: bool = False) -> None:
        """Does nothing: there are no passes to compile."""

    def __call__(self, images: View | TurnedViews | Tensor, want: Want = LOGITS) -> Activations:
        """Asks the teacher itself, once it was built.

        Raises:
            UserError: It was not.
        """
        if self._built is None:
            raise UserError(
                f"teacher.cache.mode: read, but the outputs of {self.model} for these images are not kept; "
                "run it with teacher.cache.mode: fill"
            )
        return self._built(images, want)

    def classify(self, pooled: Tensor) -> Tensor:
        """Returns the classifier's logits `[B, K]` of pooled features `[B, D]`; gradients reach `pooled`."""
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None):
            return wide(F.linear(pooled, self._classifier["weight"], self._classifier.get("bias")))

    def shapes(self, image_size: tuple[int, int] | None = None) -> Activations:
        """Returns logits and pooled features of a batch of two as tensors without data; no maps."""
        logits = torch.empty(2, self.num_classes, device="meta") if self.num_classes else None
        pooled = None if self._features is None else torch.empty(2, self._features, device="meta")
        return Activations(logits=logits, pooled=pooled)

    def on_epoch_end(self) -> None:
        """Does nothing: every pass is done when it returns."""

    def assert_unchanged(self) -> None:
        """Raises an AssertionError if anything of the teacher changed since it was built."""
        if self._built is not None:
            self._built.assert_unchanged()


def stored_classifier(teacher: FrozenTeacher) -> dict[str, Tensor] | None:
    """Returns the tensors of the last linear layer, as a `StoredTeacher` takes them.

    Args:
        teacher: Frozen.

    Returns:
        Copies on the CPU; empty for a backbone or a network whose logits no linear layer gives. None: the
        classifier is a module of another kind, which two tensors do not describe.
    """
    classifier = teacher.classifier
    if classifier is None:
        return {}
    if type(classifier) is not nn.Linear or classifier._forward_hooks or classifier._forward_pre_hooks:
        return None
    found = {"weight": classifier.weight, "bias": classifier.bias}
    return {name: tensor.detach().cpu().clone() for name, tensor in found.items() if tensor is not None}
