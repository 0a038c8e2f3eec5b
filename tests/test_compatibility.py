"""Run folders and documents of earlier versions are read by this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import kdcompress as package
from kdcompress.cli import main
from kdcompress.run_folder import RunFolder

FIXTURES = Path(__file__).parent / "fixtures" / "e33f4e2"


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def finished(tmp_path):
    return Path(shutil.copytree(FIXTURES / "finished", tmp_path / "finished"))


def test_nothing_of_the_machine_that_made_them_is_in_the_fixtures():
    for file in (path for path in FIXTURES.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not any(place in content for place in (b"/root/", b"/tmp/", b"/home/")), file


def test_the_manifest_agrees_with_the_files(finished):
    assert RunFolder(finished).finished() is not None


def test_report_writes_the_pages_again(finished):
    for name in ("report.html", "README.md"):
        (finished / name).unlink()
    done = kdcompress("report", finished)
    assert done.exit_code == 0, done.output
    assert "20.6" in (finished / "report.html").read_text(encoding="utf-8")
    assert RunFolder(finished).finished() is not None


@pytest.mark.parametrize("name", ["student.onnx", "student.safetensors", ""])
def test_evaluate_gives_the_recorded_accuracy(finished, name):
    done = kdcompress("evaluate", finished / name, "--recipe", "quickstart", "--json", "-q")
    assert done.exit_code == 0, done.output
    recorded = json.loads((finished / "results.json").read_text(encoding="utf-8"))["student"]
    assert json.loads(done.stdout)["top1"] == recorded["top1"]


def test_export_writes_and_proves_the_files_again(finished, tmp_path):
    done = kdcompress("export", finished, "--out", tmp_path / "again", "--json", "-q")
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["files"]) >= {"student.onnx", "student.safetensors", "config.json"}


def test_load_gives_the_network_whose_outputs_the_file_has(finished):
    plain, spec = package.load(finished)
    graph, graph_spec = package.load(finished / "student.onnx")
    images = torch.rand(3, spec.channels, spec.height, spec.width)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        expected = plain((images - mean) / std)
    assert graph_spec.height == spec.height
    torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.exhaustive
def test_bench_compares_with_the_earlier_document(finished):
    done = kdcompress(
        "bench", finished / "student.onnx", finished / "student.safetensors",
        "--baseline", finished / "student.safetensors",
        "--threads", 1, "--rounds", 1, "--compare", FIXTURES / "bench.json", "--json", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    compared = json.loads(done.stdout)["compare"]
    assert {row["artefact"] for row in compared["results"]} == {"student", "student (PyTorch)"}


def test_a_finished_run_has_nothing_left_to_resume(finished):
    recorded = (finished / "recipe.yaml", "--out", finished, "--resume", "--json", "-q")
    done = kdcompress("distill", "--recipe", *recorded)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["student"]["file"] == "student.onnx"


def test_a_resume_of_the_interrupted_run_goes_on_or_is_refused_with_one_message(tmp_path):
    run = Path(shutil.copytree(FIXTURES / "interrupted", tmp_path / "interrupted"))
    done = kdcompress("distill", "--recipe", run / "recipe.yaml", "--out", run, "--resume", "--json", "-q")
    assert done.exit_code in {0, 2}, done.output
    if done.exit_code == 2:
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.strip().splitlines()) == 1
    else:
        assert json.loads(done.stdout)["student"]["top1"] is not None
