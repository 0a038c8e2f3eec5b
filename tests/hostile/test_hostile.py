"""Whatever a stranger hands over ends in one clear message with an exit code of the contract."""

from __future__ import annotations

import collections
import gc
import importlib.util
import sys

import pytest

from hostile import cases, forked, valid

ABOVE_MB = 1024
"""Memory above that of a valid input of the kind."""


@pytest.mark.parametrize("kind", cases.KINDS)
def test_no_input_ends_in_a_traceback_a_hang_or_a_strange_file(kind, hostile_seeds, tmp_path):
    if kind == "openvino_files" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    sound = forked.prepare(cases.KINDS[kind], valid.INPUTS[kind], tmp_path / "case")
    assert [ending.code for ending in sound] == [0] * len(sound), "\n".join(ending.output for ending in sound)
    most = max(ending.megabytes for ending in sound) + ABOVE_MB
    codes, failures = collections.Counter(), []
    try:
        for seed in hostile_seeds:
            ending = forked.run(cases.KINDS[kind], seed, tmp_path / "case")
            codes[ending.code] += 1
            problem = ending.problem(most)
            if problem is not None:
                failures.append(f"{kind} {seed}: {problem}: {ending.output[-1500:]}")
    finally:
        gc.unfreeze()
    count = len(hostile_seeds)
    sys.stdout.write(f"{kind}: {count} inputs, exit codes {dict(sorted(codes.items()))}\n")
    assert not failures, f"{len(failures)} of {count}\n" + "\n".join(failures[:5])
    assert len(codes) > 1 or count < 50, "no input was damaged enough, or all were refused"
