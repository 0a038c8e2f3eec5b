"""Schema of `results.json`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import Field, model_validator

from kdcompress.schemas.document import (
    MOST_CLASSES,
    Count,
    Document,
    Number,
    Points,
    Positive,
    Share,
    Text,
    Version,
)
from kdcompress.schemas.figures import FigureName, Figures, Scores, Sized


class FittedOn(Document):
    """Images that a temperature or a threshold was fitted on."""

    split: Text
    n: Count


class Calibration(Document):
    """How far confidence and accuracy differ."""

    temperature: Positive | None
    fitted_on: FittedOn | None
    ece: Share
    ece_calibrated: Share | None

    @model_validator(mode="after")
    def _fitted(self) -> Self:
        if self.temperature is not None and None in (self.fitted_on, self.ece_calibrated):
            raise ValueError("calibration: has a temperature, and lacks fitted_on or ece_calibrated")
        return self


class Operation(Document):
    """Figures of two classes at a threshold."""

    threshold: Number
    recall: Share
    false_positive_rate: Share
    precision: Share | None
    balanced_top1: Share


class ChosenOperation(Operation):
    """Figures at a threshold that held-out images chose."""

    chosen_on: FittedOn


class TwoClasses(Document):
    """Curves' areas and thresholds of two classes."""

    positive: Literal[0, 1]
    roc_auc: Share
    average_precision: Share
    at_half: Operation
    threshold: ChosenOperation | None


class Student(Sized):
    """The student's figures."""

    top1: Share | None
    calibration: Calibration | None = None
    two_classes: TwoClasses | None = None


class Verdict(Document):
    """Judgement of a derived file."""

    sentence: Text
    told: Text | None = None


class Tuned(Document):
    """Outcome of the training for int8."""

    sentence: Text
    kept: bool = False


class Variant(Scores):
    """A derived file, such as int8."""

    file: Text
    verdict: Verdict
    qat: Tuned | None = None


class Ensemble(Scores):
    """The ensemble and its file."""

    sentence: Text


class Exit(Scores):
    """One early exit."""

    name: Text
    file: Text
    sentence: Text


class Exits(Document):
    """The file of early exits."""

    file: Text
    exits: list[Exit] = []


class Cause(Document):
    """Most likely cause of a gain that is not shown."""

    sentence: Text
    advice: Text


class Gain(Document):
    """Student against baseline."""

    figure: FigureName = "top1"
    points: Points
    ci95: Annotated[list[Points], Len(2, 2)]
    verdict: Literal["better", "worse", "no difference shown"]
    cause: Cause | None = None


class Lead(Gain):
    """Student against always the largest class."""

    figure: FigureName


class LargestClass(Document):
    """Figures of the answer that is always the largest class."""

    class_: Annotated[Count, Field(alias="class", lt=MOST_CLASSES)]
    largest_in: Literal["train", "test"]
    top1: Share
    balanced_top1: Share
    student_ahead: Lead | None


class Training(Document):
    """Course of the student's training."""

    candidate: Text = "student"
    candidates: dict[str, Figures] | None = None
    best: Figures | None = None

    @model_validator(mode="after")
    def _scored_alike(self) -> Self:
        scores = list((self.candidates or {}).values())
        if scores:
            known = [key for key in FigureName.__args__ if getattr(scores[0], key) is not None]  # type: ignore[attr-defined]
            own = [scores[0].decides] if scores[0].decides else known
            for key in own[:1] if len(scores) < 2 else own:
                if any(getattr(score, key) is None for score in scores):
                    raise ValueError(f"candidates: not all of them have the figure {key}")
        return self


class Pretraining(Figures):
    """Clusters that the student was trained on."""

    sizes: list[Count]


class Results(Document):
    """`results.json`."""

    schema_: Version = Field(alias="schema")
    student: Student
    teacher: Sized | None
    baseline: Sized | None
    gain: Gain | None
    training: Training | None = None
    pretraining: Pretraining | None = None
    variants: dict[str, Variant] | None = None
    ensemble: Ensemble | None = None
    exits: Exits | None = None
    largest_class: LargestClass | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        student, before = self.student, self.pretraining
        if before is not None and before.nmi is not None and student.nmi is None:
            raise ValueError("student: has no nmi, and pretraining has one")
        for role, others in (("teacher", self.teacher), ("baseline", self.baseline)):
            shares = others and others.per_class
            if student.per_class and shares and len(student.per_class) != len(shares):
                raise ValueError(f"{role}.per_class: is not as long as the student's")
        if student.single_class is not None and student.single_class >= MOST_CLASSES:
            raise ValueError("student.single_class: is no class number")
        return self
