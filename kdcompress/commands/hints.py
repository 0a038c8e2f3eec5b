"""Names that other trainers use for a command or an option, and what to write here instead."""

from __future__ import annotations

from collections.abc import Sequence

OTHER_COMMANDS = {
    "train": "distill", "fit": "distill", "run": "distill", "finetune": "distill", "fine-tune": "distill",
    "eval": "evaluate", "test": "evaluate", "validate": "evaluate", "val": "evaluate", "score": "evaluate",
    "benchmark": "bench", "time": "bench", "convert": "export", "quantize": "export", "quantise": "export",
    "models": "students", "networks": "students", "list": "recipes", "config": "show",
}  # fmt: skip
"""{name elsewhere: command}"""

_KEYS = {
    "epochs": "train.epochs", "num-epochs": "train.epochs", "max-epochs": "train.epochs",
    "max-steps": "train.max_steps", "lr": "optim.lr", "learning-rate": "optim.lr",
    "batch-size": "data.batch_size", "bs": "data.batch_size", "batch": "data.batch_size", "seed": "seed",
    "model": "student.model", "student": "student.model", "arch": "student.model", "teacher": "teacher.model",
    "weights": "student.weights", "pretrained": "student.weights", "teacher-weights": "teacher.weights",
    "teacher-epochs": "teacher.epochs", "dataset": "data.dataset", "image-size": "data.image_size",
    "img-size": "data.image_size", "imgsz": "data.image_size", "workers": "data.workers",
    "num-workers": "data.workers", "optimizer": "optim.name", "opt": "optim.name",
    "momentum": "optim.momentum",
    "weight-decay": "optim.weight_decay", "wd": "optim.weight_decay", "scheduler": "optim.schedule",
    "warmup": "optim.warmup", "label-smoothing": "train.label_smoothing", "ema": "train.ema",
    "precision": "train.precision", "clip-grad": "train.clip_norm", "temperature": "method.temperature",
}  # fmt: skip
_OPTIONS = {
    "output": "--out", "output-dir": "--out", "save-dir": "--out", "data-dir": "--data",
    "data-path": "--data",
    "config": "--recipe", "cfg": "--recipe",
}  # fmt: skip


def option_hint(option: str, arguments: Sequence[str], known: Sequence[str]) -> str | None:
    """Returns what to write in place of an unknown option; None: nothing is known of it.

    Args:
        option: As typed, such as `--epochs`.
        arguments: All arguments, to repeat the option's value.
        known: Options of the command.
    """
    name = option.lstrip("-").replace("_", "-")
    if name in _KEYS and "--set" in known:
        return f"--set {_KEYS[name]}={_value(option, arguments)}"
    if name in _OPTIONS and _OPTIONS[name] in known:
        return f"{_OPTIONS[name]} {_value(option, arguments)}"
    return None


def _value(option: str, arguments: Sequence[str]) -> str:
    for here, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if here.startswith(f"{option}="):
            return here.partition("=")[2] or "VALUE"
        if here == option and following and not following.startswith("-"):
            return following
    return "VALUE"
