"""int8 and fp16 files against their gates: what passes, and what each gate catches."""

from __future__ import annotations

import json
import math
import platform

import numpy as np
import onnx
import pytest
import torch
from small_student import CLASSES as NAMES
from small_student import SPEC, batches
from spoilt import CLASSES, PLAIN, calibrated, pictures
from torch import nn

from kdcompress.bench.environment import environment
from kdcompress.deploy import variant_gates, variants
from kdcompress.deploy.accuracy import outputs_of
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.int8_diagnosis import usual_target
from kdcompress.deploy.variant_gates import (
    invariance_gate,
    loss_gate,
    range_gate,
    rounding_gates,
    size_gate,
    vary_gate,
)
from kdcompress.deploy.variants import Fp32Reference, to_fp16, to_int8
from kdcompress.tasks import CLASSIFICATION, EMBEDDING

IN_BOTH = {"layers", "onnx_checker", "opset", "one_file_no_paths", "provider", "size", "outputs_vary",
           "batch_invariance"}  # fmt: skip


def split(path, count=60, *, labelled=True):
    """A test split on which the float32 file is always right."""
    images = pictures(count)
    file = onnx_format.open_(path)
    labels = torch.from_numpy(file(images.numpy())).argmax(1)
    labels = labels if labelled else torch.full_like(labels, -1)
    return list(zip(images.split(25), labels.split(25), strict=True))


def exact(path, **options):
    known = split(path, **options)
    return Fp32Reference(path, lambda: known)


@pytest.fixture(scope="module")
def residual(run):
    return Fp32Reference(run[0] / "student.onnx", batches)


