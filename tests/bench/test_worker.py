"""Scheduler and worker can be copied to a board that has an old Python, numpy and a runtime, and no more."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from kdcompress.bench import bundle
from kdcompress.bench.device import agent, check, scheduler, worker

TRAVELLING = {**bundle.PREFLIGHT_FILES, **bundle.DRIVER_FILES, "agent.py": Path(agent.__file__)}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in TRAVELLING.items()}
SCRIPTED = Path(__file__).with_name("scripted_runtime.py")


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_python_3_8(name):
    assert ast.parse(SOURCES[name], feature_version=(3, 8)).body


def test_what_is_started_by_hand_is_read_by_a_python_too_old_for_the_rest():
    assert ast.parse(SOURCES["run.py"], feature_version=(3, 4)).body
    assert "__future__" not in SOURCES["run.py"]  # annotations: 3.7


@pytest.mark.parametrize("name", SOURCES)
def test_at_its_top_it_imports_the_standard_library_numpy_and_what_travels_with_it(name):
    imported = set()
    for node in ast.parse(SOURCES[name]).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "kdcompress.bench.device":
            imported |= {f"kdcompress.bench.device.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    ours = {path.removesuffix(".py").replace("/", ".") for path in TRAVELLING}
    others = {module for module in imported if module.split(".")[0] not in sys.stdlib_module_names}
    needs_numpy = name.endswith(("scheduler.py", "worker.py"))
    assert others - ours == ({"numpy"} if needs_numpy else set())


@pytest.mark.parametrize(("opset", "ir"), [(7, 4), (18, 9), (60, 60)])
def test_the_tiny_model_is_what_onnx_reads_it_to_be(opset, ir):
    model = onnx.load_from_string(check.tiny_model(opset, ir))
    assert (model.ir_version, model.opset_import[0].version) == (ir, opset)
    assert [(n.op_type, *n.input, *n.output) for n in model.graph.node] == [("Identity", "x", "y")]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "y"]


def test_its_peak_memory_is_its_own_in_megabytes():
    assert 10 < worker.peak_mb() < 100_000


def _plan(**cells):
    """Of scripted cells, by artefact: what is not the same for all of them."""
    usual = {
        "control": False,
        "runtime": f"{SCRIPTED}:Scripted",
        "threads": 1,
        "batch": 1,
        "shape": None,
    }
    usual |= {"images": None, "reference": None, "tolerance": None, "count": 0, "group": None, "exact": True}
    protocol = {"rounds": 3, "block_s": 0.01, "turns": 2, "min_calls": 4, "warmup_s": 0, "warmup_calls": 2}
    protocol |= {"gap_ms": 0, "timeout_s": 60, "seed": 0}
    protocol |= {"parity_limit": 5e-3, "parity_vary": 1e-4, "parity_rounding": 2e-6}
    entries = [usual | {"artefact": name, "group": name} | entry for name, entry in cells.items()]
    return {"protocol": protocol, "cells": entries, "allow_code": False}


RUN_PLAN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
import scheduler
raw = scheduler.run(json.loads((folder / "plan.json").read_text()), str(folder))
(folder / "raw.json").write_text(json.dumps(raw))
"""


def test_copied_elsewhere_they_carry_out_a_plan_alone(tmp_path):
    for file in (scheduler.__file__, worker.__file__, SCRIPTED):
        shutil.copy(file, tmp_path)
    np.save(tmp_path / "images.npy", np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 1, 2, 2))
    (tmp_path / "slow.script").write_text("calls 4")
    (tmp_path / "bad.script").write_text("raise")
    runtime = str(tmp_path / "scripted_runtime.py") + ":Scripted"
    plan = _plan(
        slow={"file": "slow.script", "images": "images.npy", "runtime": runtime},
        bad={"file": "bad.script", "runtime": runtime},
    )
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    # -I: nothing of the folder that this test runs in, nor of its environment.
    command = [sys.executable, "-IB", "-c", RUN_PLAN, tmp_path]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # for the worker that the process starts
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    raw = json.loads((tmp_path / "raw.json").read_text())
    slow, bad = raw["cells"]
    assert bad is None
    assert raw["failures"] == [
        {"cell": 1, "stage": "load", "type": "ValueError", "message": "a graph of two lines"}
    ]
    assert slow["loaded"]["images"] == "real"
    assert [block["samples_ns"] for block in slow["blocks"]] == [[4_000_000] * 4] * 3  # 2 turns of 5 ms
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.script", "images.npy", "plan.json", "raw.json", "scheduler.py", "scripted_runtime.py",
        "slow.script", "worker.py",
    ]  # fmt: skip


