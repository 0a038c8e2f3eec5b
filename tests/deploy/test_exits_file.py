"""Early exits as further outputs of one file: each proved, scored, measured, and cut out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, randomise, trained_student
from torch import nn

from kdcompress.atomic import staging_folder
from kdcompress.deploy import exits
from kdcompress.deploy.derived import failure, place
from kdcompress.deploy.exits import NAME, ExitHead, write_cut, write_exits
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.formats.onnx import OnnxModel, open_
from kdcompress.deploy.gate import document
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import UserError
from kdcompress.networks.tap_points import Tap

NAMES = ["logits", "logits_exit1", "logits_exit2"]


def head(channels, seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(channels, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    return randomise(nn.Sequential(*layers), seed).eval()


def heads():
    taps = [Tap(f"layer{number}", 0, "output", clone=False) for number in (1, 2)]
    return [
        ExitHead(f"stage{number}", tap, head(channels, number))
        for number, (tap, channels) in enumerate(zip(taps, (16, 32), strict=True), start=1)
    ]


def through_layers(student, x):
    """The three outputs, layer by layer."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SPEC.mean, SPEC.std))
    first = nn.Sequential(*(dict(student.named_children())[name] for name in STEM))
    shallow = student.layer1(first((x - mean) / std))
    deep = student.layer2(shallow)
    one, two = (each.layers for each in heads())
    return {"logits": student((x - mean) / std), "logits_exit1": one(shallow), "logits_exit2": two(deep)}


STEM = ("conv1", "bn1", "relu")


def written(folder, chosen=None, student=None):
    with staging_folder(folder / ".staging") as staging:
        made = write_exits(
            student or trained_student().eval(), MODEL, SPEC, chosen or heads(), staging, folder,
            class_names=CLASSES, test_batches=batches, metadata={"recipe": "tiny"},
        )  # fmt: skip
        (placed,) = place([made], folder)
    return placed


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    onnx_format.write(trained_student(), SPEC, folder / "student.onnx", metadata={})
    (folder / "gates.json").write_text(json.dumps(document([])))
    return folder


