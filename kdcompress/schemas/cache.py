"""Schemas of the notes in the cache."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Len
from pydantic import Field

from kdcompress.schemas.document import Document, Sha256, Text


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
