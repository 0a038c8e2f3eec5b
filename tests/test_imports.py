"""Imports go one way, and start-up stays light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdcompress import discovery

PACKAGE = Path(__file__).parent.parent / "kdcompress"

# Lowest first. A file may import its own layer and those below it.
LAYERS = [
    {
        "errors",
        "config",
        "archives",
        "atomic",
        "containment",
        "cores",
        "progress",
        "discovery",
        "documents",
        "listing",
        "native_paths",
        "plain_text",
        "problems",
        "schemas",
        "strict_yaml",
        "user_paths",
    },
    {"recipe"},
    {"run_folder"},
    {"data"},
    {"metrics"},
    {"tasks"},
    {"networks"},
    {"methods"},
    {"train", "deploy", "bench", "report", "probe"},
    {"export"},
    {"run"},
    {"tools"},
    {"pipeline"},
    {"commands"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SIBLINGS_APART = {"train", "deploy", "bench", "report", "probe"}


def rooms():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdcompress":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [a.name for a in node.names if a.name in LEVEL]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("kdcompress."))


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    if room in {"__init__", "__main__"}:
        return
    assert room in LEVEL, f"{room} has no place in the order of tests/test_imports.py"
    for other in imported_rooms(path):
        assert LEVEL[other] <= LEVEL[room], f"{path.name} ({room}) imports {other}, which stands above it"
        if room in SIBLINGS_APART and other in SIBLINGS_APART:
            assert room == other or (room, other) in ALLOWED_SIBLINGS, f"{room} imports its sibling {other}"


# The worker that times a safetensors file opens it as a user would.
ALLOWED_SIBLINGS = {("bench", "deploy")}


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions and for type checking count too; the package's own front door does not."""
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in rooms()
    }
    graph = {}
    for module, path in files.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= {name if name in files else node.module for name in names}
        graph[module] = imported & files.keys() - {module, "kdcompress"}
    graph["kdcompress"] = set()
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


KINDS = ("offline", "online", "selfkd")


SHARED_BY_METHODS = {
    "base", "class_draws", "cohort_method", "contrast_method", "exit_method", "feature_kd", "frozen",
    "fusion_method",
    "gather", "hierarchy", "hypergradient", "losses", "memory", "mixup", "moving_average", "presets",
    "queue", "requirements", "shared_norm", "short_runs", "soft_labels", "stage_gradient",
    "stage_heads", "stage_pairs",
    "turned",
}  # fmt: skip


def test_methods_never_import_each_other():
    for path in sorted(p for kind in KINDS for p in (PACKAGE / "methods" / kind).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdcompress.methods."):
                room = node.module.split(".")[2]
                assert room in SHARED_BY_METHODS, f"{path.name} imports {node.module}"


def test_the_trainer_names_no_method():
    methods = set(discovery.names("method"))
    for path in sorted((PACKAGE / "train").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = node.value if isinstance(node, ast.Constant) else None
            assert not isinstance(named, str) or named not in methods - {"none"}, f"{path.name}: {named!r}"
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not module.startswith(tuple(f"kdcompress.methods.{kind}" for kind in KINDS)), path.name


HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "pydantic", "rich", "scipy", "sklearn")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["distill", "--help"], ["export", "--help"], ["evaluate", "--help"], ["show", "--help"],
        ["strip", "--help"], ["bench", "--help"], ["plan", "--help"], ["suggest", "--help"],
        ["report", "--help"], ["recipes"], ["methods"], ["students"], ["datasets"],
        ["methods", "--json"], ["methods", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_listings_and_help_import_nothing_heavy(arguments):
    code = (
        "import sys\nfrom kdcompress.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_package_goes_into_the_wheel():
    listed = set(
        tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    there = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == there | {"kdcompress.recipes"}  # the recipes move into the package
