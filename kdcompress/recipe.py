"""The recipe: its schema, where it is read from, and every problem of it at once.

A recipe is YAML. `load_recipe` reads a shipped name or a file, applies `--set` overrides and checks all of
it; what it returns is frozen and complete (`to_yaml` writes every value a run depends on).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from kdcompress import discovery
from kdcompress.config import Section
from kdcompress.errors import RecipeError, UserError, suggest
from kdcompress.listing import shipped_recipes

MAX_RECIPE_BYTES = 1 << 20
"""No honest recipe comes near 1 MiB."""

_MODEL = r"^[a-z0-9_]+[/:].+$"


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
    labels: Literal["all"] = "all"
    """Every training image has its label."""
    workers: int | None = Field(None, ge=0)
    """Processes that decode images; None: one per granted core. Small data sets live in memory and use
    none."""
    augment: Literal["auto", "none", "crop", "crop_flip", "resized_crop_flip"] = "auto"
    """What training images go through; auto: what is usual for the data set."""
    max_broken: float = Field(0.01, ge=0, le=1)
    """Share of image files that may be unreadable before it is an error; they are named and counted."""


class InputSection(Section):
    """`teacher.input:` what a teacher from elsewhere expects of its images."""

    mean: list[float] | None = None
    """Per channel, of images in [0, 1]. None: what its weights say, else the data set's."""
    std: list[float] | None = None
    size: int | None = Field(None, ge=8, le=4096)
    """Side in pixels the images are resized to for this network. None: what its weights say."""


class NetworkSection(Section):
    """`student:` and each of `peers:` a network and where its weights start."""

    model: str = Field(pattern=_MODEL)
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
    threads: int | None = Field(None, ge=1)
    """Of one process. None: the cores granted to it. Part of the run: results differ in bits between
    counts."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the device computes it natively, fp16 on older GPUs, else fp32."""
    compile: bool = False
    """torch.compile the student; only for methods that read logits alone."""
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
    ship: Literal["best", "last"] = "best"
    """The epoch and candidate with the best held-out top-1, or the last epoch's student."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """A checkpoint is also written within an epoch, this often."""


class OptimSection(Section):
    """`optim:` one optimiser for whatever is trained."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["constant", "cosine", "multistep", "one_cycle"] = "cosine"
    milestones: list[float] = Field([0.625, 0.75, 0.875])
    """Of multistep: fractions of the run (below 1) or epochs (1 and above); the rate is divided by ten at
    each."""
    warmup: float = Field(0.0, ge=0)
    """Linear, from nothing: a fraction of the run (below 1) or epochs (1 and above)."""


class ExportSection(Section):
    """`export:` what ships."""

    formats: list[Literal["onnx", "safetensors"]] = Field(["onnx", "safetensors"], min_length=1)


