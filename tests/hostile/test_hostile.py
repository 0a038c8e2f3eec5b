"""Whatever a stranger hands over ends in one clear message with an exit code of the contract."""

from __future__ import annotations

import collections
import sys

import pytest

from hostile import cases, forked

ABOVE_MB = 1024
"""Memory above that of the input that took the least."""


@pytest.mark.parametrize("kind", cases.KINDS)
def test_no_input_ends_in_a_traceback_a_hang_or_a_strange_file(kind, hostile_inputs, tmp_path):
    codes, failures, least = collections.Counter(), [], None
    for seed in range(hostile_inputs):
        ending = forked.run(cases.KINDS[kind], seed, tmp_path / "case")
        codes[ending.code] += 1
        least = ending.megabytes if least is None else min(least, ending.megabytes)
        problem = ending.problem(least + ABOVE_MB)
        if problem is not None:
            failures.append(f"{kind} {seed}: {problem}: {ending.output[-1500:]}")
    sys.stdout.write(f"{kind}: {hostile_inputs} inputs, exit codes {dict(sorted(codes.items()))}\n")
    assert not failures, f"{len(failures)} of {hostile_inputs}\n" + "\n".join(failures[:5])
    assert len(codes) > 1 or hostile_inputs < 50, "no input was damaged enough, or all were refused"
