from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from one_of_two import FROZEN, LIVE, frozen
from small_training import ALONE, Small, assert_same
from two_processes import TESTS, run_two

from kdcompress.errors import UserError
from kdcompress.tasks import CLASSIFICATION
from kdcompress.train.processes import join, number_of
from kdcompress.train.scores import HeldOutScores


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes saw, and the folder they worked in."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_two(TESTS / "train" / "one_of_two.py", folder)


@pytest.mark.parametrize("name", FROZEN)
def test_two_processes_train_what_one_trains_on_the_same_global_batches(two, name, tmp_path):
    _, (first, second) = two
    assert_same(first[name], second[name])
    alone = Small(tmp_path, **frozen(name))
    before = {key: tensor.clone() for key, tensor in alone.tensors().items()}
    alone.run()
    expected = alone.tensors()
    moved = [key for key in expected if (expected[key] - before[key]).abs().max() > 1e-3]
    assert moved
    for key, tensor in first[name].items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-8, atol=1e-8, msg=key)


def test_with_batch_norm_as_it_is_every_process_ends_with_the_same_weights_and_buffers(two):
    _, (first, second) = two
    assert_same(first["as_it_is"], second["as_it_is"])
    assert_same(first["outcome"].state, second["outcome"].state)
    assert first["outcome"].best == second["outcome"].best


@pytest.mark.parametrize("name", LIVE)
def test_with_live_batch_norm_no_method_lets_the_processes_drift_apart(two, name):
    _, (first, second) = two
    assert_same(first["live"][name], second["live"][name])


def test_the_processes_score_what_one_scores_and_an_average_has_the_same_statistics_in_all(two, tmp_path):
    _, (first, second) = two
    assert_same(first["averaged"].state, second["averaged"].state)
    assert first["averaged"].candidates.keys() == {"student", "peer1", "ema"}
    alone = Small(tmp_path, "dml")
    alone.student.network.load_state_dict(first["student"])
    scores = HeldOutScores(CLASSIFICATION, None, ALONE)
    networks = {"student": (alone.student.network, alone.student)}
    expected, parts = scores(networks, alone.trainer.choice._held_out)
    assert first["scores"][0] == expected
    assert_same(first["scores"][1], parts)
    assert second["scores"] == ({}, {})


def test_a_process_without_rows_has_none_collected(two):
    _, (first, _) = two
    assert torch.equal(first["rows"], torch.tensor([0.0]))


def test_the_processes_share_out_the_sample_order_of_one(two, tmp_path):
    _, (first, second) = two
    alone = Small(tmp_path, "dml")
    whole = [batch.indices for epoch in range(2) for batch in alone.loader.epoch(epoch)]
    for mine, theirs, both in zip(first["indices"], second["indices"], whole, strict=True):
        assert torch.equal(torch.cat([mine, theirs]), both)


def test_a_loss_that_is_not_finite_in_one_process_stops_all_of_them_at_that_step(two):
    _, seen = two
    for each in seen:
        assert each["not_finite"].startswith(
            "NonFiniteLoss: student, step 3: the loss is not finite (ce = inf)"
        )
        assert each["not_finite_step"] == 2


def test_checks_that_are_read_late_change_no_bit_and_no_log_line_and_stop_all_processes(two):
    folder, seen = two
    for each in seen:
        assert_same(each["late"], each["as_it_is"])
        assert each["late_not_finite"].startswith(
            "NonFiniteLoss: student, step 3: the loss is not finite (ce = inf)"
        )
    assert not (folder / "late_not_finite" / "student.pt").exists()
    logs = [(folder / run / "log.jsonl").read_text().splitlines() for run in ("as_it_is", "late")]
    for immediate, late in zip(*logs, strict=True):
        expected, got = json.loads(immediate), json.loads(late)
        assert got["held_out"] == expected["held_out"]
        assert got["losses"] == pytest.approx(expected["losses"], rel=1e-5)


def test_a_signal_to_one_process_stops_all_of_them_at_the_same_step_and_a_resume_repeats_the_bits(two):
    _, seen = two
    for each in seen:
        assert each["stopped"].startswith("Interrupted: stopped at step 7 of 10")
        assert_same(each["unbroken"], each["resumed"])
    assert not torch.equal(seen[0]["first_draw"], seen[1]["first_draw"])


def test_the_log_is_written_once(two):
    folder, _ = two
    for run in ("as_it_is", "stopped"):
        epochs = [json.loads(line)["epoch"] for line in (folder / run / "log.jsonl").read_text().splitlines()]
        assert epochs == [1, 2]


def test_what_is_done_in_turn_is_done_by_the_first_process_first(two):
    _, (first, second) = two
    assert first["turns"] == []
    assert second["turns"] == ["turn0"]


def test_a_process_that_is_left_alone_says_so_and_ends(two):
    _, (first, _) = two
    assert first["left_alone"].startswith("WorldError: another process of this run has ended")


def test_processes_that_cannot_find_each_other_are_told_how_to_start(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="start several processes with torchrun --nproc_per_node 2"):
        join("cpu")


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="3 processes or more; torch sees 2 CUDA devices"):
        join("auto")


def test_cuda_is_not_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here; take --device cpu"):
        join("cuda")
    assert join("auto").device.type == "cpu"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_torchrun_distils_from_recipe_to_report(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "kdcompress", "distill", "--recipe", "quickstart", "--out", "run", "-q",
        *(part for value in ("train.epochs=3", "teacher.epochs=2", "bench.rounds=1", "teacher.min_top1=0")
          for part in ("--set", value)),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = tmp_path / "run"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert {"student.onnx", "student.safetensors", "report.html"} <= manifest["files"].keys()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["phase"] == "student"] == [1, 2, 3]
    assert json.loads((run / "results.json").read_text())["student"]["top1"] > 0.5
    assert safetensors.torch.load_file(run / "student.safetensors")["fc.weight"].shape == (10, 64)


@pytest.mark.parametrize("text", ["one", "-1", "1" * 5000, "1.5"])
def test_a_process_number_that_is_none_is_said(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(UserError, match="WORLD_SIZE: expected a number from torchrun or the scheduler, got"):
        number_of("WORLD_SIZE", 1)
    monkeypatch.setenv("WORLD_SIZE", "")
    assert number_of("WORLD_SIZE", 1) == 1
