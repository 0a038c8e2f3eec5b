from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, trained_student
from torch import nn

from kdcompress.atomic import sha256_of
from kdcompress.deploy.formats import onnx
from kdcompress.deploy.gate import Gate
from kdcompress.deploy.ship import Subject, ship
from kdcompress.errors import GateFailed

FILES = {"config.json", "golden.npz", "labels.json", "student.onnx", "student.safetensors"}
GATES = {
    "strict_load", "equal_outputs", "same_keys", "parameters", "macs", "onnx_checker", "opset",
    "one_file_no_paths", "provider", "outputs_vary", "parity_batch_1", "parity_batch_2", "parity_batch_3",
    "parity_test_split", "batch_invariance", "safetensors_round_trip", "top1_exported",
}  # fmt: skip


def shipping(trained, folder, **changes):
    options = {"formats": ["onnx", "safetensors"], "metadata": {}, **changes}
    keys = ("metadata", "teacher_outputs", "extra_gates")
    about = {key: options.pop(key) for key in keys if key in options}
    return ship(Subject(trained, MODEL, SPEC, CLASSES, batches, **about), folder, **options)


def test_a_good_student_passes_every_gate_and_gets_its_final_names(run):
    folder, shipped = run
    assert {path.name for path in folder.iterdir()} == FILES | {"gates.json"}
    assert set(shipped.files) == FILES
    document = json.loads((folder / "gates.json").read_text())
    assert document["schema"] == "kdcompress.gates/1"
    assert {gate["gate"] for gate in document["gates"]} == GATES
    assert all(gate["passed"] for gate in document["gates"])
    assert all(set(gate) == {"gate", "passed", "figure", "limit", "detail"} for gate in document["gates"])


def test_the_told_hashes_are_those_of_the_files(run):
    folder, shipped = run
    for name, told in shipped.files.items():
        assert told == {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}


def test_the_students_figures_are_those_of_the_exported_file(run):
    folder, shipped = run
    file = onnx.open_(folder / "student.onnx")
    right = torch.cat([torch.from_numpy(file(x.numpy())).argmax(1) == y for x, y in batches()])
    assert shipped.student["top1"] == pytest.approx(right.double().mean().item())
    assert shipped.student["n"] == 50
    assert len(shipped.student["per_class"]) == len(CLASSES)
    assert shipped.student["bytes"] == (folder / "student.onnx").stat().st_size
    assert {"balanced_top1", "params", "macs", "loss"} <= set(shipped.student)
    assert torch.equal(shipped.predictions.classes == shipped.predictions.labels, right)


def test_the_files_compute_what_the_trained_student_computes(run, student):
    folder, _ = run
    x = images(5, seed=9)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    trained = copy.deepcopy(student).eval()
    with torch.no_grad():
        expected = trained((x - mean) / std).numpy()
    np.testing.assert_allclose(onnx.open_(folder / "student.onnx")(x.numpy()), expected, rtol=1e-3, atol=1e-4)


def test_the_graph_tells_labels_input_recipe_teacher_and_accuracy(run):
    folder, shipped = run
    told = onnx.open_(folder / "student.onnx").metadata
    assert json.loads(told["kdcompress.labels"]) == list(CLASSES)
    assert json.loads(told["kdcompress.input"]) == SPEC.to_json()
    assert told["kdcompress.recipe"] == "tiny"
    assert told["kdcompress.teacher"] == "none"
    assert json.loads(told["kdcompress.accuracy"])["top1"] == shipped.student["top1_pytorch"]
    assert all(key.startswith("kdcompress.") for key in told)


def test_shipping_touches_neither_the_trained_module_nor_the_random_numbers(tmp_path):
    trained = trained_student()
    trained.train()
    trained.bn1.eval()  # frozen on purpose
    before = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
    modes = [part.training for part in trained.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    shipping(trained, tmp_path, formats=["safetensors"])
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in trained.modules()] == modes
    assert all(torch.equal(before[key], tensor) for key, tensor in trained.state_dict().items())