class BenchSection(Section):
    """`bench:` how the result is timed."""

    threads: list[int | Literal["all"]] = Field([1], min_length=1)
    batch: list[int] = Field([1], min_length=1)
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
        # `peers: [cifar/resnet8]` is what people write; a bare name is a network without weights.
        if isinstance(document, dict) and isinstance(document.get("peers"), list):
            peers = [{"model": peer} if isinstance(peer, str) else peer for peer in document["peers"]]
            return {**document, "peers": peers}
        return document

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that `load_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)

    def replace(self, **sections: Any) -> Self:
        """A copy with whole sections replaced."""
        return self.model_copy(update=sections)


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
    source = name_or_file
    if not isinstance(document, dict):
        raise RecipeError(source, ["a recipe is a mapping of sections, such as 'student:' and 'train:'"])
    document.setdefault("name", path.stem)
    problems = [problem for item in overrides if (problem := _override(document, item))]
    problems += _plugin_problems(document, allow_code)
    method, more = _method(document.get("method"))
    problems += more
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(source, problems + describe(error, Recipe)) from None
    if not problems:
        problems = _misfits(recipe, method)
    if problems:
        raise RecipeError(source, problems)
    return recipe.replace(method=method)


def read_yaml(path: Path) -> Any:
    """Reads one YAML document: no tags that build objects, no aliases, no key twice, `1e-3` is a number.

    Raises:
        RecipeError: It cannot be read.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(str(path), ["larger than 1 MiB, so it is no recipe"])
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise RecipeError(str(path), ["is not UTF-8 text"]) from None
    return _parse(text, str(path))


def describe(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Each problem of a pydantic error as one line: `dotted.path: what is wrong`."""
    lines = []
    for item in error.errors():
        path = [part for part in item["loc"] if not _is_union_tag(part)]
        dotted = ".".join([prefix, *map(str, path)] if prefix else [str(part) for part in path])
        lines.append(f"{dotted}: {_sentence(item, path, model)}")
    return list(dict.fromkeys(lines))  # a union reports the same value once per member


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, stricter where YAML 1.1 surprises."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            # A few nested aliases expand to gigabytes; no recipe needs one.
            mark = self.current_event.start_mark if self.current_event else None
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed in a recipe", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                message = f"keys are text, not {key!r}"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            if key in keys:
                message = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-3` as text, for want of a dot; every learning rate is written that way.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(source, [f"{where}{error.problem}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(source, [f"is not valid YAML: {str(error).splitlines()[0]}"]) from None


def _find(name_or_file: str) -> Path:
    recipes = shipped_recipes()
    if name_or_file in recipes:
        return recipes[name_or_file]
    path = Path(name_or_file)
    looks_like_a_file = path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
    if path.is_file():
        return path
    if looks_like_a_file:
        raise UserError(f"no recipe file {name_or_file!r}")
    raise UserError(f"unknown recipe {name_or_file!r}{suggest(name_or_file, recipes)}")


def _override(document: dict[str, Any], item: str) -> str | None:
    key, equals, text = item.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        return f"--set {item}: expected key.path=value"
    value = _parse(text, f"--set {item}")
    here: Any = document
    for part in parts[:-1]:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            return f"--set {item}: {part!r} holds a value, not a section"
    if parts == ["method", "name"] and here.get("name") != value:
        here.clear()  # the other keys are the other method's
    here[parts[-1]] = value
    return None


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
    peers = document.get("peers") if isinstance(document.get("peers"), list) else []
    sections = {"teacher": document.get("teacher"), "student": document.get("student")}
    sections.update({f"peers.{i}": peer for i, peer in enumerate(peers or [])})
    for path, section in sections.items():
        model = section.get("model") if isinstance(section, dict) else section if "peers" in path else None
        if isinstance(model, str) and (problem := model_problem(model, allow_code)):
            problems.append(f"{path}.model: {problem}")
    return problems


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
    known = discovery.header("family", family).constants.get("NAMES")
    if known is not None and name not in known:  # a family without NAMES (timm) is asked when it is built
        return f"unknown network {name!r} of family {family!r}{suggest(name, known)}"
    return None


def _method(section: Any) -> tuple[dict[str, Any], list[str]]:
    """The method's section with its defaults filled in, or what is wrong with it."""
    known = discovery.names("method")
    if not isinstance(section, dict):
        return {}, []  # the schema says so itself
    name = section.get("name")
    if name is None:
        return {}, [f"method.name: required; choices: {', '.join(known)}"]
    if name not in known:
        return {}, [f"method.name: unknown method {name!r}{suggest(str(name), known)}"]
    from kdcompress.methods.base import (
        find_method,  # the one look upward: a Config is a section of the recipe
    )

    config = find_method(name).Config
    try:
        checked = config.model_validate({key: value for key, value in section.items() if key != "name"})
    except ValidationError as error:
        return {}, describe(error, config, prefix="method")
    return {"name": name, **checked.model_dump(mode="json")}, []


def _misfits(recipe: Recipe, method: dict[str, Any]) -> list[str]:
    """Where the method's needs and the rest of the recipe do not fit."""
    from kdcompress.methods.base import find_method

    name = method["name"]
    cls = find_method(name)
    needs = cls.needs(
        cls.Config.model_validate({key: value for key, value in method.items() if key != "name"})
    )
    problems = []
    if needs.teacher and recipe.teacher is None:
        problems.append(f"teacher: required by the method {name!r}")
    if not needs.teacher and recipe.teacher is not None:
        problems.append(f"teacher: the method {name!r} has no use for one; take it out (--set teacher=null)")
    if needs.peers is not None and len(recipe.peers) < needs.peers:
        problems.append(f"peers: the method {name!r} needs at least {needs.peers}, got {len(recipe.peers)}")
    if needs.peers is None and recipe.peers:
        problems.append(f"peers: the method {name!r} has no use for them; take them out (--set peers=[])")
    if recipe.train.compile and needs.student_maps:
        problems.append(
            f"train.compile: the method {name!r} reads more than logits; compile works with logits alone"
        )
    return problems


def _is_union_tag(part: Any) -> bool:
    # pydantic puts the tried member of a union into the path: 'int', "literal['all']", 'list[float]'.
    return isinstance(part, str) and (part in {"int", "float", "str", "bool"} or "[" in part)


def _sentence(item: Any, path: list[Any], model: type[BaseModel]) -> str:
    kind, given = item["type"], item.get("input")
    context = item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{suggest(str(path[-1]), _fields_at(model, path[:-1]))}"
    if kind == "missing":
        return "required"
    if kind == "literal_error":
        return f"expected one of {context['expected'].replace(' or ', ', ')}, got {given!r}"
    expected = {
        "int_type": "int", "float_type": "float", "string_type": "text", "bool_type": "true or false",
        "list_type": "a list", "dict_type": "a section", "model_type": "a section", "int_from_float": "int",
    }.get(kind)  # fmt: skip
    if expected:
        return f"expected {expected}, got {given!r}"
    if kind == "string_pattern_mismatch" and path and path[-1] == "model":
        return f"expected FAMILY/NAME, got {given!r}"
    message = item["msg"][0].lower() + item["msg"][1:].removeprefix("Value error, ")
    return f"{message}, got {given!r}"


def _fields_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    here: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = here.model_fields[part].annotation
        members = [annotation, *getattr(annotation, "__args__", ())]
        here = next((m for m in members if isinstance(m, type) and issubclass(m, BaseModel)), None)
        if here is None:
            return []
    return list(here.model_fields)
