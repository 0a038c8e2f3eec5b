"""Does the verdict say what is so? On noise that a real machine made, in as many runs as it takes to know.

`data/noise-*.json` hold the round medians of four copies of one file, timed against each other by
benchmarks/record_noise.py on two cores of a virtual machine: `shared` beside one other busy process, and
`overloaded` beside so many (load 6) that the timed process got a core for a third of its turns. A run takes
21 rounds in a row of three copies drawn at random, as baseline, as its A/A control and as what is compared,
and has them judged by the code that makes every document. Nothing is assumed of the noise: what one round
shares, what lasts and what is peculiar to a process are all in it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from kdcompress.bench.cell import Artefact, Block, Cell, CellRole
from kdcompress.bench.results import document
from kdcompress.tools.bench import PROTOCOL, BenchRequest

DATA = Path(__file__).with_name("data")
ROUNDS = BenchRequest(("file",)).rounds
LOADED = {"provider": "scripted", "shape": [3, 224, 224], "images": "real", "base_mb": 1.0}
LOADED |= {"import_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0}


@pytest.fixture(scope="module", params=["shared", "overloaded"])
def noise(request):
    return json.loads((DATA / f"noise-{request.param}.json").read_text())


def _cell(name, medians_ms, copy=CellRole.MEASURED):
    cell = Cell(Artefact(name, Path(name), ("scripted",)), "scripted", 1, 1, copy, dict(LOADED))
    cell.blocks = [Block([median], 1.0, 1.0, 0, 0.0, 2.0) for median in medians_ms]
    return cell


def _verdicts(noise, slower, runs, seed):
    """Of so many runs in which what is compared takes `slower` times as long as what was recorded."""
    draw, copies = random.Random(seed), noise["medians_ms"]
    said = []
    for _ in range(runs):
        start = draw.randrange(len(copies[0]) - ROUNDS + 1)
        base, control, own = (copies[i][start : start + ROUNDS] for i in draw.sample(range(len(copies)), 3))
        made = document(
            target={"kind": "local"},
            artefacts={},
            cells=[
                _cell("base", base),
                _cell("base", control, CellRole.CONTROL),
                _cell("own", [slower * median for median in own]),
            ],
            failures=[],
            baseline="base",
            env={},
            protocol={"rounds": ROUNDS},
            warnings=[],
        )
        assert made["aa"]["ci95"][0] < made["aa"]["ci95"][1]  # the control is another copy
        said.append(made["results"][1]["vs_baseline"]["verdict"])
    return said


def test_the_noise_was_recorded_as_the_command_measures(noise):
    assert (noise["protocol"]["block_s"], noise["protocol"]["turns"]) == (PROTOCOL.block_s, PROTOCOL.turns)
    assert len(noise["medians_ms"]) == 4
    assert {len(row) for row in noise["medians_ms"]} == {noise["protocol"]["rounds"]}
    assert noise["ratio_sd"] > 0.01  # it is noise


def test_the_same_file_twice_is_no_difference_in_95_of_100_runs(noise):
    said = _verdicts(noise, 1.0, runs=100, seed=0)
    assert said.count("no difference") >= 95


@pytest.mark.parametrize(("factor", "verdict"), [(1.05, "slower"), (1 / 1.05, "faster")])
def test_five_per_cent_are_found_in_45_of_50_runs(factor, verdict):
    noise = json.loads((DATA / "noise-shared.json").read_text())
    assert _verdicts(noise, factor, runs=50, seed=1).count(verdict) >= 45


def test_on_an_overloaded_machine_ten_per_cent_are_found_and_nothing_is_found_the_wrong_way_round():
    noise = json.loads((DATA / "noise-overloaded.json").read_text())
    assert noise["quality"] == "noisy"  # which the document says, and the command line too
    assert _verdicts(noise, 1.10, runs=50, seed=2).count("slower") >= 45
    assert "faster" not in _verdicts(noise, 1.05, runs=50, seed=3)


def test_one_per_cent_is_within_what_is_no_difference(noise):
    assert _verdicts(noise, 1.01, runs=100, seed=4).count("no difference") >= 95
