"""One thread: two busy threads make small steps much slower on a shared machine, and change the bits."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes that tests start
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the tests that import onnxruntime themselves
os.environ["KDCOMPRESS_OFFLINE"] = "1"  # no test reaches out; see `downloads`

import pytest
import torch

from kdcompress.cores import granted_cores

torch.set_num_threads(1)

HERE = Path(__file__).parent
MOST_PROCESSES = 8
"""A process takes one to two gigabytes."""

SLOW_FILES = {
    "bench": {"measure", "pack", "runtimes", "ssh", "truth", "worker"},
    "data": {"joined", "workers"},
    "deploy": {
        "backbone_files",
        "ensemble",
        "exits",
        "executorch_format",
        "graph_size",
        "half",
        "image_graph",
        "load",
        "onnx_format",
        "openvino_format",
        "quantize",
        "ship",
        "speed_verdict",
        "variants",
        "verify",
        "worth",
    },
    "methods": {
        "ab",
        "afd",
        "backbone_learns",
        "contract",
        "ctkd",
        "ffl",
        "fitnet",
        "gather",
        "hsakd",
        "kdcl",
        "lmcl",
        "mcl",
        "memory",
        "mixskd",
        "mlkd",
        "moco",
        "one",
        "pairs",
        "seed",
        "sskd",
    },
    "networks": {"backbones", "cohort", "families", "rounding", "teacher"},
    "probe": {"knowledge", "steps"},
    "report": {"card"},
    "run": {"auto"},
    "train": {
        "bn_statistics",
        "choice",
        "exits_of_a_choice",
        "processes",
        "several_sets",
        "stop_and_resume",
        "trainer",
    },
    "": {
        "bad_input",
        "bench_command",
        "cli",
        "compatibility",
        "early_exits",
        "foreign_checkpoints",
        "generated_images",
        "imports",
        "method_option",
        "more_formats",
        "new_format",
        "preparation",
        "ship_option",
        "smaller_files",
        "student_weights",
        "suggest",
        "suggest_candidates",
        "tuned_for_int8",
        "unequal_folder",
        "unlabelled",
    },
}
"""Test files by folder that train, export or start programs for more than a few seconds."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Gives the number of processes for `-n auto`: one per granted core, also inside a container."""
    return min(granted_cores(), MOST_PROCESSES)


@pytest.fixture(autouse=True, scope="session")
def _private_cache_of_shared_fixtures(tmp_path_factory):
    """Gives the fixtures of modules and sessions a cache that is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(tmp_path_factory.mktemp("shared_cache")))
        yield


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Gives every test an empty cache, so that none reads or writes the user's."""
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def downloads(monkeypatch, tmp_path_factory):
    """Lets a test download from a server of its own; weights of an earlier torchvision are not found."""
    monkeypatch.delenv("KDCOMPRESS_OFFLINE")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        folder = "" if item.path.parent == HERE else item.path.parent.name
        if item.path.stem.removeprefix("test_") in SLOW_FILES.get(folder, ()):
            item.add_marker(pytest.mark.slow)
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
