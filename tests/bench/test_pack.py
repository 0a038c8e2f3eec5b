"""A benchmark that is carried by hand: written here, carried out by a bare Python, merged here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from bench import ssh_server
from bench.mean_classifier import mean_classifier
from click.testing import CliRunner

from kdcompress.bench import bundle as bundling
from kdcompress.bench.device import main as run
from kdcompress.bench.measure import Protocol
from kdcompress.cli import main
from kdcompress.tools import bench as timing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="carried out on Linux and macOS")


@pytest.fixture(autouse=True, scope="module")
def _short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "PROTOCOL", Protocol(block_s=0.01, turns=1, min_calls=2, warmup_s=0, gap_ms=0))
        yield


def kdcompress(*arguments):
    return CliRunner().invoke(main, ["bench", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return ssh_server.full_python(tmp_path_factory.mktemp("full") / "venv")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Unpacked somewhere else, and never changed."""
    home, away = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("away")
    slow, quick = mean_classifier(home / "a.onnx"), mean_classifier(home / "b.onnx", opset=17)
    done = kdcompress(
        slow, quick, "--baseline", slow, "--threads", "1,all,999", "--rounds", 1, "--target", f"pack:{away}"
    )
    assert done.exit_code == 0, done.stderr
    assert "kdcompress bench --merge result.json" in done.stdout
    with zipfile.ZipFile(away / "kdcompress-bench.zip") as archive:
        archive.extractall(away)
        for name in archive.namelist():
            assert str(home).encode() not in archive.read(name), f"{name} tells where it was made"
    return away / "kdcompress-bench"


@pytest.fixture(scope="module")
def result(packed, python):
    done = _carried_out(python, packed)
    assert (done.returncode, done.stderr) == (0, "")
    assert "timing a, b in 1 rounds" in done.stdout
    assert "timing round 1 of 1" in done.stdout
    return packed / "result.json"


def test_what_comes_back_becomes_the_same_document(result, tmp_path):
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"
    done = kdcompress("--merge", result, "--out", out, "--plot", plot, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text())
    assert plot.read_text().startswith("<svg")
    assert (document["schema"], document["target"]) == ("kdcompress.bench/1", {"kind": "pack"})
    assert set(document["env"]["runtimes"]) == {"onnxruntime"}
    cores = document["env"]["granted_cores"]
    assert document["protocol"]["threads"] == sorted({1, cores})
    assert any("threads=999" in warning for warning in document["warnings"])
    assert [(r["artefact"], r["threads"]) for r in document["results"]] == [
        (name, threads) for name in "ab" for threads in sorted({1, cores})
    ]
    assert all(r["vs_baseline"]["name"] == "a" for r in document["results"] if r["artefact"] == "b")
    assert document["aa"]["artefact"] == "a"


