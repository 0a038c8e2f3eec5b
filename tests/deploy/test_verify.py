from __future__ import annotations

import copy
import functools
import json

import numpy as np
import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, trained_student
from torch import nn

from kdcompress.deploy.gate import Gate, at_most, document, equal
from kdcompress.deploy.network_gates import network_gates
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.strip import fresh_student, plain_student
from kdcompress.deploy.verify import parity_gates, prove, split_gates
from kdcompress.errors import UserError

SIZE = {"num_classes": len(CLASSES), "channels": 3, "image_size": (16, 16)}
fresh = functools.partial(fresh_student, MODEL, **SIZE)


def by_name(gates):
    return {gate.gate: gate for gate in gates}


@pytest.fixture(scope="module")
def plain(student):
    return plain_student(student.state_dict(), MODEL, **SIZE)


@pytest.fixture(scope="module")
def reference(plain):
    deployed = Deployed(plain, SPEC)
    deployed.eval()
    return deployed.run


@pytest.fixture(scope="module")
def logits(reference):
    return torch.from_numpy(reference(images(50).numpy()))


def on_split(logits, exported):
    return by_name(split_gates(logits, exported, batches())[1])


def on_images(reference, logits, exported):
    return by_name(parity_gates(reference, exported, images(24), logits))


# The network.


def test_a_stripped_network_passes(student, plain):
    gates = by_name(network_gates(student, plain, fresh, SPEC, images(4)))
    assert set(gates) == {"strict_load", "equal_outputs", "same_keys", "parameters", "macs"}
    assert all(gate.passed for gate in gates.values())
    assert gates["equal_outputs"].figure == 0.0
    assert gates["parameters"].figure == gates["parameters"].limit > 0
    assert gates["macs"].figure == gates["macs"].limit > 0


def test_a_layout_or_a_wrapper_of_the_training_changes_no_figure(student, plain):
    trained = torch.compile(copy.deepcopy(student).to(memory_format=torch.channels_last), backend="eager")
    gates = by_name(network_gates(trained, plain, fresh, SPEC, images(4)))
    assert all(gate.passed for gate in gates.values())


def test_other_weights_are_caught(plain):
    gates = by_name(network_gates(trained_student(1), plain, fresh, SPEC, images(4)))
    assert not gates["equal_outputs"].passed


def test_a_change_of_one_batch_norm_statistic_is_caught(student, plain):
    trained = copy.deepcopy(student)
    trained.bn1.running_mean[0] += 0.01
    gates = by_name(network_gates(trained, plain, fresh, SPEC, images(4)))
    assert not gates["equal_outputs"].passed
    assert gates["strict_load"].passed


def test_a_module_that_gives_more_than_logits_is_caught(student, plain):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = student

        def forward(self, x):
            return self.network(x), x

    gates = by_name(network_gates(Pair(), plain, fresh, SPEC, images(4)))
    assert not gates["equal_outputs"].passed
    assert "tuple" in gates["equal_outputs"].detail
    assert not gates["strict_load"].passed


def test_a_head_left_in_the_plain_network_is_caught(student, plain):
    fat = copy.deepcopy(plain)
    fat.auxiliary = nn.Linear(4, 4)
    gates = by_name(network_gates(student, fat, fresh, SPEC, images(4)))
    assert not gates["same_keys"].passed
    assert not gates["parameters"].passed
    assert "auxiliary" in gates["same_keys"].detail


def test_more_arithmetic_than_a_fresh_student_needs_is_caught(student, plain):
    slow = copy.deepcopy(plain)
    slow.register_forward_pre_hook(lambda module, inputs: (module.conv1(inputs[0]), inputs[0])[1:])
    gates = by_name(network_gates(student, slow, fresh, SPEC, images(4)))
    assert not gates["macs"].passed


# The file on the whole split.


def test_a_file_that_equals_pytorch_passes(logits, reference):
    gates = on_split(logits, reference)
    assert all(gate.passed for gate in gates.values())
    assert gates["parity_test_split"].figure < 1e-5
    assert "50 test images" in gates["top1_exported"].detail


def test_one_wrong_image_of_the_split_is_caught(logits, reference):
    def wrong(x):
        y = reference(x)
        y[:, 2] += 100 * (np.abs(x - images(50)[33].numpy()).max((1, 2, 3)) < 1e-6)
        return y

    gates = on_split(logits, wrong)
    assert not gates["top1_exported"].passed
    assert gates["top1_exported"].figure == pytest.approx(0.98)
    assert not gates["parity_test_split"].passed


def test_a_flip_between_two_equal_logits_is_a_tie():
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).double()
    logits[7, :2] = torch.tensor([9.0, 9.0 - 1e-9], dtype=torch.float64)
    flipped = logits.clone()
    flipped[7, :2] = flipped[7, :2].flip(0)
    rows = iter(flipped.split(16))
    gates = on_split(logits, lambda _: next(rows).numpy())
    assert gates["top1_exported"].passed
    assert "1 ties aside" in gates["top1_exported"].detail


def test_a_flip_across_a_margin_is_no_tie():
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).double()
    logits[7, :2] = torch.tensor([9.0, 8.9])
    flipped = logits.clone()
    flipped[7, :2] = flipped[7, :2].flip(0)
    rows = iter(flipped.split(16))
    assert not on_split(logits, lambda _: next(rows).numpy())["top1_exported"].passed


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_outputs_that_do_not_depend_on_the_image_are_caught(constant):
    logits = torch.full((50, 5), constant)
    gates = on_split(logits, lambda x: np.full((len(x), 5), constant, np.float32))
    assert not gates["outputs_vary"].passed
    assert "look untrained" in gates["outputs_vary"].detail


