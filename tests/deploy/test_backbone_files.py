from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from small_student import MODEL, SPEC, batches, images, randomise

import kdcompress
from kdcompress.deploy.accuracy import compare
from kdcompress.deploy.config import read_config
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.formats import safetensors as safetensors_format
from kdcompress.deploy.ship import Subject, ship
from kdcompress.deploy.verify import PARITY_LIMIT, parity_gates, split_gates
from kdcompress.errors import GateFailed, NetworkError, UserError
from kdcompress.metrics.neighbours import knn_top1, overlap
from kdcompress.networks.build import build
from kdcompress.networks.weights import resolve
from kdcompress.progress import Progress
from kdcompress.tasks import CLASSIFICATION, EMBEDDING
from kdcompress.tasks.classification import Predictions
from kdcompress.tasks.embedding import Embeddings
from kdcompress.tools.evaluate import evaluate

FORMATS = ["onnx", "safetensors"]
WIDTH = 64

TURN_LIMIT = PARITY_LIMIT**2 / 2


def bare(seed=0):
    torch.manual_seed(seed)
    return randomise(build(MODEL, num_classes=0, channels=3, image_size=(16, 16)), seed).eval()


def features(network, count=50):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    with torch.no_grad():
        return network((images(count) - mean) / std)


def taught():
    """A teacher's embedding of the test images that is like, but not, the student's."""
    noise = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(5))
    return features(bare()) + 0.05 * noise


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    subject = Subject(bare(), MODEL, SPEC, (), batches, {"recipe": "tiny"}, taught())
    return folder, ship(subject, folder, formats=FORMATS)


def test_a_backbone_passes_every_gate_and_ships_as_itself(shipped):
    folder, found = shipped
    gates = {gate.gate: gate for gate in found.gates}
    assert all(gate.passed for gate in found.gates)
    assert "top1_exported" not in gates
    assert gates["embedding_exported"].figure < 1e-9
    assert gates["embedding_exported"].limit == TURN_LIMIT
    assert "50 test images" in gates["embedding_exported"].detail
    assert "error of a feature" in gates["parity_test_split"].detail
    assert set(found.files) == {
        "student.onnx", "student.safetensors", "config.json", "labels.json", "golden.npz",
    }  # fmt: skip
    plain = build(MODEL, num_classes=0, channels=3, image_size=(16, 16))
    plain.load_state_dict(safetensors.torch.load_file(folder / "student.safetensors"), strict=True)


def test_the_graph_calls_its_output_embedding(shipped):
    folder, _ = shipped
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("embedding", ["batch", WIDTH])]
    (got,) = session.run(None, {"images": images(5).numpy()})
    torch.testing.assert_close(torch.from_numpy(got), features(bare(), 5), rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["kdcompress.labels"]) == []
    accuracy = json.loads(metadata["kdcompress.accuracy"])
    assert accuracy.keys() == {"split", "knn_top1", "n"}
    assert accuracy["n"] == 50


def test_config_and_labels_say_that_there_are_no_classes(shipped):
    folder, _ = shipped
    document = json.loads((folder / "config.json").read_text())
    assert (document["num_classes"], document["num_features"], document["label_names"]) == (0, WIDTH, [])
    assert json.loads((folder / "labels.json").read_text()) == []
    assert read_config(folder / "config.json").num_classes == 0


def test_its_figures_are_those_of_the_exported_embedding(shipped):
    _, found = shipped
    assert isinstance(found.predictions, Embeddings)
    labels = torch.cat([labels for _, labels in batches()])
    assert torch.equal(found.predictions.labels, labels)
    student = found.student
    assert student["knn_top1"] == knn_top1(found.predictions.features, labels)
    assert student["agreement"] == overlap(found.predictions.features, taught())
    assert 10 / 49 < student["agreement"] < 1
    assert (student["top1"], student["balanced_top1"], student["loss"]) == (None, None, None)
    assert (student["per_class"], student["n"]) == ([], 50)
    assert student["params"] == sum(p.numel() for p in bare().parameters())
    json.dumps(student, allow_nan=False)


def test_without_labels_and_teacher_nothing_is_claimed(tmp_path):
    def unlabelled():
        return [(images, torch.full_like(labels, -1)) for images, labels in batches()]

    found = ship(Subject(bare(), MODEL, SPEC, (), unlabelled, {}), tmp_path, formats=["onnx"])
    assert found.student["knn_top1"] is None
    assert "agreement" not in found.student
    assert "kdcompress.accuracy" not in onnx_format.open_(tmp_path / "student.onnx").metadata
    other = tmp_path / "taught"
    other.mkdir()
    ship(Subject(bare(), MODEL, SPEC, (), unlabelled, {}, teacher_outputs=taught()), other, formats=["onnx"])
    accuracy = json.loads(onnx_format.open_(other / "student.onnx").metadata["kdcompress.accuracy"])
    assert accuracy.keys() == {"split", "agreement", "n"}


