"""Schemas of the other documents of a run: manifest, gates, log, and the training for int8."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from kdcompress.schemas.document import Count, Document, Number, Sha256, Text, Version
from kdcompress.schemas.figures import Figures


def _inside(name: str) -> str:
    if not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError("a file of the manifest lies outside of the run folder")
    return name


Seconds = Annotated[float, Field(ge=0, le=1e12)]
FileName = Annotated[str, Field(max_length=1000), AfterValidator(_inside)]


class TrainingPosition(Document):
    """The counters of a training in its checkpoint."""

    phase: Count
    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    phase_step: Count = 0
    seconds: Seconds = 0.0
    epoch_seconds: Seconds = 0.0


class CheckpointFacts(Document):
    """The plain values of a training's checkpoint; PyTorch checks its tensors."""

    position: TrainingPosition
    log_sizes: dict[Text, Count]


class Licensed(Document):
    """A network with the source of its weights."""

    model: Text
    weights: Text | None = None
    sha256: Sha256 | None = None
    license: Text | None = None


class Started(Licensed):
    """The student with the weights that it started from."""

    weights: Text


class GeneratedImages(Document):
    """Generated images beside the data."""

    name: Text
    sha256: Sha256
    counts: dict[str, Count] = {}
    license: Text | None = None


class DataEntry(Document):
    """The data set of a run."""

    name: Text
    listing_sha256: Sha256 | None = None
    counts: dict[str, Count] = {}
    license: Text | None = None
    warnings: list[Text] = []
    extra: GeneratedImages | None = None
    test_split: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$")] = "test"


class FileEntry(Document):
    """Hash and size of a file."""

    sha256: Sha256
    bytes: Count


class Manifest(Document):
    """`manifest.json`."""

    schema_: Version = Field(alias="schema")
    finished: bool = True
    files: dict[FileName, FileEntry] = {}
    data: DataEntry | None = None
    teacher: Licensed | None = None
    student: Started | None = None
    peers: list[Started] = []
    versions: dict[str, Text] | None = None
    command: Text | None = None


class GateEntry(Document):
    """One ship gate."""

    gate: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]
    passed: bool
    figure: bool | int | float | Text | None
    limit: bool | int | float | Text | None
    detail: Text


class Gates(Document):
    """`gates.json`."""

    schema_: Version = Field(alias="schema")
    gates: list[GateEntry]


class LogLine(Document):
    """A line of `log.jsonl`."""

    schema_: Version = Field(alias="schema")
    phase: Annotated[str, Field(min_length=1, max_length=1000)]
    epoch: Annotated[int, Field(ge=0, le=10**9)]
    seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None
    losses: dict[str, Number | None] | None = None
    held_out: Figures | None = None


class QatFacts(Document):
    """`checkpoints/quantised.json`: facts about the training for int8."""

    epochs: Count
    lr: Number
    epoch: Count
