"""Checks of a recipe against what it names: plugins, networks, and the needs of its method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from kdcompress import discovery
from kdcompress.errors import suggest
from kdcompress.listing import shipped_recipes
from kdcompress.problems import describe, keys
from kdcompress.recipe.schema import Recipe


def plugin_problems(document: dict[str, Any], allow_code: bool) -> list[str]:
    """Checks the names of data set, formats and networks against the plugin files."""
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


def onnx_problems(document: dict[str, Any]) -> list[str]:
    """Lists the files derived from student.onnx that are requested without it."""
    export = document.get("export")
    if not isinstance(export, dict):
        return []
    formats = export.get("formats")
    if not isinstance(formats, list) or not formats or "onnx" in formats:
        return []
    derived = [key for key in ("int8", "fp16", "exits") if export.get(key) not in (None, False)]
    if export.get("embed_preprocess") == "resize":
        derived.append("embed_preprocess")
    return [f"export.{key}: is made from student.onnx; add onnx to export.formats" for key in derived]


def calibrate_problems(document: dict[str, Any]) -> list[str]:
    """Lists what `export.calibrate` cannot be used with."""
    export = document.get("export")
    if not isinstance(export, dict) or export.get("calibrate") is not True:
        return []
    formats = [name for name in export.get("formats") or [] if isinstance(name, str)]
    known = [name for name in formats if name in discovery.names("format")]
    able = [name for name in known if discovery.header("format", name).constants.get("PROBABILITIES") is True]
    problems = []
    if known and not able:
        problems.append(
            f"export.calibrate: adds an output to ONNX and OpenVINO files, and export.formats has {known}; "
            "add onnx"
        )
    for name in known:
        if name not in {*able, "safetensors"}:
            problems.append(
                f"export.calibrate: a file of the format {name!r} has one output; leave {name} out of "
                "export.formats, or take it out (--set export.calibrate=false)"
            )
    if document.get("pseudo_labels") is not None:
        problems.append("export.calibrate: needs labels, and pseudo_labels trains without; leave one out")
    return problems


def model_problem(model: str, allow_code: bool) -> str | None:
    """Checks a `FAMILY/NAME`; returns what is wrong with it, or None.

    Args:
        model: The name in the recipe.
        allow_code: Allow `python:` networks.
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


def pseudo_label_problems(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Completes the method of the pre-training with its defaults and checks it, and the labels.

    Args:
        document: The whole recipe.

    Returns:
        The section ({} if there is none or it is not valid), and the problems.
    """
    own = document.get("pseudo_labels")
    if not isinstance(own, dict):
        return {}, []
    given = own.get("method", {"name": "moco"})
    if not isinstance(given, dict):
        return {}, []  # the schema says so itself
    problems, data, name = [], document.get("data") or {}, given.get("name")
    if isinstance(data, dict) and data.get("labels") != "none":
        problems.append("data.labels: expected none, since pseudo_labels takes clusters for labels")
    if isinstance(data, dict) and data.get("extra") is not None:
        problems.append("data.extra: cannot be used with pseudo_labels; leave one of the two out")
    trained = method_name(document)
    known = discovery.names("method")
    if trained is not None and _self_supervised(method_class(trained)):
        problems.append(
            f"method.name: {trained} trains a backbone without labels; to cluster its features and train on "
            f"the clusters, name it in pseudo_labels.method and choose a self-distillation method here"
        )
    export = document.get("export")
    if isinstance(export, dict) and export.get("exits") is True:
        problems.append("export.exits: cannot be used with pseudo_labels, since an exit is scored by classes")
    train = document.get("train")
    if isinstance(train, dict) and train.get("ship") == "ensemble":
        problems.append("train.ship: ensemble cannot be used with pseudo_labels; choose another")
    if name not in known:
        return {}, [
            *problems,
            f"pseudo_labels.method.name: unknown method {name!r}{suggest(str(name), known)}",
        ]
    cls = method_class(str(name))
    try:
        config = cls.Config.model_validate(_without_name(given))
    except ValidationError as error:
        return {}, [*problems, *describe(error, cls.Config, prefix="pseudo_labels.method")]
    if not _self_supervised(cls, config):
        fitting = [other for other in known if _self_supervised(method_class(other))]
        problems.append(
            f"pseudo_labels.method.name: {name} does not train a backbone without labels and teacher; "
            f"choices: {', '.join(fitting)}"
        )
    return {"name": name, **config.model_dump(mode="json")}, problems


def _self_supervised(cls: type[Any], config: Any = None) -> bool:
    return trains_backbone_alone(cls.needs(cls.Config() if config is None else config))


def trains_backbone_alone(needs: Any) -> bool:
    """Returns True if a method trains a backbone with neither labels nor a teacher."""
    return not (needs.labels or needs.teacher or needs.task.has_classes)


def method_name(document: dict[str, Any]) -> str | None:
    """Returns the name of the document's method, or None if there is no such method."""
    section = document.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) and name in discovery.names("method") else None


