"""Schema of `bench.json` and of what `bench --out` writes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from kdcompress.schemas.document import (
    Count,
    Document,
    Interval,
    Milliseconds,
    Number,
    Positive,
    Sha256,
    Text,
    Version,
)


class Target(Document):
    """The place of the measured machine."""

    kind: Text
    host: Text | None = None


class Environment(Document):
    """The measured machine."""

    cpu: Text | None
    granted_cores: Count | None
    logical_cores: Count | None
    runtimes: dict[str, Text]
    date_utc: Text | None = None


class BenchProtocol(Document):
    """The rounds of a benchmark."""

    rounds: Count
    baseline: Text | None = None


class Accuracy(Document):
    """Figures of a timed file on labelled images."""

    top1: Number | None = None


class Artefact(Document):
    """A timed file."""

    sha256: Sha256
    file: Text = ""
    precision: Text = ""
    accuracy: Accuracy | None = None
    bytes: Count | None = None
    params: Count | None = None
    macs: Count | None = None


class Latency(Document):
    """Times of a call in ms."""

    p50: Positive
    ci95: Interval | None
    p90: Milliseconds | None
    p99: Milliseconds | None = None
    min: Milliseconds | None = None


class Against(Document):
    """A result against that of the baseline."""

    name: Text
    runtime: Text = ""
    precision: Text = ""
    ratio: Positive
    ci95: Interval | None
    verdict: Literal["faster", "slower", "no difference"]


class Memory(Document):
    """Memory in MB."""

    peak: Milliseconds


class Agreement(Document):
    """Outputs of a result against those of the same network."""

    top1_agreement: Number


class BenchResult(Document):
    """One timed file in one runtime."""

    artefact: Text
    runtime: Text
    precision: Text
    threads: Count
    batch: Count
    latency_ms: Latency
    vs_baseline: Against | None
    parity: Agreement | None = None
    images: Text | None = None
    throughput_img_s: Number | None = None
    load_ms: Milliseconds
    first_ms: Milliseconds
    rss_mb: Memory
    round_medians_ms: list[Milliseconds] = []
    warnings: list[Text]


class BenchFailure(Document):
    """A file that could not be timed."""

    artefact: Text
    runtime: Text
    precision: Text = ""
    threads: Count = 1
    batch: Count = 1
    control: bool = False
    stage: Text
    type: Text
    message: Text


class Control(Document):
    """Two copies of one file against each other."""

    artefact: Text
    ratio: Positive
    ci95: Interval | None


class Bench(Document):
    """`bench.json`, and what `bench --out` wrote."""

    schema_: Version = Field(alias="schema")
    target: Target | None = None
    env: Environment
    protocol: BenchProtocol
    artefacts: dict[str, Artefact]
    results: list[BenchResult]
    aa: Control | None
    quality: Text
    warnings: list[Text]
    failures: list[BenchFailure]

    @model_validator(mode="after")
    def _names_its_artefacts(self) -> Self:
        for result in self.results:
            if result.artefact not in self.artefacts:
                raise ValueError(f"artefacts: lacks {result.artefact[:80]!r}, which has a result")
            if result.vs_baseline is not None and result.vs_baseline.name not in self.artefacts:
                raise ValueError(f"artefacts: lacks the baseline {result.vs_baseline.name[:80]!r}")
        return self
