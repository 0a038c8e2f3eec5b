"""`config.json`: what a weights file alone does not say — which network, which classes, which input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress import __version__
from kdcompress.atomic import write_json
from kdcompress.data.input_spec import InputSpec
from kdcompress.documents import read_document
from kdcompress.errors import UserError
from kdcompress.schemas.config import Config

SCHEMA = "kdcompress.config/1"
NAME = "config.json"

_TIMM_KEYS = frozenset(
    f"torchvision/{name}"
    for name in (
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "wide_resnet50_2",
        "wide_resnet101_2",
    )
)
"""torchvision's networks whose tensors have the same names in timm, under the same network name."""


_TIMM_CROP_MODES = {"whole": "squash", "pad": "border"}


@dataclass(frozen=True, slots=True)
class DeployedConfig:
    """The values of a `config.json`.

    Args:
        model: The `FAMILY/NAME` that the weights fit.
        num_classes: K; 0 of a backbone.
        class_names: K names, by class number.
        spec: The network's input.
        task: `Task.name`, where the classes do not tell it; None: they do.
        temperature: Fitted on held-out images; None: not fitted.
    """

    model: str
    num_classes: int
    class_names: tuple[str, ...]
    spec: InputSpec
    task: str | None = None
    temperature: float | None = None


def write_config(
    path: Path,
    *,
    model: str,
    num_classes: int,
    spec: InputSpec,
    class_names: tuple[str, ...],
    extra: dict[str, Any],
) -> None:
    """Writes `config.json`, in timm's layout where timm can load the weights.

    Args:
        path: Destination.
        model: `FAMILY/NAME`.
        num_classes: K; 0 of a backbone.
        spec: The network's input.
        class_names: K names.
        extra: Further top-level keys, such as `num_features` (D).
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kdcompress": {"builder": model, "version": __version__},
        "num_classes": num_classes,
        "label_names": list(class_names),
        "input": spec.to_json(),
        **extra,
    }
    architecture = timm_name(model)
    if architecture is not None:
        document["architecture"] = architecture
        document["pretrained_cfg"] = {
            "input_size": [spec.channels, spec.height, spec.width],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": 1.0 if not spec.resize else (spec.crop or spec.height) / spec.resize,
            "num_classes": num_classes,
            **({} if spec.fit == "crop" else {"crop_mode": _TIMM_CROP_MODES[spec.fit]}),
        }
    write_json(path, document)


def timm_name(model: str) -> str | None:
    """Returns the name under which timm builds a network with the same tensors, or None."""
    family, _, name = model.partition("/")
    if family == "timm" or model in _TIMM_KEYS:
        return name
    return None


def read_config(path: Path) -> DeployedConfig:
    """Reads what `write_config` wrote.

    Raises:
        UserError: It is absent, damaged, or of a newer version.
    """
    if not path.exists():
        raise UserError(f"{path}: cannot be read (no such file); weights need it beside them")
    document = read_document(path, Config, advice="the weights need the config.json they came with")
    return DeployedConfig(
        model=document["kdcompress"]["builder"],
        num_classes=document["num_classes"],
        class_names=tuple(document["label_names"]),
        spec=InputSpec.from_json(document["input"]),
        task=document.get("task"),
        temperature=document.get("temperature"),
    )
