"""Auxiliary classifiers behind the stages of a network, and their training on a frozen teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError, Uncuttable
from kdcompress.methods import losses
from kdcompress.methods.base import Candidate, Method, Needs, ParameterSet
from kdcompress.methods.requirements import square_images
from kdcompress.networks.exits import exit_after
from kdcompress.networks.networks import Networks
from kdcompress.networks.split import split
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher, teacher_network


class TeacherHeads(Method):
    """Cross-entropy of joint labels at an auxiliary classifier behind every stage of a frozen teacher.

    The joint label of an image of class y turned k times is 4·y + k, and every image comes in all four
    turns. Only the classifiers learn: the teacher's maps are constants, and its own cross-entropy, which the
    authors add, would move nothing. What is left behind is their state dictionary, which `HSAKD` takes over.

    Source:
        Yang, An, Cai & Xu, Hierarchical Self-supervised Augmented Knowledge Distillation, IJCAI 2021; the
        first of the code's two ways. The second, written HSAKD*, trains teacher and classifiers together from
        scratch: another teacher, which is not made here.
    """

    def __init__(self, config: Section, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        square_images("hsakd", data)
        tapped = teacher_network(self._teacher, "method hsakd")
        self.heads = joint_heads(tapped, cuttable(tapped, "teacher"))

    @property
    def _teacher(self) -> Teacher:
        assert self.networks.teacher is not None
        return self.networks.teacher

    @classmethod
    def needs(cls, config: Section) -> Needs:
        """Requires labels and a teacher with stage maps."""
        return Needs(teacher=True, read_of_teacher=frozenset({"stages"}))

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Trains the auxiliary classifiers only."""
        return {"main": ParameterSet(tuple(self.parameters()))}

    def candidates(self) -> dict[str, Candidate]:
        """Returns the classifiers by stage of the teacher, to be cached; they cannot ship as a network."""
        return {"heads": Candidate(self.networks.student, self.heads.state_dict, self.heads)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes one cross-entropy term for each stage of the teacher."""
        return self.terms(self.joint_logits(losses.four_rotations(batch.images)), batch.labels)

    def terms(self, joint: Mapping[str, Tensor], labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the terms from the classifiers' outputs.

        Args:
            joint: `[4·B, 4·K]` by stage; row 4·i + k is image i turned k times.
            labels_B: `[B]`.
        """
        labels = losses.joint_labels(labels_B)
        weights = None if self.class_weights is None else self.class_weights.repeat_interleave(4)
        smoothing = self.data.label_smoothing
        return {
            f"joint_{stage}": losses.cross_entropy(joint_RJ, labels, weights, smoothing)
            for stage, joint_RJ in joint.items()
        }

    def joint_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the joint logits `[R, 4·K]` of each stage for `[R, C, H, W]` images in [0, 1]."""
        teacher = self._teacher
        maps = teacher(images, frozenset({"stages"})).stages
        return {stage: head(maps[stage]).logits for stage, head in self.heads.items()}

    @torch.no_grad()
    def class_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the class logits of each classifier for upright images, to measure its accuracy.

        Args:
            images: `[B, C, H, W]` in [0, 1].

        Returns:
            `[B, K]` by stage.
        """
        return {
            stage: losses.joint_to_class_logits(joint) for stage, joint in self.joint_logits(images).items()
        }


def joint_heads(tapped: Tapped, stages: Iterable[str]) -> nn.ModuleDict:
    """Builds a randomly initialised classifier of 4·K joint classes for each stage.

    Each is a copy of what follows the stage in the network itself, down to pooling and classifier; only the
    last linear layer is wider.

    Args:
        tapped: Left as it was.
        stages: Behind which the network can be cut.

    Returns:
        By stage: an `Exit` with logits `[R, 4·K]`, on the network's device, in training mode, drawn from
        torch's global generator.

    Raises:
        NetworkError: The network does not end in a linear classifier.
    """
    joint = 4 * tapped.num_classes
    return nn.ModuleDict({stage: exit_after(tapped, stage, num_classes=joint) for stage in stages})


def cuttable(tapped: Tapped, role: str, method: str = "hsakd") -> dict[str, int]:
    """Lists the stages behind which a network can be split, with the number of later stages.

    Args:
        tapped: Left as it was.
        role: student or teacher, for the error.
        method: Named in the error.

    Returns:
        Shallow to deep; at least one.

    Raises:
        Uncuttable: There are stages, and behind none of them can the network be cut.
        NetworkError: There are no stages.
    """
    later_stages: dict[str, int] = {}
    reason: Uncuttable | None = None
    stages = list(tapped.shapes().stages)
    for number, stage in enumerate(stages, start=1):
        try:
            split(tapped, stage)
        except Uncuttable as error:
            reason = error
        else:
            later_stages[stage] = len(stages) - number
    if later_stages:
        return later_stages
    prefix = f"method {method}: copies what follows each stage of the {role}"
    if reason is None:
        raise NetworkError(f"{prefix}, and {tapped.model} has no stages; choose a convolutional network")
    raise Uncuttable(f"{prefix}; {reason}") from reason