def test_a_nan_in_the_file_passes_nothing(logits, reference):
    gates = on_split(logits, lambda x: reference(x) * np.nan)
    assert not gates["outputs_vary"].passed
    assert not gates["parity_test_split"].passed
    assert not gates["top1_exported"].passed


def test_another_number_of_classes_is_caught(logits, reference):
    gates = on_split(logits, lambda x: reference(x)[:, :4])
    assert not gates["top1_exported"].passed


def test_an_unlabelled_split_is_compared_by_classes(logits, reference):
    unlabelled = [(x, torch.full((len(x),), -1)) for x, _ in batches()]
    gates = by_name(split_gates(logits, reference, unlabelled)[1])
    assert gates["top1_exported"].passed
    assert "top-1" not in gates["top1_exported"].detail


# The file at batch 1, 2 and 3.


def test_a_file_that_takes_any_batch_passes(reference, logits):
    gates = on_images(reference, logits, reference)
    assert set(gates) == {"parity_batch_1", "parity_batch_2", "parity_batch_3", "batch_invariance"}
    assert all(gate.passed for gate in gates.values())
    assert gates["parity_batch_3"].limit == 5e-3


def test_an_error_is_held_against_the_spread_not_the_size_of_the_logits(reference, logits):
    shifted = logits + 1000
    gates = on_images(lambda x: reference(x) + 1000, shifted, lambda x: reference(x) + 1000.05)
    assert not gates["parity_batch_1"].passed  # 5e-5 of the size, but far more of what tells images apart


def test_a_file_wrong_at_one_batch_size_is_caught_there(reference, logits):
    gates = on_images(reference, logits, lambda x: reference(x) + (len(x) == 3))
    assert [gates[f"parity_batch_{size}"].passed for size in (1, 2, 3)] == [True, True, False]
    assert not gates["batch_invariance"].passed


def test_a_file_that_refuses_a_batch_size_is_caught(reference, logits):
    def picky(x):
        if len(x) != 2:
            raise UserError(f"fails on {len(x)}")
        return reference(x)

    gates = on_images(reference, logits, picky)
    assert [gates[f"parity_batch_{size}"].passed for size in (1, 2, 3)] == [False, True, False]
    assert "baked" in gates["parity_batch_3"].detail


def test_a_file_that_always_gives_two_rows_is_caught(reference, logits):
    gates = on_images(reference, logits, lambda x: reference(np.resize(x, (2, *x.shape[1:]))))
    assert [gates[f"parity_batch_{size}"].passed for size in (1, 2, 3)] == [False, True, False]


def test_a_graph_with_a_baked_batch_fails_the_proof(student, plain, tmp_path):
    class Patches(nn.Module):
        """As a vision transformer that notes the batch size down when it is traced."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x.flatten(1).reshape(2, *x.shape[1:]))

    path = tmp_path / "student.onnx"
    deployed = Deployed(Patches(copy.deepcopy(plain)), SPEC).eval()
    program = torch.onnx.export(
        deployed, (images(2),), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
    )
    program.save(path)
    proof = prove(trained=student, plain=plain, fresh=fresh, spec=SPEC, files={"onnx": path}, batches=batches)
    gates = by_name(proof.gates)
    assert not proof.passed
    assert proof.exported is None
    assert [gates[f"parity_batch_{size}"].passed for size in (1, 2, 3)] == [False, True, False]
    assert not gates["top1_exported"].passed
    assert not gates["one_file_no_paths"].passed  # written without taking the stack traces out


def test_a_changed_tensor_in_the_safetensors_file_is_caught(run, student, plain, tmp_path):
    import safetensors.torch

    folder, _ = run
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    path = tmp_path / "student.safetensors"
    tensors = safetensors.torch.load_file(folder / "student.safetensors")
    tensors["fc.bias"] += 1e-6
    safetensors.torch.save_file(tensors, path)
    files = {"safetensors": path}
    gates = by_name(
        prove(trained=student, plain=plain, fresh=fresh, spec=SPEC, files=files, batches=batches).gates
    )
    assert not gates["safetensors_round_trip"].passed
    assert "fc.bias" in gates["safetensors_round_trip"].detail


def test_a_split_of_two_images_can_still_be_proved(student, plain, run):
    folder, _ = run
    files = {"onnx": folder / "student.onnx"}
    few = functools.partial(batches, 2)
    proof = prove(trained=student, plain=plain, fresh=fresh, spec=SPEC, files=files, batches=few)
    assert proof.passed


# What a gate says.


def test_a_gate_without_a_number_is_still_json():
    told = document(
        [at_most("a", float("nan"), 1.0, "x"), at_most("b", float("inf"), 1.0, "x"), equal("c", 1, 1, "")]
    )
    assert [gate["passed"] for gate in told["gates"]] == [False, False, True]
    assert json.loads(json.dumps(told, allow_nan=False))["gates"][0]["figure"] == "nan"


def test_a_gate_in_words_names_figure_and_limit():
    assert str(Gate("macs", False, 12, 10, "one image")) == "macs: 12 (limit 10): one image"
    assert str(at_most("parity", 0.25, 0.005, "x")) == "parity: 0.25 (limit 0.005): x"