def method_class(name: str) -> type[Any]:
    """Imports the class of a method: a plugin, so the recipe stays below the methods."""
    return discovery.load_class("method", name, "parameter_sets")


def method_needs(document: dict[str, Any]) -> Any:
    """Returns the needs of the document's method with its settings.

    Raises:
        ValidationError: The settings are not valid.
    """
    section = document["method"]
    cls = method_class(section["name"])
    return cls.needs(cls.Config.model_validate(_without_name(section)))


def check_method(document: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Completes the method's section with its defaults and checks it against the rest of the recipe.

    Args:
        document: The whole recipe.
        overrides: All overrides, to name the ones that do not fit the method.

    Returns:
        The section ({} if it is not valid), and the problems.
    """
    section = document.get("method")
    if not isinstance(section, dict):
        return {}, []  # the schema says so itself
    name = section.get("name")
    known = discovery.names("method")
    if name is None:
        return {}, [f"method.name: required; choices: {', '.join(known)}"]
    if name not in known:
        hint = (
            f"; that is a recipe: --recipe {name}"
            if str(name) in shipped_recipes()
            else suggest(str(name), known)
        )
        return {}, [f"method.name: unknown method {name!r}{hint}"]
    cls = method_class(name)
    try:
        config = cls.Config.model_validate(_without_name(section))
    except ValidationError as error:
        return {}, describe(error, cls.Config, prefix="method", other_keys=keys(Recipe))
    complete = {"name": name, **config.model_dump(mode="json")}
    return complete, [*_misfits(document, name, cls.needs(config), overrides), *_exit_problems(document, cls)]


def _exit_problems(document: dict[str, Any], cls: type[Any]) -> list[str]:
    """Refuses early exits with a method that has none."""
    export = document.get("export")
    if not isinstance(export, dict) or export.get("exits") is not True or cls.has_early_exits():
        return []
    able = [name for name in discovery.names("method") if method_class(name).has_early_exits()]
    return [
        f"export.exits: the method {document['method']['name']!r} has no early exits; choose one that has "
        f"({', '.join(able)}), or take it out (--set export.exits=false)"
    ]


def config_keys(document: dict[str, Any]) -> list[str]:
    """Returns the keys of the document's method, if it names one."""
    name = method_name(document)
    return [] if name is None else list(method_class(name).Config.model_fields)


def settings_of(section: str, overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that set a section or keys of it."""
    return [item for item in overrides if item.partition("=")[0].split(".")[0] == section]


def _without_name(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def _has_qat(document: dict[str, Any]) -> bool:
    """Returns True if quantisation-aware epochs are set; the schema checks the type of the value."""
    export = document.get("export")
    int8 = export.get("int8") if isinstance(export, dict) else None
    epochs = int8.get("qat_epochs") if isinstance(int8, dict) else None
    return isinstance(epochs, int) and epochs > 0


def _misfits(document: dict[str, Any], name: str, needs: Any, overrides: Sequence[str]) -> list[str]:
    """Lists where the method's needs and the rest of the recipe do not fit."""
    has_teacher = document.get("teacher") is not None
    peers = document.get("peers") or []
    problems = []
    if needs.teacher and not has_teacher:
        problems.append(f"teacher: required by the method {name!r}")
    if not needs.teacher and has_teacher:
        settings = " ".join(f"--set {item}" for item in settings_of("teacher", overrides))
        remedy = f"leave out {settings}" if settings else "take it out (--set teacher=null)"
        problems.append(f"teacher: the method {name!r} has no use for one; {remedy}")
    if not needs.teacher and _has_qat(document):
        problems.append(
            f"export.int8.qat_epochs: learns from the teacher, and the method {name!r} has none; choose a "
            "method with one, or take it out (--set export.int8.qat_epochs=0)"
        )
    if isinstance(peers, list):  # else the schema says so
        if needs.peers is not None and len(peers) < needs.peers:
            problems.append(f"peers: the method {name!r} needs at least {needs.peers}, got {len(peers)}")
        if needs.peers is None and peers:
            problems.append(f"peers: the method {name!r} has no use for them; take them out (--set peers=[])")
    data = document.get("data")
    extra = data.get("extra") if isinstance(data, dict) else None
    if isinstance(extra, dict) and not has_teacher and not needs.teacher:
        problems += [
            f"data.extra.{key}: asks a teacher, and there is none; leave it out, or choose a method with one"
            for key, without in (("keep", 1), ("relabel", False))
            if extra.get(key, without) != without
        ]
    return problems
