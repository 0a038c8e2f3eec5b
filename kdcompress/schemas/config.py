"""Schemas of `config.json`, `labels.json`, and the metadata of an exported graph."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from kdcompress.schemas.document import MOST_CLASSES, Count, Document, Positive, Text, Version

MOST_CHANNELS = 1024
MOST_NUMBERS = 3 * 4096**2
"""Largest number of values of an image, channels × height × width: that of the largest images that a recipe
allows, 200 MB in float32."""
_MOST_PIXELS = 16384


class InputObject(BaseModel):
    """`input` of `config.json`; an unknown key would change how images are read, so it is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    height: Annotated[int, Field(ge=1, le=_MOST_PIXELS)]
    width: Annotated[int, Field(ge=1, le=_MOST_PIXELS)]
    mean: Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Len(1, MOST_CHANNELS)]
    std: Annotated[list[Annotated[float, Field(gt=1e-12, le=1e6)]], Len(1, MOST_CHANNELS)]
    resize: Annotated[int, Field(ge=1, le=_MOST_PIXELS)] | None = None
    crop: Annotated[int, Field(ge=1, le=_MOST_PIXELS)] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Literal["crop", "whole", "pad"] = "crop"
    border: Annotated[int, Field(ge=0, le=255)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std: expected one number for each of {self.channels} channels")
        if self.channels * self.height * self.width > MOST_NUMBERS:
            size = f"{self.channels}×{self.height}×{self.width}"
            raise ValueError(f"channels, height and width: {size} is more than {MOST_NUMBERS:,} numbers")
        if (self.border is not None) != (self.fit == "pad"):
            raise ValueError(f"border: {self.border} with fit {self.fit}; pad has one, and nothing else")
        return self


class Builder(Document):
    """The network that the weights fit."""

    builder: Annotated[str, Field(min_length=1, max_length=1000)]


class WeightsConfig(Document):
    """The part of `config.json` that weights need."""

    schema_: Version = Field(alias="schema")
    label_names: Annotated[list[Text], Len(0, MOST_CLASSES)] = []
    input: InputObject


class Config(WeightsConfig):
    """`config.json`."""

    kdcompress: Builder
    num_classes: Annotated[int, Field(ge=0, le=MOST_CLASSES)]
    label_names: Annotated[list[Text], Len(0, MOST_CLASSES)]
    task: Text | None = None
    num_features: Count | None = None
    temperature: Positive | None = None


Labels = TypeAdapter(Annotated[list[Text], Len(0, MOST_CLASSES)])
"""`labels.json`."""


class GraphImages(Document):
    """Metadata of a file that takes images as they are decoded."""

    typical: Annotated[list[Annotated[int, Field(ge=1, le=_MOST_PIXELS)]], Len(2, 2)]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if 3 * self.typical[0] * self.typical[1] > MOST_NUMBERS:
            raise ValueError(f"typical: {self.typical} is more than {MOST_NUMBERS // 3:,} pixels")
        return self
