"""Schemas of the documents in a run folder and of benchmarks: the keys that are read, with their kinds.

Unknown keys are of a newer version and stay. A key that some reader indexes is required here, and one that it
looks up with a default is optional: so no reader has to expect damage.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from annotated_types import Len
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

VERSION_ERROR = "version"
"""Type of the error of a schema that is not ours, or newer."""
NEWEST = 1
"""Version of each schema that is understood here."""
MOST_CLASSES = 1_000_000
MOST_CHANNELS = 1024

Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Share = Annotated[float, Field(ge=-1.001, le=1.001)]
Points = Annotated[float, Field(ge=-1000, le=1000)]
Milliseconds = Annotated[float, Field(ge=0, le=1e12)]
Positive = Annotated[float, Field(gt=1e-12, le=1e12)]
Interval = Annotated[list[Positive], Len(2, 2)]
Text = Annotated[str, Field(max_length=100_000)]
Sha256 = Annotated[str, Field(max_length=200)]
FigureName = Literal[
    "top1", "balanced_top1", "knn_top1", "nmi", "cluster_accuracy", "agreement", "loss", "kl"
]  # fmt: skip
_PICTURE = r"^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]*$"
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


def _inside(name: str) -> str:
    if not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError("a file of the manifest lies outside of the run folder")
    return name


FileName = Annotated[str, Field(max_length=1000), AfterValidator(_inside)]


class Figures(Document):
    """Figures of a network on a split."""

    top1: Share | None = None
    balanced_top1: Share | None = None
    knn_top1: Share | None = None
    nmi: Share | None = None
    cluster_accuracy: Share | None = None
    agreement: Share | None = None
    loss: Number | None = None
    kl: Number | None = None
    n: Count | None = None
    decides: FigureName | None = None

    @model_validator(mode="after")
    def _has_what_decides(self) -> Self:
        if self.decides is not None and getattr(self, self.decides) is None:
            raise ValueError(f"decides: names {self.decides}, which is not among the figures")
        return self


class Scores(Figures):
    """Figures of a network and its sizes."""

    params: Count | None = None
    macs: Count | None = None
    bytes: Count | None = None
    file: Text | None = None
    per_class: Annotated[list[Share | None], Len(0, MOST_CLASSES)] | None = None
    single_class: Count | None = None


class Sized(Scores):
    """Figures of a network whose sizes are known."""

    params: Count
    macs: Count


class FittedOn(Document):
    """Images that a temperature or a threshold was fitted on."""

    split: Text
    n: Count


class Calibration(Document):
    """How far confidence and accuracy differ."""

    temperature: Positive | None
    fitted_on: FittedOn | None
    ece: Share
    ece_calibrated: Share | None


class Operation(Document):
    """Figures of two classes at a threshold."""

    threshold: Number
    recall: Share
    false_positive_rate: Share
    precision: Share | None


class TwoClasses(Document):
    """Curves' areas and thresholds of two classes."""

    positive: Literal[0, 1]
    at_half: Operation
    threshold: Operation | None


class Student(Sized):
    """The student's figures."""

    top1: Share | None
    calibration: Calibration | None = None
    two_classes: TwoClasses | None = None


class Verdict(Document):
    """Judgement of a derived file."""

    sentence: Text
    told: Text | None = None


class Tuned(Document):
    """Outcome of the training for int8."""

    sentence: Text
    kept: bool = False


class Variant(Scores):
    """A derived file, such as int8."""

    file: Text
    verdict: Verdict
    qat: Tuned | None = None


class Ensemble(Scores):
    """The ensemble and its file."""

    sentence: Text


class Exit(Scores):
    """One early exit."""

    name: Text
    file: Text
    sentence: Text


class Exits(Document):
    """The file of early exits."""

    file: Text
    exits: list[Exit] = []


class Cause(Document):
    """Most likely cause of a gain that is not shown."""

    sentence: Text
    advice: Text


class Gain(Document):
    """Student against baseline."""

    figure: FigureName = "top1"
    points: Points
    ci95: Annotated[list[Points], Len(2, 2)]
    verdict: Literal["better", "worse", "no difference shown"]
    cause: Cause | None = None


class LargestClass(Document):
    """Figures of the answer that is always the largest class."""

    class_: Annotated[Count, Field(alias="class", lt=MOST_CLASSES)]
    largest_in: Literal["train", "test"]
    top1: Share
    balanced_top1: Share
    student_ahead: Gain | None


class Training(Document):
    """Course of the student's training."""

    candidate: Text = "student"
    candidates: dict[str, Figures] | None = None
    best: Figures | None = None

    @model_validator(mode="after")
    def _scored_alike(self) -> Self:
        scores = list((self.candidates or {}).values())
        if scores:
            known = [key for key in FigureName.__args__ if getattr(scores[0], key) is not None]  # type: ignore[attr-defined]
            own = [scores[0].decides] if scores[0].decides else known
            for key in own[:1] if len(scores) < 2 else own:
                if any(getattr(score, key) is None for score in scores):
                    raise ValueError(f"candidates: not all of them have the figure {key}")
        return self


