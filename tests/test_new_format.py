"""A new export format is one file, its runtime included: every command finds it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompress import discovery
from kdcompress.bench.runtimes import default_runtime, known_runtimes
from kdcompress.cli import main
from kdcompress.deploy.files import format_of, formats
from kdcompress.deploy.gate import format_prefix
from kdcompress.report.card import write_card

FINISHED = Path(__file__).parent / "fixtures" / "e33f4e2" / "finished"

PLUGIN = '''"""A format of this test: an ONNX file under another name."""

import numpy
import onnxruntime

from kdcompress.deploy.formats import onnx
from kdcompress.deploy.gate import equal
from kdcompress.deploy.graph_size import graph_facts

SUFFIX = ".fake"
TITLE = "Fake"
RUNTIME = "fake-runtime"
RUNTIME_CLASS = "FakeRuntime"

write = onnx.write
open_ = onnx.open_


def gates(file, opset):
    return [equal("fake_gate", 1, 1, "looked at")]


def describe(path):
    facts = graph_facts(path)
    return {"params": facts.parameters, "macs": facts.macs, "shape": (1, 8, 8)}


class FakeRuntime:
    def load(self, path, threads, batch, shape):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return shape or [1, 8, 8]

    def run(self, images):
        return self.session.run(None, {self.session.get_inputs()[0].name: numpy.float32(images)})[0]

    def info(self):
        return {"provider": "fake", "version": "1"}
'''


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Adds the file to those that `discovery` finds."""
    path = tmp_path / "fake.py"
    path.write_text(PLUGIN)
    spec = importlib.util.spec_from_file_location("fake_format", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files, load = discovery._files, discovery.load

    def all_files(kind):
        return {**files(kind), **({"fake": (path, "")} if kind == "format" else {})}

    monkeypatch.setattr(discovery, "_files", all_files)
    monkeypatch.setattr(discovery, "load", lambda kind, name: module if name == "fake" else load(kind, name))


def test_every_format_says_its_suffix_title_and_runtime_in_its_header():
    assert [known.name for known in formats()][:2] == ["onnx", "safetensors"]
    assert len({known.suffix for known in formats()}) == len(formats())
    assert [known.artefact for known in formats()][:2] == ["student", "student (PyTorch)"]


@pytest.mark.usefixtures("fake")
def test_export_writes_and_proves_it_bench_times_it_and_evaluate_scores_it(tmp_path):
    out = tmp_path / "out"
    done = kdcompress("export", FINISHED, "--out", out, "--format", "onnx,fake", "--json", "-q")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "student.fake" in told["files"]
    gates = {gate["gate"] for gate in told["gates"]}
    assert {"fake_gate", "fake_top1_exported", "fake_parity_batch_3"} <= gates
    score = kdcompress("evaluate", out / "student.fake", "--recipe", "quickstart", "--json", "-q")
    assert score.exit_code == 0, score.output
    assert json.loads(score.stdout)["top1"] == told["student"]["top1"]
    timed = kdcompress(
        "bench", out / "student.fake", out / "student.onnx", "--threads", 1, "--rounds", 1, "--recipe",
        "quickstart", "--json", "-q",
    )  # fmt: skip
    assert timed.exit_code == 0, timed.output
    document = json.loads(timed.stdout)
    artefacts = document["artefacts"]
    assert {(line["artefact"], line["runtime"]) for line in document["results"]} == {
        (next(name for name, entry in artefacts.items() if entry["file"].endswith(".fake")), "Fake"),
        (next(name for name, entry in artefacts.items() if entry["file"].endswith(".onnx")), "onnxruntime"),
    }
    by_file = {Path(entry["file"]).name: entry for entry in artefacts.values()}
    assert by_file["student.fake"]["params"] == by_file["student.onnx"]["params"]
    assert by_file["student.fake"]["accuracy"]["top1"] == told["student"]["top1"]


@pytest.mark.usefixtures("fake")
def test_the_model_card_lists_it(tmp_path):
    run = Path(shutil.copytree(FINISHED, tmp_path / "run"))
    assert "`student.fake`" not in write_card(run).read_text(encoding="utf-8")
    (run / "student.fake").write_bytes(b"x")
    assert "`student.fake`" in write_card(run).read_text(encoding="utf-8")


@pytest.mark.usefixtures("fake")
def test_the_lists_are_computed_of_the_files():
    assert format_of(Path("a.fake")) == "fake"
    assert default_runtime(".fake") == "fake-runtime"
    assert "fake-runtime" in known_runtimes()
    assert "Fake" in {known.title for known in formats()}


def test_the_gates_of_a_format_begin_with_its_name_without_hyphens():
    assert format_prefix("my-format") == "my_format_"
