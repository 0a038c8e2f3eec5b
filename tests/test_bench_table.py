"""The table shows what the document holds: intervals, unknown percentiles, warnings, failures."""

from __future__ import annotations

import io

from rich.console import Console

from kdcompress.commands.bench_table import print_table


def _result(name, **fields):
    latency = {"p50": 2.5, "ci95": [2.4, 2.625], "p90": None, "p99": None, "min": 2.0, "n": 60}
    result = {"artefact": name, "runtime": "onnxruntime", "precision": "fp32", "threads": 1, "batch": 1}
    result |= {
        "latency_ms": latency,
        "vs_baseline": None,
        "parity": None,
        "load_ms": 18.25,
        "first_ms": 1234.5,
        "rss_mb": {"base": 50.0, "peak": 91.7},
        "warnings": [],
    }
    return result | fields


def _document(**fields):
    comparison = {"name": "teacher", "ratio": 7.8, "ci95": [7.5, 8.1], "verdict": "faster"}
    failure = {"artefact": "x", "runtime": "torch", "precision": "fp32", "threads": 1, "batch": 1}
    failure |= {"stage": "load", "type": "E"}
    document = {
        "env": {"cpu": "A CPU", "granted_cores": 2, "logical_cores": 8, "runtimes": {"onnxruntime": "1.2"}},
        "artefacts": {
            "student": {"bytes": 1_250_000, "macs": None},
            "teacher": {"bytes": 178_000_000, "macs": 7_801_000_000},
        },
        "results": [_result("student", vs_baseline=comparison, warnings=["two modes"]), _result("teacher")],
        "aa": {"ratio": 1.01, "ci95": [0.99, 1.03]},
        "quality": "ok",
        "warnings": ["the machine is busy"],
        "failures": [failure | {"message": "[no] file"}],
    }
    return document | fields


def _printed(document):
    stream = io.StringIO()
    print_table(document, Console(file=stream, width=160))
    return stream.getvalue()


def test_a_line_per_result_with_its_interval_and_verdict():
    text = _printed(_document())
    (line,) = [line for line in text.splitlines() if line.strip().startswith("student")]
    assert "2.5 [2.4, 2.62]" in line
    assert "n/a" in line  # p90 of 60 calls
    assert "7.80x [7.5, 8.1] faster" in line
    assert "1.25" in line
    assert " 18.2 " in line  # load
    assert " 1234 " in line  # first call: no exponent
    assert "7.8 " in next(line for line in text.splitlines() if line.strip().startswith("teacher"))


def test_the_footer_says_what_the_figures_hold_for():
    text = _printed(_document())
    assert "A CPU, 2 of 8 cores; onnxruntime 1.2" in text
    assert "A/A control (the same file twice): 1.01x [0.99, 1.03]; quality: ok" in text
    assert "warning: the machine is busy" in text
    assert "warning: student (onnxruntime fp32, threads 1, batch 1): two modes" in text
    assert "failed: x (torch fp32, threads 1, batch 1) at load: E: [no] file" in text  # no markup


def test_what_holds_for_every_result_is_said_once():
    results = [_result(name, warnings=["timed on noise"]) for name in ("student", "teacher")]
    text = _printed(_document(results=results))
    assert text.count("timed on noise") == 1
    assert "warning: all: timed on noise" in text


def test_without_a_baseline_there_is_no_such_column():
    text = _printed(_document(results=[_result("teacher")], aa=None))
    assert "vs baseline" not in text


def test_agreement_and_accuracy_have_columns_where_they_are_known():
    assert "same class" not in _printed(_document())
    assert "top-1" not in _printed(_document())
    parity = {"to": "student (onnxruntime, threads 1, batch 1)", "n": 32, "top1_agreement": 0.96875}
    document = _document(results=[_result("student"), _result("student", runtime="openvino", parity=parity)])
    document["artefacts"]["student"]["accuracy"] = {"top1": 0.912, "n": 100}
    text = _printed(document)
    assert "same class" in text
    assert "96.9 %" in next(line for line in text.splitlines() if "openvino" in line)
    assert text.count("91.2 %") == 2


def test_equal_classes_of_random_noise_are_not_shown():
    parity = {"to": "student (onnxruntime, threads 1, batch 1)", "n": 32, "top1_agreement": 0.96875}
    results = [_result("student", images="noise"), _result("teacher", images="noise", parity=parity)]
    text = _printed(_document(results=results))
    assert "same class" not in text
    assert "96.9" not in text


def test_what_has_changed_since_an_earlier_document_is_a_table_of_its_own():
    row = {"artefact": "student", "runtime": "onnxruntime", "precision": "fp32", "threads": 1, "batch": 1}
    row |= {"old_ms": 2.5, "new_ms": 5.0, "ratio": 0.5, "ci95": [0.48, 0.52], "by": "times"}
    compared = {
        "file": "OLD.json",
        "date_utc": "2026-01-02",
        "warnings": ["another processor: 'A', now 'B'"],
        "results": [row | {"verdict": "slower"}],
        "only_new": ["x (torch fp32, threads 1, batch 1)"],
        "only_old": [],
    }
    text = _printed(_document(compare=compared))
    assert "since OLD.json (2026-01-02)" in text
    assert "0.50x [0.48, 0.52] slower" in text
    assert "warning: compared with OLD.json: another processor: 'A', now 'B'" in text
    assert "not in OLD.json: x (torch fp32" in text
    assert "only in" not in text


def test_where_nothing_could_be_measured_the_failures_stand_alone():
    text = _printed(_document(results=[], aa=None, warnings=[]))
    assert "p50" not in text
    assert "failed: x" in text
