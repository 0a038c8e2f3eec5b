"""Scripted runtimes are told apart, and a cell that fails takes nothing else down."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.mean_classifier import mean_classifier

from kdcompress.bench import target
from kdcompress.bench.device import scheduler
from kdcompress.bench.measure import Artefact, Protocol, check_artefacts, measure
from kdcompress.cores import granted_cores
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.config import write_config
from kdcompress.deploy.formats import safetensors
from kdcompress.errors import UserError
from kdcompress.networks.build import build

SCRIPTED = f"{Path(__file__).with_name('scripted_runtime.py')}:Scripted"


@pytest.fixture
def scripted(tmp_path):
    numbers = itertools.count()

    def make(name, script, **fields):
        file = tmp_path / f"{next(numbers)}.script"
        file.write_text(script)
        return Artefact(name, file, (SCRIPTED,), **fields)

    return make


@pytest.fixture
def run():
    def run(*artefacts, timeout_s=30.0, rounds=6, **arguments):
        protocol = Protocol(block_s=0.02, turns=1, min_calls=3, warmup_s=0, gap_ms=0, timeout_s=timeout_s)
        document = measure(artefacts, rounds=rounds, protocol=protocol, **arguments)
        return json.loads(json.dumps(document, allow_nan=False))  # what a reader of bench.json gets

    return run


@pytest.mark.parametrize("shape", [(3, 8192, 8192), (1, 2**40, 7)])
def test_images_that_no_memory_holds_are_refused_before_anything_is_started(scripted, shape):
    with pytest.raises(UserError, match="values, and at most"):
        check_artefacts([scripted("a", "", shape=shape)], threads=[1], batch=[1], rounds=1, baseline=None)


def test_the_size_of_a_batch_is_the_users_choice(scripted):
    file = scripted("a", "", shape=(3, 1024, 1024))
    assert check_artefacts([file], threads=[1], batch=[1, 64], rounds=1, baseline=None)


def _results(document):
    return {result["artefact"]: result for result in document["results"]}


def test_half_the_time_is_a_ratio_of_two_and_faster(scripted, run):
    document = run(scripted("slow", "calls 4"), scripted("quick", "calls 2"), baseline="slow")
    quick = _results(document)["quick"]
    assert quick["latency_ms"]["p50"] == 2
    assert quick["latency_ms"]["ci95"] == [2, 2]
    assert quick["vs_baseline"] == {
        "name": "slow", "runtime": SCRIPTED, "precision": "fp32", "ratio": 2, "ci95": [2, 2], "margin": 0.02,
        "verdict": "faster",
    }  # fmt: skip
    assert quick["load_ms"] == 5
    assert quick["first_ms"] == 2
    assert _results(document)["slow"]["vs_baseline"] is None
    assert document["aa"]["ratio"] == 1
    assert document["failures"] == []


def test_twice_the_time_is_slower_and_the_same_is_no_difference(scripted, run):
    document = run(
        scripted("base", "calls 2"), scripted("same", "calls 2"), scripted("slow", "calls 4"), baseline="base"
    )
    verdicts = {
        name: r["vs_baseline"]["verdict"] for name, r in _results(document).items() if r["vs_baseline"]
    }
    assert verdicts == {"same": "no difference", "slow": "slower"}


def test_the_runtimes_of_the_baseline_are_compared_with_its_first(tmp_path, run):
    other = tmp_path / "other_runtime.py"
    other.write_text(Path(SCRIPTED.rpartition(":")[0]).read_text() + "\n\nclass Other(Scripted):\n    pass\n")
    script = tmp_path / "s.script"
    script.write_text("calls 2")
    quick = tmp_path / "q.script"
    quick.write_text("calls 1")
    both = (SCRIPTED, f"{other}:Other")
    document = run(Artefact("base", script, both), Artefact("quick", quick, both), baseline="base")
    compared = [
        (r["artefact"], r["vs_baseline"] and (r["vs_baseline"]["runtime"], r["vs_baseline"]["ratio"]))
        for r in document["results"]
    ]
    assert compared == [
        ("base", None), ("base", (SCRIPTED, 1)), ("quick", (SCRIPTED, 2)), ("quick", (both[1], 2)),
    ]  # fmt: skip


def test_the_turns_of_a_round_are_shuffled_among_those_of_the_other_cells(scripted, monkeypatch):
    asked = []

    def record(self, cell, command, **arguments):
        asked.append((cell.entry["artefact"], command))
        return ask(self, cell, command, **arguments)

    ask = scheduler._Run.ask
    monkeypatch.setattr(scheduler._Run, "ask", record)
    protocol = Protocol(block_s=0.01, turns=4, min_calls=8, warmup_s=0)
    document = measure([scripted("a", "calls 1"), scripted("b", "calls 1")], rounds=2, protocol=protocol)
    blocks = [name for name, command in asked if command == "block"][3:]  # after the warming up
    assert len(blocks) == 2 * 4 * 3  # rounds, turns, and a, b and the control
    assert all(sorted(blocks[i : i + 3]) == ["a", "a", "b"] for i in range(0, len(blocks), 3))
    (a, _) = document["results"]
    assert len(a["round_medians_ms"]) == 2
    assert a["latency_ms"]["n"] >= 2 * 8
    assert document["protocol"]["turns"] == 4


def test_two_modes_are_said(scripted, run):
    document = run(scripted("modes", "calls 1 1 1 3 3 3"), scripted("steady", "calls 1"))
    results = _results(document)
    assert results["modes"]["noise"]["bimodal"]
    assert any("two modes" in warning for warning in results["modes"]["warnings"])
    assert not results["steady"]["noise"]["bimodal"]


def test_a_hang_a_crash_and_an_error_are_failures_and_the_rest_is_measured(scripted, run):
    document = run(
        scripted("fine", "calls 1"),
        scripted("hangs", "hang 4"),
        scripted("raises", "raise"),
        scripted("dies", "die"),
        timeout_s=4,
    )
    failures = {f["artefact"]: (f["stage"], f["type"], f["message"]) for f in document["failures"]}
    assert failures["hangs"] == ("block", "Timeout", "no answer within 4 s; ended")
    assert failures["raises"] == ("load", "ValueError", "a graph of two lines")
    assert failures["dies"][:2] == ("load", "Crashed")
    assert "out of luck" in failures["dies"][2]
    assert list(_results(document)) == ["fine"]


def test_a_baseline_that_fails_leaves_the_others_without_a_comparison(scripted, run):
    document = run(scripted("base", "raise"), scripted("own", "calls 1"), baseline="base")
    assert _results(document)["own"]["vs_baseline"] is None
    assert document["aa"] is None
    assert {failure["artefact"] for failure in document["failures"]} == {"base"}
    assert [failure["control"] for failure in document["failures"]] == [False, True]


def test_percentiles_without_enough_calls_are_null(scripted, run):
    few = _results(run(scripted("few", "calls 10")))["few"]["latency_ms"]
    assert few["n"] == 6 * 3
    assert (few["p90"], few["p99"]) == (None, None)
    many = _results(run(scripted("many", "calls 0.01")))["many"]["latency_ms"]
    assert many["n"] > 662
    assert many["p90"] == many["p99"] == 0.01


def test_below_six_rounds_no_interval_and_no_difference_is_claimed(scripted, run):
    document = run(scripted("a", "calls 4"), scripted("b", "calls 1"), baseline="a", rounds=2)
    result = _results(document)["b"]
    assert result["latency_ms"]["ci95"] is None
    assert result["vs_baseline"]["ratio"] == 4
    assert result["vs_baseline"]["verdict"] == "no difference"
    assert any("2 rounds" in warning for warning in document["warnings"])


def test_the_threads_asked_for_are_the_threads_used_and_all_are_the_granted_ones(scripted, run, monkeypatch):
    monkeypatch.setattr(target, "granted_cores", lambda: 2)
    document = run(scripted("a", "calls 1"), threads=[1, "all"], rounds=1)
    assert [r["provider"] for r in document["results"]] == ["scripted-1-1", "scripted-2-2"]
    assert [r["threads"] for r in document["results"]] == [1, 2]


def test_more_threads_than_cores_are_capped_with_a_warning(scripted, run):
    document = run(scripted("a", "calls 1"), threads=[4096], rounds=1)
    assert [r["threads"] for r in document["results"]] == [granted_cores()]
    assert any("threads=4096" in warning for warning in document["warnings"])


def test_every_batch_size_is_a_cell_with_its_own_comparison(scripted, run):
    document = run(scripted("a", "calls 2"), scripted("b", "calls 1"), baseline="a", batch=[1, 3], rounds=1)
    own = [r for r in document["results"] if r["artefact"] == "b"]
    assert [(r["batch"], r["input"]) for r in own] == [(1, [1, 1, 2, 2]), (3, [3, 1, 2, 2])]
    assert all(r["vs_baseline"]["ratio"] == 2 for r in own)


def test_parity_is_measured_on_the_images_where_a_reference_is_given(scripted, run):
    images = np.linspace(0, 1, 5 * 4, dtype=np.float32).reshape(5, 1, 2, 2)
    right = images.reshape(5, -1)[:, :2]
    document = run(
        scripted("right", "calls 1", reference=right),
        scripted("wrong", "calls 1", reference=right[:, ::-1]),
        scripted("unknown", "calls 1"),
        images=images,
        batch=[2],
        rounds=1,
    )
    results = _results(document)
    assert results["right"]["parity"] == {
        "to": "the reference", "n": 5, "top1_agreement": 1, "max_err_over_spread": 0,
    }  # fmt: skip
    assert results["wrong"]["parity"]["top1_agreement"] == 0
    assert results["unknown"]["parity"] is None
    assert results["right"]["images"] == "real"


def test_images_of_another_size_are_replaced_by_noise_and_it_is_said(scripted, run):
    document = run(scripted("a", "calls 1"), images=np.zeros((2, 1, 8, 8), np.float32), rounds=1)
    result = document["results"][0]
    assert result["images"] == "noise"
    assert any("noise" in warning for warning in result["warnings"])


def test_the_document_has_the_keys_of_its_schema(scripted, run):
    document = run(scripted("a", "calls 1", params=7, macs=9, precision="int8"), rounds=1)
    assert document["schema"] == "kdcompress.bench/1"
    keys = {
        "schema",
        "target",
        "env",
        "protocol",
        "artefacts",
        "results",
        "aa",
        "quality",
        "warnings",
        "failures",
    }
    assert keys <= set(document)
    described = document["artefacts"]["a"]
    assert (described["params"], described["macs"], described["precision"]) == (7, 9, "int8")
    assert set(described) == {"file", "sha256", "bytes", "params", "macs", "precision"}
    keys = {
        "artefact",
        "runtime",
        "provider",
        "precision",
        "threads",
        "batch",
        "parity",
        "load_ms",
        "first_ms",
    }
    keys |= {"latency_ms", "vs_baseline", "rss_mb", "noise", "warnings"}
    assert keys <= set(document["results"][0])
    assert document["results"][0]["rss_mb"]["peak"] >= document["results"][0]["rss_mb"]["base"] > 1


def test_the_order_of_the_cells_is_shuffled_by_the_seed_alone(scripted, run, monkeypatch):
    orders = []

    def record(self, cell, command, **arguments):
        orders[-1].append(cell.entry["artefact"])
        return ask(self, cell, command, **arguments)

    ask = scheduler._Run.ask
    monkeypatch.setattr(scheduler._Run, "ask", record)
    for _ in range(2):
        orders.append([])
        run(scripted("a", "calls 1"), scripted("b", "calls 1"), scripted("c", "calls 1"), rounds=4)
    assert orders[0] == orders[1]
    rounds = [tuple(orders[0][-16:][i : i + 4]) for i in range(0, 16, 4)]
    assert len(set(rounds)) > 1
    assert all(sorted(order) == ["a", "a", "b", "c"] for order in rounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "studnt"}, "the baseline 'studnt' is not among the artefacts; did you mean 'student'?"),
        ({"threads": [0]}, "bench.threads: expected a whole number of at least 1, got 0"),
        ({"batch": []}, "nothing to measure"),
        ({"rounds": 0}, "bench.rounds"),
    ],
)
def test_wrong_input_is_one_sentence_before_anything_starts(scripted, arguments, message):
    with pytest.raises(UserError) as caught:
        measure([scripted("student", "calls 1")], **arguments)
    assert message in str(caught.value)


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.onnx: no such file"):
        measure([Artefact("a", tmp_path / "absent.onnx")])
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"expected a file that ends in \.onnx \(ONNX\), \.safetensors"):
        measure([Artefact("a", tmp_path / "a.txt")])
    with pytest.raises(UserError, match=r"unknown runtime 'onnxruntim'; did you mean 'onnxruntime'"):
        measure([Artefact("a", tmp_path / "a.txt", ("onnxruntim",))])


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_worker_dies_with_its_parent_even_in_a_hanging_call(tmp_path):
    script = tmp_path / "hang.script"
    script.write_text("hang 0")
    code = (
        "import sys\n"
        "from kdcompress.bench.device.scheduler import Session\n"
        "session = Session(1)\n"
        "print(session.pid, flush=True)\n"
        f"session.ask('load', timeout_s=60, runtime={SCRIPTED!r}, file={str(script)!r}, batch=1, shape=None,"
        " images=None, seed=0)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not _is_running(worker):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent by 10 s")


def _is_running(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_an_onnx_file_is_timed_in_its_own_shape_and_agrees_with_its_reference(tmp_path, run):
    images = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    reference = images.mean((1, 2, 3))[:, None] * np.array([1.0, 2.0, 3.0])
    file = mean_classifier(tmp_path / "mean.onnx")
    document = run(Artefact("mean", file, reference=reference), images=images, batch=[3], rounds=1)
    (result,) = document["results"]
    assert (result["runtime"], result["provider"]) == ("onnxruntime", "CPUExecutionProvider")
    assert result["input"] == [3, 1, 8, 8]
    assert result["parity"]["max_err_over_spread"] < 1e-4
    assert 0 < result["latency_ms"]["min"] <= result["latency_ms"]["p50"]


def test_a_file_that_cannot_run_as_asked_fails_in_a_sentence(tmp_path, run):
    fixed = Artefact("fixed", mean_classifier(tmp_path / "fixed.onnx", batch=2))
    open_size = Artefact("open", mean_classifier(tmp_path / "open.onnx", size="side"))
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    document = run(fixed, open_size, Artefact("broken", tmp_path / "broken.onnx"), rounds=1)
    messages = {failure["artefact"]: failure["message"] for failure in document["failures"]}
    assert messages["fixed"] == "the model's batch is fixed at 2, asked for 1"
    assert "leaves its image size open" in messages["open"]
    assert "\n" not in messages["broken"]
    assert document["results"] == []


def test_a_shipped_network_is_timed_in_torch_with_its_normalisation(tmp_path, run):
    spec = InputSpec(3, 16, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    network = build("cifar/resnet8", num_classes=4, channels=3, image_size=(16, 16)).eval()
    safetensors.write(network, spec, tmp_path / "student.safetensors", metadata={})
    write_config(
        tmp_path / "config.json",
        model="cifar/resnet8",
        num_classes=4,
        spec=spec,
        class_names=("a", "b", "c", "d"),
        extra={},
    )
    images = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
    with torch.inference_mode():
        reference = network(torch.from_numpy((images - mean) / std)).numpy()
    artefact = Artefact("student", tmp_path / "student.safetensors", reference=reference)
    document = run(artefact, images=images, rounds=1)
    assert document["failures"] == []
    (result,) = document["results"]
    assert (result["runtime"], result["provider"], result["input"]) == ("torch", "cpu", [1, 3, 16, 16])
    assert result["parity"]["max_err_over_spread"] < 1e-4
