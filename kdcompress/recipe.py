"""The recipe: its schema, where it is read from, and every problem of it at once.

A recipe is YAML. `load_recipe` reads a shipped name or a file, applies `--set` overrides and checks all of
it; what it returns is frozen and complete (`to_yaml` writes every value a run depends on).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from kdcompress import discovery
from kdcompress.config import Section
from kdcompress.cores import MAX_THREADS
from kdcompress.errors import RecipeError, UserError, suggest
from kdcompress.listing import shipped_recipes
from kdcompress.problems import describe, keys
from kdcompress.strict_yaml import parse_value, read_yaml, to_yaml

if TYPE_CHECKING:
    from kdcompress.methods.base import Method


class ExtraSection(Section):
    """`data.extra:` generated images beside the real ones, for the student's training alone."""

    root: str
    """A folder (a folder per class, or images alone, without labels) or an .npz file of `images` (uint8) and,
    if they have them, `labels`. A bare text in place of the section means this."""
    share: float = Field(0.5, gt=0, lt=1)
    """Of each batch. An epoch stays one pass through the real images, so it takes 1 / (1 - share) times the
    steps; a baseline is given as many more epochs."""
    keep: float = Field(1.0, gt=0, le=1)
    """Share of each class that is kept: those whose label costs the teacher the least cross-entropy, seen
    without augmentation. For an image without a label, the class that the teacher gives it."""
    relabel: bool = False
    """The class that the teacher gives an image becomes its label, once the worst are left out."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"root": value} if isinstance(value, str) else value


class DataSection(Section):
    """`data:` which images, cut and batched how."""

    dataset: str = "imagefolder"
    """One of `kdcompress datasets`."""
    root: str | None = None
    """Folder of the data; `--data` goes before it. None: the data set's own places (bundled, cache,
    system)."""
    image_size: int | None = Field(None, ge=8, le=4096)
    """Side in pixels of the training images. None: the data set's own size (224 for an image folder)."""
    batch_size: int = Field(64, ge=2)
    """Global: over all processes together."""
    held_out: float = Field(0.1, ge=0)
    """Share (below 1) or number (1 and above) of the training images on which choices are made. 0: train on
    all of them and ship the last epoch."""
    labels: Literal["all", "none"] | Annotated[int, Field(ge=1)] = "all"
    """all: as they come. none: the images have none, or they are not looked at. A number: so many training
    images keep theirs, of every class its share; which ones, no seed of a run moves."""
    labelled_share: float = Field(0.5, gt=0, lt=1)
    """Least share of each batch that has labels, where only some images do and the others teach too."""
    workers: int | None = Field(None, ge=0)
    """Processes that decode images; None: one per granted core. Small data sets live in memory and use
    none."""
    augment: Literal[
        "auto", "none", "crop", "crop_flip", "resized_crop_flip", "weak", "strong", "moco_v2", "simsiam"
    ] = "auto"
    """What training images go through; auto: what is usual for the data set."""
    max_broken: float = Field(0.01, ge=0, le=1)
    """Share of image files that may be unreadable before it is an error; they are named and counted."""
    extra: ExtraSection | None = None
    """Generated images that the student also learns from."""

    @field_validator("held_out")
    @classmethod
    def _share_or_number(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("expected a share below 1 or a whole number of images")
        return value


class InputSection(Section):
    """`teacher.input:` what a teacher from elsewhere expects of its images."""

    mean: list[float] | None = Field(None, min_length=1)
    """Per channel, of images in [0, 1]. None: what its weights say, else the data set's."""
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    size: int | None = Field(None, ge=8, le=4096)
    """Side in pixels the images are resized to for this network. None: what its weights say."""


class NetworkSection(Section):
    """`student:` and each of `peers:` a network and where its weights start."""

    model: str
    """`FAMILY/NAME`, or `python:package.module:function` with --allow-code."""
    weights: str | None = None
    """An enum name of the family (IMAGENET1K_V2), a .safetensors/.pt/.pth file, or a run folder. None:
    random."""
    taps: dict[str, str] | None = None
    """{stage1: module.path, ..., classifier: module.path}. None: found by a dry run."""


class TeacherSection(NetworkSection):
    """`teacher:` the frozen network that teaches."""

    train: Literal["auto", "always", "never"] = "auto"
    """auto: when no weights are given or their classes differ from the data's; a difference is an error with
    never."""
    epochs: int = Field(10, ge=1)
    """Of its training or fine-tuning, when there is one."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of its training; its own, so that `--seeds` repeats the student and keeps the teacher."""
    lr: float | None = Field(None, gt=0)
    """Of its training; None: `optim.lr`, a tenth of it when it is fine-tuned from weights."""
    min_top1: float | None = Field(None, ge=0, le=1)
    """Held-out top-1 below which the run stops (0 to 1). None: three times chance, at most halfway from
    chance to 1."""
    input: InputSection = InputSection()


class TrainSection(Section):
    """`train:` the loop."""

    epochs: int = Field(ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Ends every training of the run (the teacher's too) after so many optimiser steps; for trials."""
    threads: int | None = Field(None, ge=1, le=MAX_THREADS)
    """Of one process. None: the cores granted to it. Part of the run: results differ in bits between
    counts."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the device computes it natively, fp16 on older GPUs, else fp32."""
    compile: bool = False
    """torch.compile student and teacher; only for methods that read logits alone."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an averaged copy of the student, which then is a candidate to ship."""
    clip_norm: float | None = Field(None, gt=0)
    """Global gradient norm."""
    accumulate: int = Field(1, ge=1)
    """Batches per optimiser step."""
    freeze_bn: bool = False
    """Keep the batch-norm statistics as the weights brought them."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | list[float] = "none"
    """balanced: inversely to a class's frequency; a list: one per class; scaled to a mean of 1 over the
    images."""
    ship: str = Field("best", pattern=r"^[a-z0-9_]+$")
    """The epoch and candidate with the best held-out top-1, or the last epoch's student."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """A checkpoint is also written within an epoch, this often."""
    tensorboard: bool = False
    """Also draw the log under `tensorboard/` of the run folder (needs the extra of that name)."""


class OptimSection(Section):
    """`optim:` one optimiser for whatever is trained."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["constant", "cosine", "multistep", "one_cycle"] = "cosine"
    milestones: list[Annotated[float, Field(ge=0)]] = Field([0.625, 0.75, 0.875])
    """Of multistep: fractions of the run (below 1) or epochs (1 and above); the rate is divided by ten at
    each."""
    warmup: float = Field(0.0, ge=0)
    """Linear, from nothing: a fraction of the run (below 1) or epochs (1 and above)."""


class Int8Section(Section):
    """`export.int8:` how `student.int8.onnx` is made; a bare true in its place means its defaults."""

    images: int = Field(128, ge=1)
    """Of the training split, to calibrate with: not augmented, of every class as many."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides which."""
    target: Literal["auto", "x86", "x86-novnni", "arm"] = "auto"
    """Whose kernels it is made for; auto: this machine's."""
    ranges: Literal["minmax", "percentile"] = "minmax"
    """Of the activations: from the least to the greatest value seen, or cut at the 99.999th percentile."""
    rescue: int = Field(0, ge=0)
    """So many of the layers that lose most stay in float."""
    max_drop: float = Field(3.0, ge=0, le=100)
    """Points of test top-1 that it may lose against fp32; beyond, the run fails and the file is set aside."""
    qat_epochs: int = Field(0, ge=0)
    """So many epochs the finished student goes on learning, from the same teacher by the same method, while
    its passes are rounded as the file's will be. The file is made of these weights unless they do worse on
    held-out images; every other file keeps the student as it was. 0: none."""
    qat_lr: float = Field(0.01, gt=0, le=1)
    """Of those epochs, as a share of optim.lr; it falls to nothing as a half cosine. With the batch-norm
    statistics fixed, steps that training took in its stride can throw a network off: 0.05 did, of ResNet-8
    after 100 steps, with and without rounding."""

    @model_validator(mode="after")
    def _tuned_as_made(self) -> Self:
        if self.qat_epochs and self.ranges != "minmax":
            raise ValueError(f"qat_epochs tunes for ranges: minmax, and not for {self.ranges}; leave one out")
        return self


def _int8_spelt_out(export: Any) -> Any:
    """`int8: true` is what people write; false is none."""
    if not isinstance(export, dict) or not isinstance(export.get("int8"), bool):
        return export
    return {**export, "int8": {} if export["int8"] else None}


class ExportSection(Section):
    """`export:` what ships."""

    formats: list[str] = Field(["onnx", "safetensors"], min_length=1)
    """Names of `kdcompress/deploy/formats`."""
    int8: Int8Section | None = None
    """Also make `student.int8.onnx`, and say whether it is worth having here; true or a section."""
    fp16: bool = False
    """Also make `student.fp16.onnx`, half the size."""
    embed_preprocess: Literal["normalize", "resize"] = "normalize"
    """What of the way from image to network is in the graph. normalize: `student.onnx` takes resized images
    in [0, 1]; resize: also make `student.image.onnx`, which takes them as they are decoded."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return _int8_spelt_out(value)


class BenchSection(Section):
    """`bench:` how the result is timed."""

    threads: list[Annotated[int, Field(ge=1)] | Literal["all"]] = Field([1], min_length=1)
    batch: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1)
    rounds: int = Field(21, ge=1)
    """Shuffled, interleaved; below 6 no 95 % interval exists, and from about 21 a 5 % difference is found."""


class Recipe(Section):
    """A checked recipe; what a run depends on, all of it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataSection = DataSection()
    teacher: TeacherSection | None = None
    student: NetworkSection
    peers: list[NetworkSection] = Field([])
    method: dict[str, Any]
    train: TrainSection
    optim: OptimSection
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()

    @model_validator(mode="before")
    @classmethod
    def _short_peers(cls, document: Any) -> Any:
        return _spelt_out(document) if isinstance(document, dict) else document

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that `load_recipe` reads back to an equal recipe."""
        return to_yaml(self.model_dump(mode="json"))

    def replace(self, **sections: Any) -> Self:
        """A copy with whole sections replaced."""
        return self.model_copy(update=sections)

    def lengthened(self, times: float) -> Self:
        """A copy with so many times the epochs, and with what the schedule counts in epochs moved along."""
        if times == 1:
            return self
        epochs = max(1, round(self.train.epochs * times))
        times = epochs / self.train.epochs
        optim, moved = self.optim, [m if m < 1 else m * times for m in self.optim.milestones]
        warmup = optim.warmup if optim.warmup < 1 else optim.warmup * times
        return self.replace(
            train=self.train.model_copy(update={"epochs": epochs}),
            optim=optim.model_copy(update={"milestones": moved, "warmup": warmup}),
        )


def load_recipe(name_or_file: str, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        name_or_file: A shipped name, or the path of a YAML file.
        overrides: `key.path=value`, parsed as YAML, later ones win.
        allow_code: Whether `python:package.module:function` networks may be named.

    Raises:
        RecipeError: With every problem found.
        UserError: No such recipe.
    """
    path = _find(name_or_file)
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise RecipeError(name_or_file, ["a recipe is a mapping of sections, such as 'student:', 'train:'"])
    document.setdefault("name", path.stem)
    document = _spelt_out(document)
    # A change of method throws away the other method's keys, so it comes before the new one's.
    ordered = sorted(overrides, key=lambda item: not item.startswith("method.name="))
    problems = [problem for item in ordered if (problem := _override(document, item))]
    problems += _plugin_problems(document, allow_code)
    problems += _made_from_onnx(document)
    method, more = _method(document)
    problems += more
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        own = [f"method.{key}" for key in _config_keys(document)]
        problems += describe(error, Recipe, elsewhere=[*keys(Recipe), *own])
    if problems:
        raise RecipeError(name_or_file, problems)
    return recipe.replace(method=method)


def _find(name_or_file: str) -> Path:
    recipes = shipped_recipes()
    if name_or_file in recipes:
        return recipes[name_or_file]
    path = Path(name_or_file)
    if path.is_file():
        return path
    if name_or_file and path.is_dir():
        inside = path / "recipe.yaml"
        hint = f"did you mean {str(inside)!r}?" if inside.is_file() else "expected a shipped name or a file"
        raise UserError(f"{name_or_file}: is a folder, no recipe; {hint}")
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        shipped = f"; did you mean the shipped {path.stem!r}?" if path.stem in recipes else ""
        raise UserError(f"no recipe file {name_or_file!r}{shipped}")
    raise UserError(f"unknown recipe {name_or_file!r}{suggest(name_or_file, recipes)}")


def _spelt_out(document: dict[str, Any]) -> dict[str, Any]:
    """The document with sections where a bare text stands for one, so that `--set` reaches into them."""
    # `peers: [cifar/resnet8]` is what people write; a bare name is a network without weights.
    if isinstance(document.get("peers"), list):
        peers = [{"model": peer} if isinstance(peer, str) else peer for peer in document["peers"]]
        document = {**document, "peers": peers}
    data = document.get("data")
    if isinstance(data, dict) and isinstance(data.get("extra"), str):
        document = {**document, "data": {**data, "extra": {"root": data["extra"]}}}
    if "export" in document:
        document = {**document, "export": _int8_spelt_out(document["export"])}
    return document


def _override(document: dict[str, Any], item: str) -> str | None:
    """Puts `key.path=value` into the document, or says what is wrong with it."""
    key, equals, text = item.partition("=")
    *above, last = key.split(".")
    if not equals or not last or not all(above):
        return f"--set {item}: expected key.path=value"
    value, problem = parse_value(text)
    if problem is not None:
        return f"--set {item}: {problem}"
    here: Any = document
    for depth, part in enumerate(above):
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        inner, problem = _entry(here, part, ".".join(above[:depth]))
        if problem is not None:
            return f"--set {item}: {problem}"
        here = inner
    if not isinstance(here, dict):
        _, problem = _entry(here, last, ".".join(above))
        if problem is not None:
            return f"--set {item}: {problem}"
        here[int(last)] = value
        return None
    if key == "method.name" and here.get("name") != value:
        here.clear()  # the other keys are the other method's
    here[last] = value
    return None


def _entry(here: Any, part: str, where: str) -> tuple[Any, str | None]:
    """(an entry of a section or a list, None), or (None, why there is none)."""
    if isinstance(here, dict):
        return here[part], None
    if not isinstance(here, list):
        return None, f"{where!r} holds a value, not a section"
    if not part.isdecimal() or int(part) >= len(here):
        return None, f"{where!r} is a list of {len(here)}, numbered from 0; it has no {part!r}"
    return here[int(part)], None


def _plugin_problems(document: dict[str, Any], allow_code: bool) -> list[str]:
    """What names plugins, checked against the files there are, so that it joins the one list of problems."""
    problems = []
    data = document.get("data")
    if isinstance(data, dict) and isinstance(data.get("dataset"), str):
        known = discovery.names("dataset")
        if data["dataset"] not in known:
            problems.append(
                f"data.dataset: unknown data set {data['dataset']!r}{suggest(data['dataset'], known)}"
            )
    export = document.get("export")
    formats = export.get("formats") if isinstance(export, dict) else None
    for place, name in enumerate(formats if isinstance(formats, list) else []):
        known = discovery.names("format")
        if isinstance(name, str) and name not in known:
            choices = ", ".join(map(repr, known))
            problems.append(f"export.formats.{place}: expected one of {choices}, got {name!r}")
    peers = document.get("peers") if isinstance(document.get("peers"), list) else []
    sections = {"teacher": document.get("teacher"), "student": document.get("student")}
    sections.update({f"peers.{i}": peer for i, peer in enumerate(peers or [])})
    for path, section in sections.items():
        model = section.get("model") if isinstance(section, dict) else section if "peers" in path else None
        if isinstance(model, str) and (problem := model_problem(model, allow_code)):
            problems.append(f"{path}.model: {problem}")
    return problems


def _made_from_onnx(document: dict[str, Any]) -> list[str]:
    """The smaller files that are asked for without the one they are made from."""
    export = document.get("export")
    if not isinstance(export, dict):
        return []
    formats = export.get("formats")
    if not isinstance(formats, list) or not formats or "onnx" in formats:
        return []
    asked = [key for key in ("int8", "fp16") if export.get(key) not in (None, False)]
    if export.get("embed_preprocess") == "resize":
        asked.append("embed_preprocess")
    return [f"export.{key}: is made from student.onnx; add onnx to export.formats" for key in asked]


def model_problem(model: str, allow_code: bool) -> str | None:
    """What is wrong with a `FAMILY/NAME`, or None.

    Args:
        model: As in a recipe.
        allow_code: Whether `python:` networks may be named.
    """
    if model.startswith("python:"):
        if model.count(":") != 2:
            return f"expected python:package.module:function, got {model!r}"
        return None if allow_code else f"{model!r} runs code of yours; pass --allow-code to let it"
    family, slash, name = model.partition("/")
    families = [known for known in discovery.names("family") if known != "python"]
    if not slash:
        return f"expected FAMILY/NAME, got {model!r}; families: {', '.join(families)}"
    if family not in families:
        return f"unknown family {family!r}{suggest(family, families)}"
    constants = discovery.header("family", family).constants
    known, pattern = constants.get("NAMES"), constants.get("PATTERN")
    if known is None or name in known or (pattern is not None and re.fullmatch(pattern, name)):
        return None  # a family without NAMES (timm) is asked when it is built
    return f"unknown network {name!r} of family {family!r}{suggest(name, known)}"


def _method(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The method's section with its defaults filled in, and what is wrong with it or does not fit it."""
    section = document.get("method")
    if not isinstance(section, dict):
        return {}, []  # the schema says so itself
    name = section.get("name")
    known = discovery.names("method")
    if name is None:
        return {}, [f"method.name: required; choices: {', '.join(known)}"]
    if name not in known:
        return {}, [f"method.name: unknown method {name!r}{suggest(str(name), known)}"]
    cls = _class_of(name)
    try:
        config = cls.Config.model_validate({key: value for key, value in section.items() if key != "name"})
    except ValidationError as error:
        return {}, describe(error, cls.Config, prefix="method", elsewhere=keys(Recipe))
    checked = {"name": name, **config.model_dump(mode="json")}
    return checked, _misfits(document, name, cls, config)


def _config_keys(document: dict[str, Any]) -> list[str]:
    """The keys of the method that a recipe names, if it names one."""
    section = document.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    return list(_class_of(name).Config.model_fields) if name in discovery.names("method") else []


def _class_of(name: str) -> type[Method]:
    # The one look upward: a method's Config is a section of the recipe.
    from kdcompress.methods.base import find_method

    return find_method(name)


def _tunes(document: dict[str, Any]) -> bool:
    """Whether the student is to be tuned for int8; a value of another kind is told elsewhere."""
    export = document.get("export")
    int8 = export.get("int8") if isinstance(export, dict) else None
    epochs = int8.get("qat_epochs") if isinstance(int8, dict) else None
    return isinstance(epochs, int) and epochs > 0


def _misfits(document: dict[str, Any], name: str, cls: type[Method], config: Section) -> list[str]:
    """Where the method's needs and the rest of the recipe do not fit."""
    needs = cls.needs(config)
    has_teacher = document.get("teacher") is not None
    peers = document.get("peers") or []
    train = document.get("train")
    problems = []
    if needs.teacher and not has_teacher:
        problems.append(f"teacher: required by the method {name!r}")
    if not needs.teacher and has_teacher:
        problems.append(f"teacher: the method {name!r} has no use for one; take it out (--set teacher=null)")
    if not needs.teacher and _tunes(document):
        problems.append(
            f"export.int8.qat_epochs: learns from the teacher, and the method {name!r} has none; choose a "
            "method with one, or take it out (--set export.int8.qat_epochs=0)"
        )
    if isinstance(peers, list):  # else the schema says so
        if needs.peers is not None and len(peers) < needs.peers:
            problems.append(f"peers: the method {name!r} needs at least {needs.peers}, got {len(peers)}")
        if needs.peers is None and peers:
            problems.append(f"peers: the method {name!r} has no use for them; take them out (--set peers=[])")
    if isinstance(train, dict) and train.get("compile") is True and needs.student_maps:
        problems.append(
            f"train.compile: the method {name!r} reads more than logits; compile works with logits alone"
        )
    data = document.get("data")
    extra = data.get("extra") if isinstance(data, dict) else None
    if isinstance(extra, dict) and not has_teacher and not needs.teacher:
        problems += [
            f"data.extra.{key}: asks a teacher, and there is none; leave it out, or choose a method with one"
            for key, without in (("keep", 1), ("relabel", False))
            if extra.get(key, without) != without
        ]
    return problems
