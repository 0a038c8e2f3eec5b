"""Schema of `recipe.yaml` of a run, as far as pages read it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from kdcompress.schemas.document import Document, Text

_MODEL = r"^(?:python:[\w.]+:[\w.]+|[A-Za-z0-9_-]+/[A-Za-z0-9_.:/@+-]+)$"
"""`FAMILY/NAME` or `python:MODULE:FUNCTION`: the pages put it into code."""


class Network(Document):
    """A network of a recipe."""

    model: Annotated[str, Field(pattern=_MODEL, max_length=1000)]
    weights: Text | None = None


class MethodEntry(Document):
    """A section with a name."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]


class ExtraEntry(Document):
    """Generated images of a recipe."""

    root: Text


class DataRecipe(Document):
    """The data of a recipe."""

    dataset: Text
    extra: ExtraEntry | None = None


class PseudoLabels(Document):
    """The pre-training of a recipe."""

    method: MethodEntry
    clusters: Any
    epochs: Any
    whiten: Any
    starts: Any
    student: Any


class RecordedRecipe(Document):
    """`recipe.yaml` of a run, as far as the pages read it."""

    name: Text
    student: Network
    teacher: Network | None = None
    peers: list[Network] = []
    method: MethodEntry
    data: DataRecipe
    train: dict[str, Any]
    optim: MethodEntry
    pseudo_labels: PseudoLabels | None = None
