"""Schemas of the messages of another machine, which is not trusted: each message is checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn, Self

from annotated_types import Len
from pydantic import Field, model_validator

from kdcompress.bench.stats import MOST_ROUNDS
from kdcompress.documents import MOST_BYTES, check_document, parse_json
from kdcompress.errors import TargetUnreachable
from kdcompress.plain_text import printable
from kdcompress.schemas.bench import Artefact, Bench, BenchProtocol, Environment
from kdcompress.schemas.document import Count, Document, Milliseconds, Number, Text

MOST_LINE_BYTES = MOST_BYTES
"""Of one message; the longest holds the duration of every timed call."""
TOLD = r"^(checking|loading|comparing|warming|timing)( |$)"
"""First words of what a measurement tells of its progress; each is a bar on the terminal."""
MOST_CELLS = 2000
"""Largest number of cells of a benchmark; each is a process there."""
MOST_CALLS = 10_000_000
"""Largest number of timed calls of a benchmark; each takes seven bytes and more of a message."""
_SHOWN = 60

Line = Annotated[str, Field(max_length=20_000)]


class Message(Document):
    """A line of the agent."""

    error: Line | None = None
    message: Line = ""
    ended: Annotated[int, Field(ge=-64, le=255)] | None = None
    words: Line = ""
    tell: tuple[Count, Count, Annotated[str, Field(pattern=TOLD, max_length=500)]] | None = None


class MachineFacts(Environment):
    """Facts about the machine."""

    granted_cores: Annotated[int, Field(ge=1, le=4096)]
    governor: Line | None
    temp_c: Number | None
    freq_mhz: Annotated[list[Number], Len(2, 2)] | None
    on_battery: bool | None


class Problem(Document):
    """A reason why the machine cannot run the benchmark."""

    kind: Literal["package", "opset", "ir", "broken"]


class Preflight(Document):
    """The state of the machine before anything is sent."""

    free: Count
    facts: MachineFacts
    warnings: list[Line]
    problems: list[Problem]


class Failure(Document):
    """A cell that could not be timed."""

    cell: Count
    stage: Line
    type: Line
    message: Annotated[str, Field(max_length=100_000)]


class Calls(Document):
    """The calls of one round."""

    samples_ns: Annotated[list[Annotated[int, Field(ge=0, lt=2**62)]], Len(1)]
    wall_s: Milliseconds
    cpu_s: Milliseconds
    involuntary_switches: Count
    steal_s: Number | None
    peak_mb: Milliseconds


class LoadedFile(Document):
    """A file that was loaded there."""

    provider: Line
    shape: Annotated[list[Count], Len(1, 8)]
    images: Line
    import_ms: Milliseconds
    load_ms: Milliseconds
    first_ms: Milliseconds
    base_mb: Milliseconds


class Parity(Document):
    """Its outputs against those of the same network."""

    to: Line
    n: Count
    top1_agreement: Number
    max_err_over_spread: Number
    varies: bool
    within: bool


class CellResult(Document):
    """One timed file."""

    loaded: LoadedFile
    parity: Parity | None
    blocks: Annotated[list[Calls], Len(1, MOST_ROUNDS)]


class Raw(Document):
    """The measurements."""

    cells: Annotated[list[CellResult | None], Len(0, MOST_CELLS)]
    failures: list[Failure]

    @model_validator(mode="after")
    def _has_few_calls(self) -> Self:
        calls = sum(len(block.samples_ns) for cell in self.cells if cell for block in cell.blocks)
        if calls > MOST_CALLS:
            raise ValueError(f"{calls:,} calls, and at most {MOST_CALLS:,} fit into a message")
        return self


class PackedArtefact(Artefact):
    """A file that was packed."""

    file: Text
    precision: Text


class PackedCell(Document):
    """A cell of the plan that was packed."""

    artefact: Text
    runtime: Text
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["all"]
    batch: Annotated[int, Field(ge=1, lt=2**31)]
    control: bool


class PackedPlan(Document):
    """The cells that were packed."""

    cells: Annotated[list[PackedCell], Len(1, MOST_CELLS)]


class Tool(Document):
    """The program that packed."""

    version: Text


class Job(Document):
    """A benchmark as it was packed."""

    tool: Tool
    artefacts: dict[str, PackedArtefact]
    plan: PackedPlan
    baseline: Text | None
    protocol: BenchProtocol
    warnings: list[Text]


class PackedResult(Document):
    """The measurements that a pack brings back, with the job."""

    job: Job
    raw: Raw
    before: MachineFacts
    after: MachineFacts
    warnings: list[Text]


class Result(Document):
    """The end of a benchmark."""

    raw: Raw
    after: MachineFacts


def read_message(line: bytes, host: str) -> dict[str, Any]:
    """Reads a line of the agent; control characters in its texts become escapes.

    Args:
        line: At most `MOST_LINE_BYTES`.
        host: Name of the machine.

    Raises:
        TargetUnreachable: It is no message of ours.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        refuse(host, f"{line[:_SHOWN]!r}")
    message = parse_json(text, _source(host), failure=TargetUnreachable)
    message = _printable_tree(message)
    plain = {**message, "tell": tuple(message["tell"])} if _has_list(message, "tell") else message
    check_document(plain, _source(host), Message, failure=TargetUnreachable)
    return dict(message)


def check_answer(answer: Any, host: str, schema: type[Document]) -> dict[str, Any]:
    """Checks a part of a message; raises as `read_message`.

    Args:
        answer: The part.
        host: Name of the machine.
        schema: Its schema.
    """
    check_document(answer, _source(host), schema, failure=TargetUnreachable)
    return dict(answer)


def check_benchmark(document: dict[str, Any], host: str) -> None:
    """Checks a document that was made from an answer; raises as `read_message`."""
    check_document(document, _source(host), Bench, failure=TargetUnreachable)


def refuse(host: str, what: str) -> NoReturn:
    """Raises the error of an answer that is not ours."""
    raise TargetUnreachable(f"{host}: what came back is no answer of ours: {printable(what)}") from None


def _source(host: str) -> str:
    return f"{host}: what came back is no answer of ours, or"


def _has_list(message: Any, key: str) -> bool:
    return isinstance(message, dict) and isinstance(message.get(key), list)


def _printable_tree(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable_tree(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_printable_tree(inner) for inner in value] if _has_text(value) else value
    return value


def _has_text(values: list[Any]) -> bool:
    return any(not isinstance(value, int | float) for value in values)