@pytest.fixture
def folder(proven, tmp_path):
    shutil.copytree(proven, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def shipped(proven, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(proven, folder, dirs_exist_ok=True)
    return folder, written(folder)


def test_every_output_is_that_of_the_layers_run_one_after_the_other(shipped):
    folder, made = shipped
    assert made.passed, [str(gate) for gate in made.gates if not gate.passed]
    assert failure([made]) is None
    file, x = OnnxModel(folder / NAME, several=True), images(5)
    assert list(file.output_names) == NAMES
    with torch.no_grad():
        expected = through_layers(trained_student().eval(), x)
    for name, output in file.outputs(x.numpy()).items():
        np.testing.assert_allclose(output, expected[name].numpy(), rtol=1e-4, atol=1e-4)


def test_the_plain_output_is_that_of_the_students_file(shipped):
    folder, _ = shipped
    x = images(7).numpy()
    plain = OnnxModel(folder / NAME, several=True).outputs(x)["logits"]
    np.testing.assert_allclose(plain, open_(folder / "student.onnx")(x), rtol=1e-5, atol=1e-5)


def test_sizes_are_those_of_all_that_leads_to_an_exit(shipped):
    student = trained_student().eval()
    parts = [dict(student.named_children())[name] for name in (*STEM, "layer1", "layer2")]
    expected = [nn.Sequential(*parts[: 4 + k], each.layers) for k, each in enumerate(heads())]
    entries = shipped[1].facts["exits"]
    assert [entry["macs"] for entry in entries] == [count_macs(part, 3, 16, 16) for part in expected]
    assert [entry["params"] for entry in entries] == [count_parameters(part) for part in expected]
    total = count_macs(student, 3, 16, 16)
    assert [entry["cost"] for entry in entries] == [entry["macs"] / total for entry in entries]


def test_the_accuracy_of_an_exit_is_that_of_its_output_of_the_file(shipped):
    folder, made = shipped
    file = OnnxModel(folder / NAME, several=True)
    for entry in made.facts["exits"]:
        right = sum(
            int((file.outputs(x.numpy())[entry["output"]].argmax(1) == labels.numpy()).sum())
            for x, labels in batches()
        )
        assert entry["top1"] == right / 50
    assert [(entry["name"], entry["stage"]) for entry in made.facts["exits"]] == [
        ("exit1", "stage1"),
        ("exit2", "stage2"),
    ]


def test_gates_of_each_output_join_those_of_the_run(shipped):
    folder, made = shipped
    names = {gate["gate"] for gate in json.loads((folder / "gates.json").read_text())["gates"]}
    assert names == {gate.gate for gate in made.gates}
    assert {"exits_outputs", "exits_strict_load", "exits_as_student", "exits_exit2_cut"} <= names
    for output in ("exits_", "exits_exit1_", "exits_exit2_"):
        assert {f"{output}parity_batch_{size}" for size in (1, 2, 3)} <= names
        assert {f"{output}top1_exported", f"{output}parity_test_split"} <= names


def test_a_cut_graph_gives_the_exits_logits_without_the_layers_behind_it(shipped, tmp_path):
    folder, _ = shipped
    x = images(4).numpy()
    whole = OnnxModel(folder / NAME, several=True).outputs(x)
    counts = []
    for name in ("logits_exit1", "logits_exit2"):
        write_cut(folder / NAME, name, tmp_path / "cut.onnx")
        onnx.checker.check_model(onnx.load(tmp_path / "cut.onnx"), full_check=True)
        np.testing.assert_allclose(open_(tmp_path / "cut.onnx")(x), whole[name], rtol=1e-5, atol=1e-5)
        # As a user does it.
        onnx.utils.extract_model(folder / NAME, tmp_path / "own.onnx", ["images"], [name])
        np.testing.assert_allclose(open_(tmp_path / "own.onnx")(x), whole[name], rtol=1e-5, atol=1e-5)
        counts.append([node.op_type for node in onnx.load(tmp_path / "cut.onnx").graph.node].count("Conv"))
    # Stem, two convolutions a block (a third where it changes the shape), and the head's own.
    assert counts == [1 + 2 + 1, 1 + 2 + 3 + 1]


def test_an_altered_exit_fails_its_own_gates_alone_and_nothing_ships(folder, monkeypatch):
    write = onnx_format.write

    def altered(network, spec, path, **options):
        write(network, spec, path, **options)
        model = onnx.load(path)
        biases = {node.output[0]: node.input[2] for node in model.graph.node if node.op_type == "Gemm"}
        for tensor in model.graph.initializer:
            if tensor.name == biases["logits_exit1"]:
                values = onnx.numpy_helper.to_array(tensor) + 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
        path.write_bytes(model.SerializeToString())

    monkeypatch.setattr(onnx_format, "write", altered)
    made = written(folder)
    failed = {gate.gate for gate in made.gates if not gate.passed}
    assert {"exits_exit1_parity_test_split", "exits_exit1_parity_batch_1"} <= failed
    assert all(name.startswith("exits_exit1_") for name in failed)
    assert not (folder / NAME).exists()
    assert (folder / "failed" / NAME).exists()
    assert "exits.onnx does not ship" in str(failure([made]))


def test_a_cut_that_computes_something_else_fails(folder, monkeypatch):
    right = exits.write_cut
    monkeypatch.setattr(exits, "write_cut", lambda path, _, target: right(path, "logits_exit2", target))
    made = written(folder)
    assert {gate.gate for gate in made.gates if not gate.passed} == {"exits_exit1_cut"}


def test_a_plain_output_that_is_not_the_students_file_fails(folder):
    onnx_format.write(trained_student(seed=5), SPEC, folder / "student.onnx", metadata={})
    made = written(folder)
    assert {gate.gate for gate in made.gates if not gate.passed} == {"exits_as_student"}


def test_a_student_with_a_head_left_on_does_not_ship(folder):
    student = trained_student().eval()
    student.auxiliary = nn.Linear(2, 2)
    made = written(folder, student=student)
    assert [gate.gate for gate in made.gates if not gate.passed] == ["exits_strict_load"]
    assert not (folder / NAME).exists()
    assert made.facts == {}


def test_opened_as_one_network_it_says_how_to_cut_it(shipped):
    names = r"\(logits, logits_exit1, logits_exit2\)"
    with pytest.raises(UserError, match=f"several outputs {names}.*extract_model"):
        open_(shipped[0] / NAME)
