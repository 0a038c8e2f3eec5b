"""Schema of `grid.json`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdcompress.schemas.document import Document, Text, Version


class GridCell(Document):
    """One run of a grid."""

    folder: Text
    method: Text
    student: Text


class Grid(Document):
    """`grid.json`."""

    schema_: Version = Field(alias="schema")
    threads: Annotated[int, Field(ge=1, le=4096)]
    cells: list[GridCell]
