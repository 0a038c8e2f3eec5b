"""OpenVINO's files and `student.image.onnx` as scripts use them: in a run, after one, and refused."""

from __future__ import annotations

import importlib.util
import json

import pytest
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.run_folder import RunFolder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)

TINY = (
    "distill", "--recipe", "quickstart", "--threads", 1, "--set", "train.max_steps=2",
    "--set", "teacher.model=cifar/resnet8",  # quicker to export than the recipe's
    "--set", "bench.rounds=1", "--set", "teacher.min_top1=0",
    "--set", "export.formats=[openvino,onnx,safetensors]",
    "--set", "export.embed_preprocess=resize",
)  # fmt: skip
MORE = {"student.xml", "student.bin", "student.image.onnx"}


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        done = kdcompress(*TINY, "--out", folder / "run")
    assert done.exit_code == 0, done.stderr
    return folder / "run"


def test_a_run_ships_times_and_vouches_for_them(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert set(manifest["files"]) >= MORE
    assert RunFolder(finished).finished() is not None
    bench = json.loads((finished / "bench.json").read_text())
    timed = {(result["artefact"], result["runtime"]) for result in bench["results"]}
    assert {("student (OpenVINO)", "openvino"), ("student (image)", "onnxruntime")} <= timed
    gates = json.loads((finished / "gates.json").read_text())["gates"]
    assert all(gate["passed"] for gate in gates)
    assert {"openvino_parity_batch_3", "image_pixels_max"} <= {gate["gate"] for gate in gates}


def test_evaluate_and_bench_take_the_graph_of_openvino(finished):
    scores = []
    for name in ("student.xml", "student.onnx"):
        done = kdcompress("evaluate", finished / name, "--recipe", "quickstart", "--json")
        assert done.exit_code == 0, done.stderr
        scores.append(json.loads(done.stdout)["top1"])
    assert scores[0] == scores[1]
    files = (finished / "student.onnx", finished / "student.xml")
    done = kdcompress("bench", *files, "--threads", 1, "--rounds", 1, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert {result["artefact"] for result in document["results"]} == {"student", "student (OpenVINO)"}
    macs = {entry["macs"] for entry in document["artefacts"].values()}
    assert len(macs) == 1
    assert None not in macs


def test_export_adds_the_image_file_where_the_other_files_go(finished, tmp_path):
    done = kdcompress("export", finished, "--embed-preprocess", "resize", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["files"]) >= {"student.onnx", "student.image.onnx"}
    assert (tmp_path / "out" / "student.image.onnx").read_bytes() == (
        finished / "student.image.onnx"
    ).read_bytes()
    assert "image_top1" in {gate["gate"] for gate in told["gates"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "openvin"), "unknown format 'openvin'; did you mean 'openvino'?"),
        (
            ("--format", "openvino", "--embed-preprocess", "resize"),
            "made from student.onnx; add onnx to --format",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_written(finished, tmp_path, arguments, message):
    done = kdcompress("export", finished, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_without_onnx_cannot_ask_for_the_image_file(tmp_path):
    done = kdcompress(*TINY, "--set", "export.formats=[safetensors]", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "export.embed_preprocess: is made from student.onnx; add onnx to export.formats" in done.stderr


def test_a_run_hears_of_a_missing_package_before_it_trains(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    done = kdcompress(*TINY, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "export.formats: openvino needs openvino: pip install 'kdcompress[openvino]'" in done.stderr
    assert not (tmp_path / "run").exists()
