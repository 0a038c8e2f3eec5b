"""The worker can be copied to a board that has an old Python, numpy and a runtime, and nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from kdcompress.bench import worker

SOURCE = Path(worker.__file__).read_text(encoding="utf-8")


def test_the_worker_is_python_3_8():
    assert ast.parse(SOURCE, feature_version=(3, 8)).body


def test_at_its_top_the_worker_imports_the_standard_library_and_numpy_alone():
    imported = set()
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_its_peak_memory_is_its_own_in_megabytes():
    assert 10 < worker.peak_mb() < 100_000
