"""OpenVINO IR: the pair of files, what is in it, what it refuses, and the same proof as for ONNX."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, trained_student

from kdcompress import load
from kdcompress.atomic import sha256_of
from kdcompress.bench import runtimes
from kdcompress.bench.measure import Artefact, Protocol, measure
from kdcompress.deploy.files import check_installed, parts_of
from kdcompress.deploy.formats import onnx, openvino
from kdcompress.deploy.graph_size import graph_facts
from kdcompress.deploy.ir_size import ir_facts
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.ship import Subject, ship
from kdcompress.errors import GateFailed, UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)

LABELS = ("cat", 'a "quoted" <dog> & é', "/usr/bin/eel", "fox", "gnu")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    formats = ["onnx", "safetensors", "openvino"]
    metadata = {"recipe": "tiny", "teacher": "none"}
    told = ship(Subject(trained_student(), MODEL, SPEC, LABELS, batches, metadata), folder, formats=formats)
    return folder, told


def test_graph_and_weights_get_their_names_hashes_and_gates(shipped):
    folder, told = shipped
    assert {"student.xml", "student.bin", "student.onnx"} <= set(told.files)
    for name in ("student.xml", "student.bin"):
        assert told.files[name]["sha256"] == sha256_of(folder / name)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    names = {gate.gate for gate in told.gates}
    assert {"openvino_pair_no_paths", "openvino_weights", "openvino_provider"} <= names
    assert {f"openvino_parity_batch_{n}" for n in (1, 2, 3)} <= names
    assert {"openvino_batch_invariance", "openvino_parity_test_split", "openvino_top1_exported"} <= names
    assert told.student["file"] == "student.onnx"


def test_it_is_the_network_with_its_normalisation_at_any_batch(shipped):
    folder, _ = shipped
    file = openvino.open_(folder / "student.xml")
    assert (file.input_shape, file.task.name, file.precision) == (
        ("batch", 3, 16, 16),
        "classification",
        "f32",
    )
    x = images(7).numpy()
    expected = Deployed(trained_student(), SPEC).eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(file(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([file(x[i : i + 1]) for i in range(7)]), file(x), atol=1e-6)
    kept = file(x[:2])
    file(x[2:4])
    np.testing.assert_array_equal(kept, file(x[:2]))  # outputs are copies


def test_the_graph_tells_what_the_onnx_file_tells(shipped):
    folder, _ = shipped
    told = openvino.open_(folder / "student.xml").metadata
    weights = told.pop("kdcompress.weights_sha256")
    assert told == onnx.open_(folder / "student.onnx").metadata
    assert json.loads(told["kdcompress.labels"]) == list(LABELS)
    assert weights == sha256_of(folder / "student.bin")
    text = (folder / "student.xml").read_text(encoding="utf-8")
    assert "conversion_parameters" not in text
    assert str(folder.parent) not in text


def test_equal_weights_give_equal_bytes_and_the_size_of_the_onnx_graph(tmp_path):
    network = trained_student()
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        openvino.write(copy.deepcopy(network), SPEC, folder / "student.xml", metadata={"labels": "[]"})
        assert sorted(path.name for path in folder.iterdir()) == ["student.bin", "student.xml"]
    for name in ("student.xml", "student.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    onnx.write(network, SPEC, tmp_path / "student.onnx", metadata={})
    assert ir_facts(tmp_path / "a" / "student.xml") == graph_facts(tmp_path / "student.onnx")


GRAPH = (
    '<net><layers><layer id="0" type="Parameter"><output><port><dim>1</dim><dim>3</dim><dim>8</dim>'
    '<dim>8</dim></port></output></layer><layer id="1" type="MatMul"><input><port><dim>1</dim></port></input>'
    "</layer>"
    '</layers><edges><edge from-layer="0" to-layer="1" to-port="0"/></edges></net>'
)
DAMAGED_GRAPHS = [
    "", "<net>", '<?xml version="1.0" encoding="utf-7"?><net/>', '<?xml version="1.0" encoding="foo"?><net/>',
    GRAPH, GRAPH.replace('to-port="0"', ""), GRAPH.replace('id="1"', 'id="x"'),
    GRAPH.replace('type="MatMul"', ""), GRAPH.replace("<dim>3<", "<dim>three<"),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED_GRAPHS)
def test_a_damaged_graph_is_one_sentence(tmp_path, content):
    (tmp_path / "student.xml").write_text(content)
    with pytest.raises(UserError, match=r"student\.xml: "):
        ir_facts(tmp_path / "student.xml")


def test_without_onnx_it_is_the_file_that_is_scored(tmp_path):
    told = ship(
        Subject(trained_student(), MODEL, SPEC, CLASSES, batches, {}),
        tmp_path,
        formats=["safetensors", "openvino"],
    )
    assert told.student["file"] == "student.xml"
    assert told.student["bytes"] == sum(path.stat().st_size for path in parts_of(tmp_path / "student.xml"))
    assert "parity_batch_3" in {gate.gate for gate in told.gates}


def test_wrong_outputs_of_it_alone_do_not_ship(tmp_path, monkeypatch):
    right = openvino.OpenVinoModel.__call__
    monkeypatch.setattr(openvino.OpenVinoModel, "__call__", lambda self, x: right(self, x) * 1.02)
    with pytest.raises(GateFailed, match="openvino_parity_batch_1"):
        ship(
            Subject(trained_student(), MODEL, SPEC, CLASSES, batches, {}),
            tmp_path,
            formats=["onnx", "openvino"],
        )
    assert {path.name for path in (tmp_path / "failed").iterdir()} >= {"student.xml", "student.bin"}
    assert not (tmp_path / "student.xml").exists()


def test_a_path_in_the_graph_is_found(shipped, tmp_path):
    folder, _ = shipped
    (tmp_path / "student.bin").write_bytes((folder / "student.bin").read_bytes())
    text = (folder / "student.xml").read_text(encoding="utf-8")
    assert openvino.gates(openvino.open_(folder / "student.xml"), None)[
        0
    ].passed  # a class may be named like one
    (tmp_path / "student.xml").write_text(
        text.replace('value="none"', 'value="/home/someone/t.pt"'), encoding="utf-8"
    )
    gate = openvino.gates(openvino.open_(tmp_path / "student.xml"), None)[0]
    assert (gate.gate, gate.passed) == ("openvino_pair_no_paths", False)
    assert "/home/someone" in gate.detail


def test_weights_that_are_missing_or_others_are_refused(shipped, tmp_path):
    folder, _ = shipped
    xml = tmp_path / "student.xml"
    xml.write_bytes((folder / "student.xml").read_bytes())
    with pytest.raises(UserError, match=r"student\.bin: no such file; student\.xml needs"):
        openvino.open_(xml)
    content = bytearray((folder / "student.bin").read_bytes())
    content[100] ^= 1
    (tmp_path / "student.bin").write_bytes(content)
    with pytest.raises(UserError, match="are not the weights"):
        openvino.open_(xml)


@pytest.mark.parametrize("content", [None, b"", b"no xml", b"<html/>", b"<net></net>"])
def test_what_is_no_graph_is_one_line(tmp_path, content, capfd):
    path = tmp_path / "a.xml"
    (tmp_path / "a.bin").write_bytes(b"")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.xml") as caught:
        openvino.open_(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_wrong_image_size_is_one_line(shipped):
    file = openvino.open_(shipped[0] / "student.xml")
    with pytest.raises(UserError, match="fails on input of 1×3×8×8") as caught:
        file(np.zeros((1, 3, 8, 8), np.float32))
    assert "\n" not in str(caught.value)


def test_it_loads_as_a_module_and_is_timed_in_float32(shipped):
    folder, _ = shipped
    network, spec = load(folder / "student.xml")
    assert (spec.mean, spec.height) == ((0.0, 0.0, 0.0), 16)
    assert network(images(3)).shape == (3, 5)
    artefacts = [
        Artefact("student", folder / "student.onnx", network="s"),
        Artefact("openvino", folder / "student.xml", network="s"),
    ]
    short = Protocol(block_s=0.02, turns=1, min_calls=2, warmup_s=0)
    document = measure(artefacts, rounds=1, images=images(5).numpy(), protocol=short)
    assert document["failures"] == []
    result = next(r for r in document["results"] if r["artefact"] == "openvino")
    assert (result["runtime"], result["precision"], result["provider"]) == ("openvino", "fp32", "CPU")
    assert result["parity"]["max_err_over_spread"] < 1e-4
    both = sum(path.stat().st_size for path in parts_of(folder / "student.xml"))
    assert document["artefacts"]["openvino"]["bytes"] == both


def test_runtimes_say_which_files_they_take():
    assert runtimes.takes("openvino", ".xml")
    assert runtimes.takes("openvino", ".onnx")
    assert not runtimes.takes("onnxruntime", ".xml")
    with pytest.raises(UserError, match=r"takes \.onnx and \.xml files"):
        measure([Artefact("a", __import__("pathlib").Path(__file__), ("openvino",))])


def test_a_missing_package_is_said_with_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    check_installed(["onnx", "safetensors"], "--format")
    with pytest.raises(
        UserError, match=r"--format: openvino needs openvino: pip install 'kdcompress\[openvino\]'"
    ):
        check_installed(["onnx", "openvino"], "--format")


def test_it_is_imported_without_its_telemetry_and_only_when_it_is_needed():
    code = (
        "import sys\nimport kdcompress.deploy.load\nassert 'openvino' not in sys.modules\n"
        "from kdcompress.deploy.formats import openvino\nopenvino._library()\n"
        "assert 'openvino_telemetry' not in sys.modules and 'openvino' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
