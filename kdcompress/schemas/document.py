"""Defines what all documents have in common: kinds of values, the version, and that unknown keys stay."""

from __future__ import annotations

import re
from typing import Annotated

from annotated_types import Len
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

VERSION_ERROR = "version"
"""Type of the error of a schema that is not ours, or newer."""
NEWEST = 1
"""Version of each schema that is understood here."""
MOST_CLASSES = 1_000_000

Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Share = Annotated[float, Field(ge=-1e-9, le=1 + 1e-9)]
Points = Annotated[float, Field(ge=-1000, le=1000)]
Milliseconds = Annotated[float, Field(ge=0, le=1e12)]
Positive = Annotated[float, Field(gt=1e-12, le=1e12)]
Interval = Annotated[list[Positive], Len(2, 2)]
Text = Annotated[str, Field(max_length=100_000)]
Sha256 = Annotated[str, Field(max_length=200)]

_VERSION = re.compile(r"kdcompress\.[a-z-]+/(\d{1,9})")


class Document(BaseModel):
    """An object whose unknown keys are kept; no value is coerced, and numbers are finite."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


def _known_version(text: str) -> str:
    match = _VERSION.fullmatch(text)
    if match is None:
        what = f"unknown schema {text[:80]!r}; it is no file of kdcompress"
        raise PydanticCustomError(VERSION_ERROR, "{what}", {"what": what})
    if int(match[1]) > NEWEST:
        what = f"schema {text!r} is newer than this kdcompress; update it"
        raise PydanticCustomError(VERSION_ERROR, "{what}", {"what": what})
    return text


Version = Annotated[str, AfterValidator(_known_version)]
