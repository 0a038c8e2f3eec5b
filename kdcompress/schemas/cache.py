"""Schemas of the notes in the cache."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Len
from pydantic import Field

from kdcompress.schemas.config import InputObject
from kdcompress.schemas.document import Count, Document, Number, Sha256, Text
from kdcompress.schemas.figures import Figures


class TeacherNote(Document):
    """Note beside the tensors of a stored result."""

    schema_: str = Field(alias="schema")
    key: Text
    sha256: Sha256
    facts_sha256: Sha256 | None = None


class CheckResult(Document):
    """Cached result of a check of image files: files with reasons, or pairs of equal files."""

    schema_: str = Field(alias="schema")
    sha256: Sha256
    result: dict[Text, Text] | list[Annotated[list[Text], Len(4, 4)]]


class StartNote(Document):
    """Facts about the network that a stored teacher starts from."""

    num_classes: Count
    channels: Count
    head_replaced: bool
    own_weights: bool
    sha256: Sha256 | None
    license: Text | None


class TeacherRecordNote(TeacherNote):
    """Note beside the classifier of a teacher whose outputs are kept."""

    model: Text
    task: Text
    num_classes: Count
    features: Count | None
    size: Annotated[list[Count], Len(2, 2)] | None
    input: InputObject
    fingerprint: Text
    normalisation: list[list[Number]]
    classifier: Text
    trained: bool
    start: StartNote
    held_out: Figures