@pytest.mark.parametrize("name", ["", "student.safetensors", "student.onnx"])
def test_a_run_its_weights_and_its_graph_load_to_the_same_backbone(shipped, name):
    network, spec = kdcompress.load(shipped[0] / name)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    with torch.no_grad():
        got = network((images(4) - mean) / std)
    torch.testing.assert_close(got, features(bare(), 4), rtol=1e-4, atol=1e-5)


def test_both_formats_know_that_they_hold_a_backbone(shipped, run):
    for folder, expected in ((shipped[0], EMBEDDING), (run[0], CLASSIFICATION)):
        assert onnx_format.open_(folder / "student.onnx").task is expected
        assert safetensors_format.open_(folder / "student.safetensors").task is expected


def test_its_run_is_a_source_of_weights_without_classes(shipped):
    found = resolve(str(shipped[0]), MODEL)
    assert found.class_names is None
    assert (found.mean, found.size) == (SPEC.mean, (16, 16))


@pytest.mark.parametrize("name", ["", "student.safetensors"])
def test_evaluating_it_says_what_to_do_instead(shipped, name):
    with pytest.raises(UserError, match=r"is a backbone, which gives features .* with --probe"):
        evaluate(
            shipped[0] / name, Progress(quiet=True), recipe="x", data=None, overrides=(), split="test",
            allow_code=False,
        )  # fmt: skip


# What the gates catch.


def on_split(reference, exported):
    gates = split_gates(reference, exported, batches(), task=EMBEDDING)[1]
    return {gate.gate: gate for gate in gates}


def scripted(reference, change):
    """A file that gives the reference's features, changed."""
    given = iter(change(reference.clone()).split(16))
    return lambda _: next(given).numpy()


def test_one_image_whose_embedding_points_elsewhere_is_caught():
    reference = features(bare())
    assert all(gate.passed for gate in on_split(reference, scripted(reference, lambda x: x)).values())

    def turned(x):
        # By an angle whose 1 - cosine is ten times the limit, at the same length.
        aside = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
        aside -= (aside @ x[33]) / (x[33] @ x[33]) * x[33]
        x[33] += (20 * TURN_LIMIT) ** 0.5 * x[33].norm() * F.normalize(aside, dim=0)
        return x

    gate = on_split(reference, scripted(reference, turned))["embedding_exported"]
    assert not gate.passed
    assert gate.figure == pytest.approx(10 * TURN_LIMIT, rel=0.02)


def test_a_nan_or_another_width_passes_nothing():
    reference = features(bare())

    def broken(x):
        x[7, 3] = float("nan")
        return x

    gates = on_split(reference, scripted(reference, broken))
    assert not gates["embedding_exported"].passed
    assert not gates["parity_test_split"].passed
    narrow = on_split(reference, scripted(reference, lambda x: x[:, :9]))
    assert narrow.keys() == {"embedding_exported"}
    assert not narrow["embedding_exported"].passed
    assert "outputs of [16, 9]" in narrow["embedding_exported"].detail


def test_an_image_that_is_embedded_as_nothing_by_both_is_no_turn():
    reference = features(bare())
    reference[3] = 0
    assert on_split(reference, scripted(reference, lambda x: x))["embedding_exported"].passed


def test_labels_beyond_the_width_of_the_embedding_are_no_obstacle():
    reference = features(bare())[:, :3].contiguous()
    found = compare(
        reference, scripted(reference, lambda x: x), batches(), task=EMBEDDING, limit=PARITY_LIMIT
    )
    assert isinstance(found.exported, Embeddings)
    assert torch.equal(found.exported.features, reference)
    assert found.deviation.figure == 0


def test_parity_speaks_of_features():
    def run(x):
        return x.mean((2, 3)).astype(np.float32)

    reference = torch.from_numpy(run(images(50).numpy()))
    gates = parity_gates(run, run, images(24), reference, task=EMBEDDING)
    assert all(gate.passed and "logit" not in gate.detail for gate in gates)


def test_a_classifier_is_not_shipped_as_a_backbone(tmp_path):
    network = randomise(build(MODEL, num_classes=5, channels=3, image_size=(16, 16)))
    with pytest.raises(GateFailed, match=r"strict_load: 2 .*fc\.weight"):
        ship(Subject(network, MODEL, SPEC, (), batches, {}), tmp_path, formats=FORMATS)


def test_a_network_that_gives_maps_is_no_backbone(tmp_path):
    network = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(
        NetworkError, match=r"a backbone gives one tensor of features \[batch, features\]; this"
    ):
        onnx_format.write(network, SPEC, tmp_path / "a.onnx", metadata={}, task=EMBEDDING)


# A classifier beside its teacher.


def test_a_classifier_agrees_with_its_teacher_where_their_classes_are_the_same(student, tmp_path):
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(2))
    names = ("a", "b", "c", "d", "e")
    found = ship(
        Subject(student, MODEL, SPEC, names, batches, {}, teacher_outputs=logits), tmp_path, formats=["onnx"]
    )
    assert isinstance(found.predictions, Predictions)
    expected = (found.predictions.classes == logits.argmax(1)).double().mean().item()
    assert found.student["agreement"] == pytest.approx(expected)
    assert 0 < expected < 1
    assert found.student["top1"] is not None
