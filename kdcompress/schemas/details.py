"""Schema of `details.json`: curves, confusions and mistakes."""

from __future__ import annotations

from typing import Annotated, Self

from annotated_types import Len
from pydantic import Field, model_validator

from kdcompress.schemas.document import Count, Document, Number, Share, Version

_PICTURE = r"^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]*$"
Point = Annotated[list[Number], Len(2, 2)]
Curve = Annotated[list[Point], Len(0, 100_000)]


class Bin(Document):
    """Images of similar confidence."""

    confidence: Share
    top1: Share


class CalibrationCurves(Document):
    """The calibration as trained and at the fitted temperature."""

    bins: list[Bin]
    bins_calibrated: list[Bin]


class TwoClassCurves(Document):
    """Curves of two classes."""

    roc: Curve
    precision_recall: Curve


class Confusion(Document):
    """One frequent mistake."""

    label: Count
    given: Count
    n: Count


class Mistake(Document):
    """A test image that the student gets wrong; the picture is part of the document."""

    label: Count
    given: Count
    probability: Share
    image: Annotated[str, Field(pattern=_PICTURE, max_length=10**7)]


class Details(Document):
    """`details.json`."""

    schema_: Version = Field(alias="schema")
    class_counts: list[Count] | None = None
    confusion: list[list[Count]] | None = None
    confusions: list[Confusion] | None = None
    calibration: CalibrationCurves | None = None
    two_classes: TwoClassCurves | None = None
    mistakes: list[Mistake] | None = None

    @model_validator(mode="after")
    def _square(self) -> Self:
        rows = self.confusion or []
        if any(len(row) != len(rows) for row in rows):
            raise ValueError("confusion: is no square")
        return self