class Pretraining(Figures):
    """Clusters that the student was trained on."""

    sizes: list[Count]


class Results(Document):
    """`results.json`."""

    schema_: Version = Field(alias="schema")
    student: Student
    teacher: Sized | None
    baseline: Sized | None
    gain: Gain | None
    training: Training | None = None
    pretraining: Pretraining | None = None
    variants: dict[str, Variant] | None = None
    ensemble: Ensemble | None = None
    exits: Exits | None = None
    largest_class: LargestClass | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        student, before = self.student, self.pretraining
        if before is not None and before.nmi is not None and student.nmi is None:
            raise ValueError("student: has no nmi, and pretraining has one")
        classes, others = student.per_class, self.teacher and self.teacher.per_class
        if classes and others and len(classes) != len(others):
            raise ValueError("teacher.per_class: is not as long as the student's")
        if student.single_class is not None and student.single_class >= MOST_CLASSES:
            raise ValueError("student.single_class: is no class number")
        return self


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


class Licensed(Document):
    """A network with the source of its weights."""

    model: Text
    weights: Text | None = None
    sha256: Sha256 | None = None
    license: Text | None = None


class GeneratedImages(Document):
    """Generated images beside the data."""

    name: Text
    sha256: Sha256
    counts: dict[str, Count] = {}


class DataEntry(Document):
    """The data set of a run."""

    name: Text
    listing_sha256: Sha256 | None = None
    counts: dict[str, Count] = {}
    license: Text | None = None
    warnings: list[Text] = []
    extra: GeneratedImages | None = None
    test_split: Text = ""


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
    student: Licensed | None = None
    versions: dict[str, Text] | None = None
    command: Text | None = None


class GateEntry(Document):
    """One ship gate."""

    gate: Text
    passed: bool
    figure: bool | int | float | Text | None
    limit: bool | int | float | Text | None
    detail: Text


class Gates(Document):
    """`gates.json`."""

    schema_: Version = Field(alias="schema")
    gates: list[GateEntry]


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


class Artefact(Document):
    """A timed file."""

    sha256: Sha256
    bytes: Count | None = None
    params: Count | None = None
    macs: Count | None = None


class Latency(Document):
    """Times of a call in ms."""

    p50: Positive
    ci95: Interval | None
    p90: Milliseconds | None


class Against(Document):
    """A result against that of the baseline."""

    name: Text
    ratio: Positive
    ci95: Interval | None
    verdict: Literal["faster", "slower", "no difference"]


class Memory(Document):
    """Memory in MB."""

    peak: Milliseconds


class BenchResult(Document):
    """One timed file in one runtime."""

    artefact: Text
    runtime: Text
    precision: Text
    threads: Count
    batch: Count
    latency_ms: Latency
    vs_baseline: Against | None
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
            if result.vs_baseline is not None and result.vs_baseline.name not in self.artefacts:
                raise ValueError(f"artefacts: lacks the baseline {result.vs_baseline.name[:80]!r}")
        return self


class InputObject(BaseModel):
    """`input` of `config.json`; an unknown key would change how images are read, so it is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    height: Annotated[int, Field(ge=1, le=16384)]
    width: Annotated[int, Field(ge=1, le=16384)]
    mean: Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Len(1, MOST_CHANNELS)]
    std: Annotated[list[Annotated[float, Field(gt=1e-12, le=1e6)]], Len(1, MOST_CHANNELS)]
    resize: Annotated[int, Field(ge=1, le=65536)] | None = None
    crop: Annotated[int, Field(ge=1, le=65536)] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Literal["crop", "whole", "pad"] = "crop"
    border: Annotated[int, Field(ge=0, le=255)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std: expected one number for each of {self.channels} channels")
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


class LogLine(Document):
    """A line of `log.jsonl`."""

    schema_: Version = Field(alias="schema")
    phase: Annotated[str, Field(min_length=1, max_length=1000)]
    epoch: Annotated[int, Field(ge=0, le=10**9)]
    seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None
    losses: dict[str, Number | None] | None = None
    held_out: Figures | None = None


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


class Network(Document):
    """A network of a recipe."""

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    weights: Text | None = None


class MethodEntry(Document):
    """A section with a name."""

    name: Text


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


Labels = TypeAdapter(Annotated[list[Text], Len(0, MOST_CLASSES)])
"""`labels.json`."""


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


class QatFacts(Document):
    """`checkpoints/quantised.json`: facts about the training for int8."""

    epochs: Count
    lr: Number
    epoch: Count


class GraphImages(Document):
    """Metadata of a file that takes images as they are decoded."""

    typical: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Len(2, 2)]
