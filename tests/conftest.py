"""One thread: two busy threads make small steps much slower on a shared machine, and change the bits."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes that tests start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of them compiles the package anew
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the tests that import onnxruntime themselves
os.environ["KDCOMPRESS_OFFLINE"] = "1"  # no test reaches out; see `downloads`

import pytest
import torch

from kdcompress.cores import granted_cores

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what it puts into the background with Ctrl-C ignored, and every child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
NUMBERS = itertools.count()
MOST_PROCESSES = 8
"""A process takes one to two gigabytes."""

SLOW_FILES = {
    "bench": {"measure", "pack", "runtimes", "ssh", "worker", "far_end"},
    "data": {"joined", "no_regular_file", "pixel_cache", "workers", "decoder_choice", "orders", "tar_shards"},
    "deploy": {
        "backbone_files",
        "ensemble",
        "exits_file",
        "executorch_format",
        "golden_file",
        "graph_size",
        "half",
        "image_graph",
        "load",
        "onnx_format",
        "openvino_format",
        "probabilities",
        "quantize",
        "ship",
        "speed_verdict",
        "variants",
        "verify",
        "worth",
    },
    "faults": {"data_disappears", "kills", "lost_rank", "torchrun"},
    "hostile": {"bombs", "cache_parts", "hostile", "large_documents"},
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
        "fake_cuda",
        "refusals",
        "statistics_images",
        "pcl",
        "okddip",
        "cached_teacher",
    },
    "networks": {
        "backbones",
        "cohort",
        "compiled",
        "families",
        "output_cache",
        "rounding",
        "teacher",
        "exits",
        "tapped",
    },
    "probe": {"knowledge", "steps"},
    "report": {"card", "in_chromium", "quality", "page", "verdict_over_seeds"},
    "run": {"auto", "folding_warning"},
    "train": {
        "bn_statistics",
        "choice",
        "exits_of_a_choice",
        "processes",
        "several_sets",
        "stop_and_resume",
        "trainer",
        "qat_method",
        "frozen_copy",
        "candidate_that_ships",
    },
    "": {
        "bad_input",
        "bench_command",
        "calibrated_files",
        "cli",
        "closed_streams",
        "compare_command",
        "compatibility",
        "early_exits",
        "foreign_checkpoints",
        "generated_images",
        "gpu_benchmark",
        "grid_runner",
        "imports",
        "license_policy",
        "method_option",
        "more_formats",
        "new_format",
        "not_finite",
        "own_teacher",
        "preparation",
        "reading_without_teacher",
        "plan_command",
        "pseudo_labels",
        "shard_training",
        "ship_option",
        "smaller_files",
        "student_weights",
        "suggest",
        "suggest_candidates",
        "table_of_labels",
        "teacher_cache",
        "tuned_for_int8",
        "unequal_folder",
        "unlabelled",
    },
}
"""Test files by folder that train, export or start programs for more than a few seconds."""

LONGEST_FILES = [
    # Both fork processes that train, which torch refuses where a backward pass has started threads before.
    "faults/kills",
    "hostile/hostile",
    "methods/contract",
    "train/processes",
    "student_weights",
    "smaller_files",
    "tuned_for_int8",
    "train/stop_and_resume",
    "unlabelled",
    "deploy/openvino_format",
    "foreign_checkpoints",
    "cli",
    "data/workers",
    "methods/lmcl",
    "generated_images",
    "method_option",
    "methods/afd",
    "methods/kdcl",
    "train/trainer",
    "deploy/variants",
    "bench_command",
    "compatibility",
    "deploy/backbone_files",
    "networks/rounding",
    "methods/mixskd",
    "methods/ffl",
    "bad_input",
]
"""They run first, since a file stays in one process: a long one that starts last leaves the others idle."""


def pytest_addoption(parser):
    parser.addoption("--hostile", type=int, default=200, metavar="N", help="damaged inputs of each kind")
    parser.addoption("--hostile-from", type=int, default=0, metavar="SEED", help="first of their seeds")
    parser.addoption("--kills", type=int, metavar="N", help="kills of each case of tests/faults")


@pytest.fixture
def hostile_seeds(request):
    """Seeds of the inputs of each kind in tests/hostile."""
    first = request.config.getoption("--hostile-from")
    return range(first, first + request.config.getoption("--hostile"))


@pytest.fixture
def random_kills(request):
    """Number of kills of each case in tests/faults; None: as few as the ordinary tests have."""
    return request.config.getoption("--kills")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Gives the number of processes for `-n auto`: one per granted core, also inside a container."""
    return min(granted_cores(), MOST_PROCESSES)


@pytest.fixture(autouse=True, scope="session")
def _caches(tmp_path_factory):
    """Gives the fixtures of modules and sessions a cache that is not the user's; yields the folder of it."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "shared"))
        yield folder


@pytest.fixture(autouse=True)
def _private_cache(_caches, monkeypatch):
    """Gives every test an empty cache, so that none reads or writes the user's."""
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(_caches / str(next(NUMBERS))))


@pytest.fixture(autouse=True)
def _functions_of_the_exporter_are_parsed_once():
    """Keeps the exporter's table of 500 functions, whose source it parses for a second at every export."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")  # not imported for its sake
    if exporter is None or isinstance(exporter.ONNXRegistry.from_torchlib, functools.partial):
        return
    parsed = functools.cache(exporter.ONNXRegistry.from_torchlib)
    exporter.ONNXRegistry.from_torchlib = staticmethod(functools.partial(_copy_of_table, parsed))


def _copy_of_table(parsed, **arguments):
    table = copy.copy(parsed(**arguments))
    table.functions = {target: list(functions) for target, functions in table.functions.items()}
    return table


@pytest.fixture
def downloads(monkeypatch, tmp_path_factory):
    """Lets a test download from a server of its own; weights of an earlier torchvision are not found."""
    monkeypatch.delenv("KDCOMPRESS_OFFLINE")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get("/".join(_folder_and_name(item.path)).lstrip("/"), len(ranks)))
    for item in items:
        folder, name = _folder_and_name(item.path)
        if name in SLOW_FILES.get(folder, ()):
            item.add_marker(pytest.mark.slow)
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _folder_and_name(path):
    """Returns the folder below `tests`, or "", and the file's name without `test_`."""
    return "" if path.parent == HERE else path.parent.name, path.stem.removeprefix("test_")