def test_it_can_be_compared_and_judged_like_any_other(result, tmp_path):
    assert kdcompress("--merge", result, "--out", tmp_path / "out.json").exit_code == 0
    done = kdcompress(
        "--merge", result, "--compare", tmp_path / "out.json", "--fail-if", "p50 < old", "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert {row["ratio"] for row in json.loads(done.stdout)["compare"]["results"]} == {1.0}
    done = kdcompress("--merge", result, "--fail-if", "b.rss > 1MB")
    assert (done.exit_code, "b (onnxruntime fp32" in done.stderr) == (3, True)
    done = kdcompress("--merge", result, "--fail-if", "c.rss > 1MB")
    assert (done.exit_code, "no artefact 'c'" in done.stderr) == (2, True)


def test_what_is_damaged_or_foreign_or_newer_is_refused(result, tmp_path):
    text = result.read_text()
    told = json.loads(text)
    newer = told | {"schema": "kdcompress.bench-result/2"}
    empty = run.with_digest({"job": {}, "raw": {}})
    for content, message in (
        (text[: len(text) // 2], "is not valid JSON"),
        (text.replace('"samples_ns": [', '"samples_ns": [1, ', 1), "its content is not what was written"),
        (json.dumps(newer), "schema 'kdcompress.bench-result/2'; this version of kdcompress reads"),
        (
            json.dumps({"schema": "kdcompress.bench/1"}),
            "expected the result.json that run.py of a pack wrote",
        ),
        ("[" * 100_000, "is nested too deeply"),
        (json.dumps(empty), "is damaged: job: lacks the key 'tool'"),
        ("[]", "schema None"),
    ):
        path = tmp_path / "result.json"
        path.write_text(content)
        done = kdcompress("--merge", path)
        assert (done.exit_code, message in done.stderr) == (2, True), (message, done.stderr, done.exception)


def test_a_file_damaged_on_its_way_is_not_measured(packed, python, tmp_path):
    away = _copied(packed, tmp_path)
    (away / "files/0/model.onnx").write_bytes(b"cut off")
    done = _carried_out(python, away)
    assert done.returncode == 3
    assert "files/0/model.onnx is damaged or not the file that was packed" in done.stderr
    assert not (away / "result.json").exists()


def test_what_the_other_machine_lacks_is_said_there(packed, python, tmp_path):
    away, python_that_has_all = _copied(packed, tmp_path), python
    for packages, absent in (((), "numpy"), ((np,), "onnxruntime")):
        python = ssh_server.bare_python(tmp_path / absent, *packages)
        done = _carried_out(python, away)
        assert done.returncode == 2
        assert done.stderr.startswith(f"there is no {absent} here: install it")
    needs = json.loads((away / "needs.json").read_text())
    needs["files"][0]["opset"] = 60
    (away / "needs.json").write_text(json.dumps(needs))
    done = _carried_out(python_that_has_all, away)
    assert done.returncode == 2
    assert " here supports opset <= " in done.stderr


PARENT_GONE = """
import shutil, sys
from kdcompress.bench.device import main
main.HERE, remove, calls = sys.argv[1], shutil.rmtree, []
def rmtree(path, ignore_errors):
    calls.append(path)
    if len(calls) == 3:
        remove(path)
shutil.rmtree = rmtree
main._exit_when_parent_exits()
"""


def test_a_folder_that_is_still_written_to_is_removed_again_until_it_is_gone(tmp_path):
    """Workers write until they die, and may fill the folder while it is being removed."""
    (tmp_path / "pack").mkdir()
    command = [sys.executable, "-c", PARENT_GONE, tmp_path / "pack"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert not (tmp_path / "pack").exists()


def test_the_same_order_packs_to_the_same_bytes(tmp_path):
    file = mean_classifier(tmp_path / "a.onnx")
    packs = []
    for name in ("one", "two"):
        done = kdcompress(file, "--target", f"pack:{tmp_path / name}", "--json")
        told = json.loads(done.stdout)
        assert told["schema"] == "kdcompress.bench-pack/1"
        packs.append(told["sha256"])
    assert packs[0] == packs[1]


@pytest.mark.parametrize("place", ["taken", "taken/deeper", "dead/deeper", "\0"])
def test_where_no_folder_can_be_made_one_message_says_so(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "dead").symlink_to("dead")
    model = mean_classifier(tmp_path / "a.onnx")
    done = kdcompress(model, "--rounds", 1, "--target", f"pack:{place}")
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.count("Error: ") == 1
    assert (place in done.stderr) != (place == "\0")
    assert "--out" not in done.stderr
    assert (tmp_path / "taken").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"taken", "dead", "a.onnx", "a.onnx.data"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "2"], "--threads: was said when the pack was made"),
        (["--runtime", "openvino"], "--runtime: was said when the pack was made"),
        (["--target", "ssh://board"], "--target: was said when the pack was made"),
        (["--set", "a=b"], "--set: was said when the pack was made"),
        (["file.onnx"], "FILE: was said when the pack was made"),
    ],
)
def test_merging_measures_nothing_so_it_takes_no_order(options, message):
    done = kdcompress("--merge", "result.json", *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_runtime_that_cannot_travel_is_refused(tmp_path):
    file = mean_classifier(tmp_path / "a.onnx")
    done = kdcompress(file, "--target", f"pack:{tmp_path}", "--runtime", "mine.py:Mine")
    assert done.exit_code == 2
    assert "a runtime of your own is not sent to a target" in done.stderr
    assert not list(tmp_path.glob("*.zip"))


def _with_external_data(path, location):
    """A model whose weight lies in a file of this name beside it."""
    graph = onnx.load(mean_classifier(path))
    onnx.save_model(graph, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = onnx.load(path, load_external_data=False)
    graph.graph.initializer[0].external_data[0].value = location
    onnx.save_model(graph, path)
    return path


def test_a_link_to_a_file_outside_of_the_models_folder_is_not_followed(tmp_path):
    """It would end in the zip, whatever it is."""
    (tmp_path / "secret").write_bytes(b"a secret of this machine" * 9)
    (tmp_path / "model").mkdir()
    file = _with_external_data(tmp_path / "model/a.onnx", "stolen.bin")
    (tmp_path / "model/stolen.bin").symlink_to(tmp_path / "secret")
    done = kdcompress(file, "--target", f"pack:{tmp_path}")
    assert done.exit_code == 2
    assert (
        "keeps tensors outside of its folder ('stolen.bin'); copy the file itself there (cp -L)"
        in done.stderr
    )
    assert not list(tmp_path.glob("*.zip"))


def test_a_link_that_the_user_names_is_followed(tmp_path):
    (tmp_path / "model").mkdir()
    _with_external_data(tmp_path / "model/a.onnx", "weights.bin")
    (tmp_path / "link.onnx").symlink_to("model/a.onnx")
    done = kdcompress(tmp_path / "link.onnx", "--target", f"pack:{tmp_path}")
    assert done.exit_code == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "kdcompress-bench.zip") as archive:
        sent = archive.read("kdcompress-bench/files/0/weights.bin")
    assert sent == (tmp_path / "model/weights.bin").read_bytes()


def _external(name, location):
    """A tensor that says it lies in a file beside the graph."""
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_tensors_of_constants_subgraphs_and_functions_are_sent_too(tmp_path):
    graph = onnx.load(mean_classifier(tmp_path / "a.onnx"))
    names = ["constant.bin", "branch.bin", "function.bin", "sparse.bin"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(12))
    make = onnx.helper.make_node
    branch = onnx.helper.make_graph(
        [make("Constant", [], ["c"], value=_external("c", "branch.bin"))],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [3])],
        sparse_initializer=[
            onnx.helper.make_sparse_tensor(_external("s", "sparse.bin"), _external("i", "sparse.bin"), [9])
        ],
    )
    graph.graph.node.append(make("Constant", [], ["unused"], value=_external("u", "constant.bin")))
    graph.graph.node.append(make("If", ["condition"], ["either"], then_branch=branch, else_branch=branch))
    inner = make("Constant", [], ["y"], value=_external("f", "function.bin"))
    graph.functions.append(onnx.helper.make_function("x", "f", [], ["y"], [inner], graph.opset_import))
    path = tmp_path / "b.onnx"
    path.write_bytes(graph.SerializeToString())
    cells = [{"file": str(path), "images": None, "reference": None, "group": "b"}]
    sent = bundling.bundle({"cells": cells}).sources
    assert {name: sent[f"files/0/{name}"] for name in names} == {name: tmp_path / name for name in names}


def test_a_file_that_would_replace_the_graph_where_it_is_sent_is_refused(tmp_path):
    for location in ("model.onnx", "Model.ONNX", "model.onnx/weights.bin"):
        folder = tmp_path / location.replace("/", "-")
        folder.mkdir()
        file = _with_external_data(folder / "a.onnx", location)
        (folder / location).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "weights.bin", folder / location)
        done = kdcompress(file, "--target", f"pack:{tmp_path}")
        assert done.exit_code == 2
        assert f"keeps tensors in {location!r}, the name under which the graph itself is sent" in done.stderr
    assert not list(tmp_path.glob("*.zip"))


def _carried_out(python, folder):
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}  # no PYTHONPATH
    return subprocess.run(
        [python, "run.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("result.json"))
