"""benchmarks/gpu.py runs as it is: its part for a CPU, on tiny networks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def gpu():
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_benchmark"]


def test_it_prints_one_table(gpu, capsys):
    gpu.main(["--device", "cpu", "--tiny", "--no-compile", "--seconds", "0.1"])
    _, _, heads, rule, row = capsys.readouterr().out.splitlines()
    assert heads.count("|") == rule.count("|") == row.count("|") == len(gpu.HEADS) + 1
    values = dict(zip(gpu.HEADS, map(str.strip, row.strip("|").split("|")), strict=True))
    assert values["step"] == "kd, resnet14 → resnet8, 8 px, batch 8"
    assert values["waits"] == values["compiled"] == "–"
    assert all(float(values[name].replace(",", "")) > 0 for name in gpu.HEADS[3:8])


def test_it_counts_the_operations_of_a_step(gpu):
    batch, whole = gpu.operations(gpu.TINY[0])
    # An epoch's draws are made at once: a batch takes 77 operations where it draws for itself.
    assert 5 < batch < 30
    assert whole > batch
