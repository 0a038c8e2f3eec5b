"""A run that is killed at random moments, and resumed until it is finished, ends in the same bits."""

from __future__ import annotations

import copy
import random
import sys

import kills
import pytest

from kdcompress.run import delivery

LONG = kills.CASES.keys() - {"kd"}
"""Their ways through a run are those of others, or take longest."""
CHAIN = 4
"""Kills of one run; more of them begin another."""
IMPORTED = []
KILLS = 2
"""Of each case, unless `--kills` says otherwise."""


@pytest.fixture(autouse=True)
def _everything_is_imported(_functions_of_the_exporter_are_parsed_once, tmp_path_factory, monkeypatch):
    if not IMPORTED:
        monkeypatch.setattr(delivery, "measure", lambda *_, **__: copy.deepcopy(kills.MEASURED))
        kills.warm(tmp_path_factory.mktemp("warm"))
        IMPORTED.append(True)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] if name in LONG else []) for name in kills.CASES],
)
def test_a_run_that_is_killed_and_resumed_ends_in_the_same_bits(name, tmp_path, random_kills):
    case = kills.CASES[name]
    untouched = kills.attempt(case, tmp_path / "untouched")
    assert untouched.code == 0, untouched.output
    expected = kills.weights(tmp_path / "untouched")
    assert any(path.endswith("student.onnx") for path in expected)
    wanted = KILLS if random_kills is None else random_kills
    done = chain = 0
    while done < wanted:
        rng = random.Random(f"{name} {chain}")
        # Later attempts find less to do, so that a kill at the same moment comes at a later step.
        moments = [rng.uniform(0.02, 0.9) * untouched.seconds for _ in range(min(CHAIN, wanted - done))]
        done += kills.killed_run(case, tmp_path / "killed", moments)
        found = kills.weights(tmp_path / "killed")
        assert found.keys() == expected.keys()
        different = [path for path in expected if found[path] != expected[path]]
        assert not different, (name, chain, moments, different)
        chain += 1
        assert chain <= 3 * wanted, "the run ends before it is killed"
    sys.stdout.write(f"{name}: {done} kills, {chain} runs, {len(expected)} files of the same bits\n")
