"""Plain training on the labels: the baseline, and how a teacher is trained."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch
from kdcompress.methods.base import Method, Needs, ParameterSet, Phase


class Plain(Method):
    """CE(labels); with `classifier_first`, the usual two steps of fine-tuning.

    While only the classifier moves, the batch-norm statistics stay as the weights brought them: features that
    nobody corrects must not drift.
    """

    class Config(Section):
        """Whether to fine-tune in two steps."""

        classifier_first: float = Field(0.0, ge=0, lt=1)
        """Share of the epochs in which only the classifier moves."""

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Labels."""
        return Needs()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """One term, ce."""
        logits = self.networks.student(batch.images).logits
        assert logits is not None
        return {"ce": self.cross_entropy(logits, batch.labels)}

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """main; or classifier and backbone where the classifier goes first."""
        if not self.config.classifier_first:
            return super().parameter_sets()
        student = self.networks.student
        head = {id(p) for p in student.classifier.parameters()}
        parameters = list(student.network.parameters())
        return {
            "classifier": ParameterSet(tuple(p for p in parameters if id(p) in head)),
            "backbone": ParameterSet(tuple(p for p in parameters if id(p) not in head)),
        }

    def phases(self) -> list[Phase]:
        """One; or classifier, then all."""
        share = self.config.classifier_first
        if not share:
            return super().phases()
        return [
            Phase("classifier", share, ("classifier",), freeze_bn=True),
            Phase("all", 1 - share, ("classifier", "backbone")),
        ]
