"""`export.exits` through the command line: a further file, and a student that is the same without it."""

from __future__ import annotations

import hashlib
import json

import pytest
from click.testing import CliRunner

from kdcompress.cli import main

TINY = (
    "distill", "--recipe", "quickstart", "--set", "train.max_steps=8", "--set", "bench.rounds=1",
    "--threads", "1",
)  # fmt: skip


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(folder, *more):
    done = kdcompress(*TINY, "--method", "byot", "--out", folder, *more)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exits") / "run"
    done = run(folder, "--set", "export.exits=true", "--baseline")
    return folder, done.stdout


def read(folder, name):
    return json.loads((folder / name).read_text())


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.exhaustive
def test_the_students_files_are_the_same_without_exits(finished, tmp_path):
    folder, _ = finished
    run(tmp_path / "plain")
    for name in ("student.onnx", "student.safetensors", "config.json", "labels.json", "golden.npz"):
        assert digest(folder / name) == digest(tmp_path / "plain" / name), name


def test_each_exit_is_scored_measured_timed_and_in_the_manifest(finished):
    folder, _ = finished
    results, bench = read(folder, "results.json"), read(folder, "bench.json")
    exits = results["exits"]["exits"]
    assert [(entry["name"], entry["stage"]) for entry in exits] == [("exit1", "stage1"), ("exit2", "stage2")]
    times = {row["artefact"]: row["latency_ms"]["p50"] for row in bench["results"]}
    for entry in exits:
        assert 0 <= entry["top1"] <= 1
        assert entry["n"] == results["student"]["n"]
        assert entry["macs"] < results["student"]["macs"]
        assert entry["latency_ms"] == times[entry["name"]] > 0
        assert bench["artefacts"][entry["name"]]["macs"] == entry["macs"]
        assert entry["sentence"].startswith(f"{entry['name']} ({entry['stage']}): top-1 ")
    assert bench["failures"] == []
    listed = read(folder, "manifest.json")["files"]
    assert listed["exits.onnx"]["sha256"] == digest(folder / "exits.onnx")
    gates = read(folder, "gates.json")["gates"]
    assert sum(gate["gate"].startswith("exits_exit2_") for gate in gates) >= 8
    assert not list((folder / "checkpoints").glob("*.onnx"))


def test_the_pages_and_the_summary_tell_of_each_exit(finished):
    folder, printed = finished
    card, page = ((folder / name).read_text() for name in ("README.md", "report.html"))
    for entry in read(folder, "results.json")["exits"]["exits"]:
        assert f"{entry['name']} " in printed
        for text in (card, page):
            assert f"exits.onnx, {entry['name']} ({entry['stage']})" in text
    assert "`exits.onnx`" in card


def test_the_baseline_has_none(finished):
    assert not (finished[0] / "baseline" / "exits.onnx").exists()


def test_a_new_export_says_that_the_file_stays_in_the_run(finished, tmp_path):
    folder, _ = finished
    done = kdcompress("export", folder, "--out", tmp_path / "again", "--format", "onnx")
    assert done.exit_code == 0, done.output
    told = "exits.onnx: is not written again, since it has weights that are in the run's checkpoint alone"
    assert told in done.stderr
    assert not (tmp_path / "again" / "exits.onnx").exists()
    assert digest(tmp_path / "again" / "student.onnx") == digest(folder / "student.onnx")


def test_a_method_without_exits_is_exit_2_with_those_that_have_some_and_writes_nothing(tmp_path):
    done = kdcompress(*TINY, "--method", "dml", "--set", "export.exits=true", "--out", tmp_path / "run")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith(
        "export.exits: the method 'dml' has no early exits; choose one that has (byot), or take it out "
        "(--set export.exits=false)"
    )
    assert not list(tmp_path.iterdir())


def test_exits_without_the_onnx_format_are_exit_2(tmp_path):
    done = kdcompress(
        *TINY, "--method", "byot", "--set", "export.exits=true", "--set", "export.formats=[safetensors]",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "export.exits: is made from student.onnx; add onnx to export.formats" in done.stderr