@pytest.fixture(scope="module")
def int8(residual, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return to_int8(residual, calibrated(spec=SPEC), folder, target="x86", max_drop=100)


@pytest.fixture(scope="module")
def fp16(residual, tmp_path_factory):
    return to_fp16(residual, calibrated(spec=SPEC), tmp_path_factory.mktemp("fp16"))


def by_name(variant):
    return {gate.gate: gate for gate in variant.gates}


def failed(variant):
    return [gate.gate for gate in variant.gates if not gate.passed]


# ---- what a good file comes with


def test_a_good_int8_file_passes_every_gate(int8):
    assert failed(int8) == []
    assert set(by_name(int8)) == {f"int8_{name}" for name in IN_BOTH | {"drop"}}
    assert by_name(int8)["int8_layers"].figure == 10
    assert by_name(int8)["int8_size"].figure < 0.35


def test_a_good_fp16_file_passes_every_gate(fp16):
    assert failed(fp16) == []
    assert set(by_name(fp16)) == {f"fp16_{name}" for name in IN_BOTH | {"range", "parity", "snr", "top1"}}
    assert by_name(fp16)["fp16_top1"].figure == 1.0


@pytest.mark.parametrize("name", ["int8", "fp16"])
def test_the_figures_are_those_of_the_file(name, residual, request):
    variant = request.getfixturevalue(name)
    outputs, labels = outputs_of(onnx_format.open_(variant.path), batches())
    assert torch.equal(outputs, variant.outputs_NK)
    top1 = float((outputs.argmax(1) == labels).double().mean())
    before = float((residual.outputs_NK.argmax(1) == labels).double().mean())
    assert variant.score["top1"] == pytest.approx(top1)
    assert variant.score["drop"] == pytest.approx(100 * (before - top1))
    same = outputs.argmax(1) == residual.outputs_NK.argmax(1)
    assert variant.score["agreement_fp32"] == pytest.approx(float(same.double().mean()))
    json.dumps(variant.score, allow_nan=False)


def test_the_metadata_is_carried_over_and_says_how_the_file_was_made(int8, run):
    told = onnx_format.open_(int8.path).metadata
    before = onnx_format.open_(run[0] / "student.onnx").metadata
    own = {"kdcompress.accuracy", "kdcompress.int8", "kdcompress.precision"}
    assert {key: told[key] for key in before if key not in own} == {
        key: value for key, value in before.items() if key not in own
    }
    assert set(told) - set(before) == {"kdcompress.int8", "kdcompress.precision"}
    assert told["kdcompress.precision"] == "int8"
    assert json.loads(told["kdcompress.labels"]) == list(NAMES)
    making = json.loads(told["kdcompress.int8"])
    assert making == int8.making
    assert (making["format"], making["activations"], making["weights"]) == ("QDQ", "uint8", "int8")
    assert making["calibration"] == calibrated(spec=SPEC).to_json()
    accuracy = json.loads(told["kdcompress.accuracy"])
    assert accuracy["top1"] == int8.score["top1"]
    assert accuracy["top1_fp32"] == json.loads(before["kdcompress.accuracy"])["top1"]


def test_the_same_again_gives_the_same_bytes(residual, int8, fp16, tmp_path):
    images = calibrated(spec=SPEC)
    again = [to_int8(residual, images, tmp_path, target="x86"), to_fp16(residual, images, tmp_path)]
    for one, other in zip((int8, fp16), again, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_layers_left_in_float_are_counted_and_named(residual, tmp_path):
    variant = to_int8(residual, calibrated(spec=SPEC), tmp_path, target="x86", rescue=2, max_drop=100)
    worst = [loss.layer for loss in variant.losses[:2]]
    assert variant.making["in_float"] == worst
    gate = by_name(variant)["int8_layers"]
    assert (gate.passed, gate.figure, gate.limit) == (True, 8, 8)
    assert (
        gate.detail == f"layers with int8 weights, of 10 with weights; to stay in float: {', '.join(worst)}"
    )


# ---- what int8 may lose


def test_a_network_that_int8_ruins_fails_and_its_worst_layer_mends_it(loud_file, tmp_path):
    reference = exact(loud_file)
    ruined = to_int8(reference, calibrated(), tmp_path, target="x86")
    assert failed(ruined) == ["int8_drop"]
    gate = by_name(ruined)["int8_drop"]
    assert gate.figure > 10
    assert gate.limit == 3.0
    after = f"{100 - gate.figure:.2f} % in int8"
    assert gate.detail == (f"points of top-1 lost on the 60 labelled test images: 100.00 % in fp32, {after}")
    assert ruined.losses[0].layer == "fc"
    mended = to_int8(reference, calibrated(), tmp_path, target="x86", rescue=1)
    assert failed(mended) == []
    assert mended.score["drop"] < 3


def test_what_was_accepted_passes(loud_file, tmp_path):
    assert to_int8(exact(loud_file), calibrated(), tmp_path, target="x86", max_drop=100).passed


@pytest.mark.parametrize("file", ["quiet_file", "loud_file"])
def test_without_labels_the_classes_of_fp32_are_what_counts(file, tmp_path, request):
    reference = exact(request.getfixturevalue(file), labelled=False)
    variant = to_int8(reference, calibrated(), tmp_path, target="x86")
    gate = by_name(variant)["int8_agreement"]
    assert gate.passed is (file == "quiet_file")
    assert (gate.figure, gate.limit) == (variant.score["agreement_fp32"], 0.9)
    assert variant.score["drop"] is None
    assert "kdcompress.accuracy" not in onnx_format.open_(variant.path).metadata


def test_with_nothing_left_to_quantise_there_is_no_file(quiet_file, tmp_path):
    variant = to_int8(exact(quiet_file), calibrated(), tmp_path, target="x86", rescue=2)
    assert failed(variant) == ["int8_layers"]
    assert variant.gates[0].detail == "2 layers are to stay in float, and the network has 2 with weights"
    assert not variant.path.exists()


def test_a_loss_of_just_what_may_be_lost_passes():
    drop = 100 * (0.90 - 0.87)
    assert drop > 3
    score = {"drop": drop, "top1": 0.87, "n": 100}
    assert loss_gate(score, 100, 3.0).passed
    assert not loss_gate({**score, "drop": drop + 0.001}, 100, 3.0).passed


@pytest.mark.parametrize(
    ("score", "gate", "passed"),
    [
        ({"drop": 3.0, "top1": 0.5, "n": 10}, "int8_drop", True),
        ({"drop": 3.01, "top1": 0.5, "n": 10}, "int8_drop", False),
        ({"drop": -1.0, "top1": 0.5, "n": 10}, "int8_drop", True),
        ({"drop": math.nan, "top1": 0.5, "n": 10}, "int8_drop", False),
        ({"drop": 4.0, "top1": None, "knn_top1": 0.5, "n": 10}, "int8_drop", False),
        ({"drop": None, "agreement_fp32": 0.9}, "int8_agreement", True),
        ({"drop": None, "agreement_fp32": 0.89}, "int8_agreement", False),
        ({"drop": None, "snr_db": 15.0}, "int8_snr", True),
        ({"drop": None, "snr_db": 14.9}, "int8_snr", False),
        ({"drop": None, "snr_db": None}, "int8_snr", True),
    ],
)
def test_what_is_lost_is_judged_by_the_best_measure_there_is(score, gate, passed):
    found = loss_gate(score, 20, 3.0)
    assert (found.gate, found.passed) == (gate, passed)


class Features(nn.Module):
    """Gives features and no logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 32, 3)

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "student.onnx"
    onnx_format.write(Features(), PLAIN, path, metadata={"labels": "[]"}, task=EMBEDDING)
    return path


@pytest.mark.parametrize("labelled", [True, False])
def test_a_backbone_is_judged_by_its_neighbours_or_its_noise(backbone_file, tmp_path, labelled):
    images = pictures(60)
    labels = (images.mean((1, 2, 3)) > 0.5).long() if labelled else torch.full((60,), -1)
    reference = Fp32Reference(backbone_file, lambda: [(images, labels)])
    # Eight bits of weights overflow on a processor without VNNI.
    target = usual_target(platform.machine(), environment()["isa"])
    int8 = to_int8(reference, calibrated(), tmp_path, target=target, max_drop=10)
    assert failed(int8) == []
    assert {"int8_drop"} if labelled else {"int8_snr"} <= set(by_name(int8))
    assert "agreement_fp32" not in int8.score
    if labelled:
        told = json.loads(onnx_format.open_(int8.path).metadata["kdcompress.accuracy"])
        assert told["knn_top1"] == int8.score["knn_top1"]
    fp16 = to_fp16(reference, calibrated(), tmp_path)
    assert failed(fp16) == []
    assert "fp16_embedding" in by_name(fp16)


# ---- what the other gates catch


def test_a_file_whose_images_lean_on_each_other_is_caught(quiet_file):
    reference = exact(quiet_file)

    def leaning(x):  # as a scale taken from the batch does
        return reference.file(x) * np.float32(1 + 0.2 * np.abs(x).mean() * (len(x) > 1))

    for precision in ("int8", "fp16"):
        good = invariance_gate(precision, reference.file, reference.images, reference.outputs_NK)
        bad = invariance_gate(precision, leaning, reference.images, reference.outputs_NK)
        assert (good.passed, bad.passed) == (True, False)
        assert bad.figure > bad.limit
    assert bad.gate == "fp16_batch_invariance"


def test_a_file_with_a_batch_size_baked_in_is_caught(quiet_file, tmp_path):
    model = onnx.load(quiet_file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    file, reference = onnx_format.open_(tmp_path / "two.onnx"), exact(quiet_file)
    gate = invariance_gate("int8", file, reference.images, reference.outputs_NK)
    assert (gate.passed, gate.figure) == (False, None)
    assert gate.detail.startswith("a batch size was baked into the file: ")


def test_a_file_that_was_not_made_smaller_is_caught(quiet_file):
    assert not size_gate("int8", quiet_file, quiet_file).passed


@pytest.mark.parametrize("outputs", [torch.ones(9, 3), torch.full((9, 3), math.nan)])
def test_outputs_that_do_not_depend_on_the_image_are_caught(outputs):
    assert not vary_gate("int8", outputs).passed


def test_activations_beyond_float16_are_caught(loud_file, tmp_path, monkeypatch):
    assert range_gate(32752.0, 128).passed
    assert not range_gate(32753.0, 128).passed
    assert not range_gate(math.inf, 128).passed
    monkeypatch.setattr(variant_gates, "FP16_RANGE", 10.0)  # its loud channel reaches further
    assert failed(to_fp16(exact(loud_file), calibrated(), tmp_path)) == ["fp16_range"]


def outputs(count=400):
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(0))


def rounding(near, snr=60.0, *, task=CLASSIFICATION):
    return {gate.gate: gate.passed for gate in rounding_gates(outputs(), near, snr, task=task)}


def test_rounding_that_changes_classes_is_caught_and_ties_are_not():
    assert all(rounding(outputs()).values())
    near = outputs()
    moved = near.clone()
    moved[:3] = moved[:3].roll(1, dims=1)  # other classes for three images of 400
    assert rounding(moved) == {"fp16_parity": False, "fp16_snr": True, "fp16_top1": False}
    tied = outputs()
    best = tied.argmax(1)
    tied[torch.arange(400), best] = tied.topk(2, 1).values[:, 1] + 0.01
    lower = tied - 0.02 * torch.nn.functional.one_hot(best, CLASSES)
    gates = rounding_gates(tied, lower, 60.0, task=CLASSIFICATION)
    told = {gate.gate: gate for gate in gates}["fp16_top1"]
    assert told.passed
    assert "400 ties aside" in told.detail


def test_noise_and_turned_embeddings_are_caught():
    assert rounding(outputs(), 39.9)["fp16_snr"] is False
    turned = outputs()
    turned[7] = -turned[7]
    told = rounding(turned, task=EMBEDDING)
    assert told["fp16_embedding"] is False
    assert all(rounding(outputs() * 1.0001, task=EMBEDDING).values())


def test_a_file_that_cannot_be_run_fails_with_the_reason(quiet_file, tmp_path, monkeypatch):
    whole = variants._write

    def half_written(model, told, path):
        whole(model, told, path)
        path.write_bytes(path.read_bytes()[:2000])

    monkeypatch.setattr(variants, "_write", half_written)
    variant = to_int8(exact(quiet_file), calibrated(), tmp_path, target="x86")
    assert failed(variant) == ["int8_runs"]
    assert "is not a whole ONNX file" in by_name(variant)["int8_runs"].detail
    assert variant.score == {}


def test_limits_are_those_that_were_decided_on():
    assert variant_gates.MAX_DROP == 3.0
    assert variant_gates.FP16_PARITY == 5e-2
    assert variant_gates.FP16_AGREEMENT == 0.995