def test_equal_weights_give_equal_files(run, tmp_path):
    _, shipped = run
    again = shipping(trained_student(), tmp_path, metadata={"teacher": "none", "recipe": "tiny"})
    assert again.files == shipped.files


def test_without_onnx_the_safetensors_file_is_the_one_that_is_scored(tmp_path):
    shipped = shipping(trained_student(), tmp_path, formats=["safetensors"])
    assert shipped.student["file"] == "student.safetensors"
    assert {"parity_batch_3", "top1_exported"} <= {gate.gate for gate in shipped.gates}
    assert not (tmp_path / "student.onnx").exists()


def assert_failed(folder, caught, *gates):
    """No file under its final name; the message and `gates.json` name the gates."""
    assert not FILES & {path.name for path in folder.iterdir()}
    assert not (folder / ".staging").exists()
    document = json.loads((folder / "gates.json").read_text())
    lost = {gate["gate"] for gate in document["gates"] if not gate["passed"]}
    assert set(gates) <= lost
    for gate in gates:
        assert f"{gate}: " in str(caught.value)
    assert str(folder / "failed") in str(caught.value)


def test_a_student_with_a_leftover_head_does_not_ship(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = trained_student()
            self.auxiliary = nn.Linear(16, 5)

        def forward(self, x):
            return self.network(x)

    with pytest.raises(GateFailed) as caught:
        shipping(Wrapped(), tmp_path)
    assert_failed(tmp_path, caught, "strict_load")
    assert (tmp_path / "failed" / "trained.safetensors").is_file()


def test_a_head_registered_inside_the_student_does_not_ship(tmp_path):
    trained = trained_student()
    trained.auxiliary = nn.Linear(16, 5)
    with pytest.raises(GateFailed, match=r"2 left over \(auxiliary\.weight") as caught:
        shipping(trained, tmp_path)
    assert_failed(tmp_path, caught, "strict_load")


def test_a_student_that_computes_more_than_its_tensors_say_does_not_ship(tmp_path):
    trained = trained_student()
    trained.register_forward_hook(
        lambda _module, _inputs, output: output * 2
    )  # a method forgot to take it away
    with pytest.raises(GateFailed) as caught:
        shipping(trained, tmp_path, formats=["safetensors"])
    assert_failed(tmp_path, caught, "equal_outputs")


def test_an_untrained_looking_student_does_not_ship(tmp_path):
    trained = trained_student()
    trained.fc.weight.data.mul_(1e-7)  # all bias: any broken graph would agree with it
    trained.fc.bias.data.copy_(torch.arange(5.0))
    with pytest.raises(GateFailed) as caught:
        shipping(trained, tmp_path, formats=["safetensors"])
    assert_failed(tmp_path, caught, "outputs_vary")
    assert (tmp_path / "failed" / "student.safetensors").is_file()


def test_non_finite_weights_do_not_ship(tmp_path):
    trained = trained_student()
    trained.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(GateFailed) as caught:
        shipping(trained, tmp_path, formats=["safetensors"])
    assert_failed(tmp_path, caught, "outputs_finite")


def test_a_path_in_the_metadata_does_not_ship(tmp_path):
    with pytest.raises(GateFailed) as caught:
        shipping(trained_student(), tmp_path, metadata={"teacher": "/somewhere/else/teacher.pt"})
    assert_failed(tmp_path, caught, "one_file_no_paths")


def test_a_gate_proved_elsewhere_can_fail_the_run(tmp_path):
    gate = Gate("teacher_unchanged", False, 1, 0, "layer1.0.bn1.running_mean moved")
    with pytest.raises(GateFailed, match=r"teacher_unchanged: 1 \(limit 0\): layer1") as caught:
        shipping(trained_student(), tmp_path, formats=["safetensors"], extra_gates=[gate])
    assert_failed(tmp_path, caught, "teacher_unchanged")


def test_a_killed_runs_staging_is_no_obstacle(tmp_path):
    (tmp_path / ".staging").mkdir()
    (tmp_path / ".staging" / "student.onnx").write_text("half")
    shipped = shipping(trained_student(), tmp_path, formats=["safetensors"])
    assert "student.onnx" not in shipped.files