def _run(tmp_path, scripts, **fields):
    for name, script in scripts.items():
        (tmp_path / name).write_text(script)
    cells = {name: {"file": name} | fields for name in scripts}
    return scheduler.run(_plan(**cells), str(tmp_path))


def test_a_wrong_answer_is_not_timed(tmp_path):
    scripts = {"first": "calls 1", "near": "shifted 1e-7", "far": "shifted 0.1"}
    raw = _run(tmp_path, scripts, group="one", artefact="one")
    first, near, far = raw["cells"]
    assert first["parity"] is None
    assert near["parity"]["within"]
    assert near["parity"]["to"] == f"one ({SCRIPTED}:Scripted, threads 1, batch 1)"
    assert far is None
    (failure,) = raw["failures"]
    assert (failure["cell"], failure["stage"], failure["type"]) == (2, "parity", "Mismatch")
    assert "over 8 images; not timed" in failure["message"]


def test_fewer_bits_are_measured_with_their_error(tmp_path):
    raw = _run(tmp_path, {"a": "calls 1", "b": "shifted 0.1"}, group="one", artefact="one", exact=False)
    assert raw["failures"] == []
    assert not raw["cells"][1]["parity"]["within"]
    assert 0.1 < raw["cells"][1]["parity"]["max_err_over_spread"] < 1


def test_other_networks_are_not_compared(tmp_path):
    raw = _run(tmp_path, {"a": "calls 1", "b": "shifted 9"})
    assert [cell["parity"] for cell in raw["cells"]] == [None, None]


def test_a_reference_that_hardly_varies_certifies_nothing(tmp_path):
    np.save(tmp_path / "same.npy", np.full((4, 1, 2, 2), 0.5, np.float32))
    scripts = {"a": "calls 1", "b": "shifted 0.01"}
    fields = {"group": "one", "artefact": "one", "images": str(tmp_path / "same.npy"), "count": 4}
    raw = _run(tmp_path, scripts, **fields)
    assert raw["failures"] == []  # nor does it refuse anything
    assert not raw["cells"][1]["parity"]["varies"]


def test_dying_in_the_middle_leaves_nothing_half_measured(tmp_path):
    raw = _run(tmp_path, {"a": "calls 1", "dies": "die 9", "b": "calls 1"})
    assert raw["cells"][1] is None
    assert [len(cell["blocks"]) for cell in raw["cells"] if cell] == [3, 3]
    (failure,) = raw["failures"]
    assert (failure["cell"], failure["stage"], failure["type"]) == (1, "block", "Crashed")
    assert failure["message"].startswith("the worker ended with code 7")


def test_what_a_runtime_leaves_behind_is_ended_with_it(tmp_path):
    (tmp_path / "a").write_text("forks")
    began = time.monotonic()
    with scheduler.Session(1) as session:
        arguments = {"file": str(tmp_path / "a"), "batch": 1, "shape": None, "images": None, "seed": 0}
        session.ask("load", 60, runtime=f"{SCRIPTED}:Scripted", **arguments)
        group = session.pid
        assert os.getpgid(session.pid) == group != os.getpgid(0)
    assert time.monotonic() - began < 60  # the copy holds the pipes open for 600 s
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a copy of the worker outlived it by 10 s")
