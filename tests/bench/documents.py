"""Benchmark documents, made up."""

from __future__ import annotations

import copy

ENV = {
    "date_utc": "2026-01-02T03:04:05+00:00",
    "cpu": "A CPU",
    "machine": "x86_64",
    "granted_cores": 2,
    "logical_cores": 8,
    "governor": None,
    "turbo": None,
    "on_battery": None,
    "kernel": "6.1",
    "os": "Linux",
    "runtimes": {"onnxruntime": "1.2", "torch": "2.9"},
}


def result(name, p50=2.5, *, spread=0.02, base=None, ratio=None, **fields):
    """A result of one thread and batch 1 in ONNX Runtime; its interval is p50 times 1 ∓ spread."""
    made = {"artefact": name, "runtime": "onnxruntime", "precision": "fp32", "threads": 1, "batch": 1}
    made["latency_ms"] = {"p50": p50, "ci95": [p50 * (1 - spread), p50 * (1 + spread)]}
    made["latency_ms"] |= {"p90": 1.2 * p50, "p99": None, "min": 0.9 * p50, "n": 400}
    made |= {"parity": None, "load_ms": 18.0, "first_ms": 4.0, "throughput_img_s": 1e3 / p50}
    made |= {"rss_mb": {"base": 50.0, "peak": 92.0}, "warnings": [], "round_medians_ms": [p50, p50]}
    made["vs_baseline"] = base and {
        "name": base,
        "runtime": "onnxruntime",
        "precision": "fp32",
        "ratio": ratio,
        "ci95": [ratio * (1 - spread), ratio * (1 + spread)],
        "margin": 0.02,
        "verdict": "faster",
    }
    return made | fields


def document(*results, **fields):
    """Of these results; every artefact's file is its own."""
    names = dict.fromkeys(result["artefact"] for result in results)
    artefacts = {
        name: {"file": f"{name}.onnx", "sha256": f"sha of {name}", "bytes": 2_000_000, "params": 5, "macs": 7}
        for name in names
    }
    made = {
        "schema": "kdcompress.bench/1",
        "env": ENV,
        "protocol": {"rounds": 21, "block_s": 0.5, "turns": 10},
        "artefacts": artefacts,
        "results": list(results),
        "aa": {"ratio": 1.0, "ci95": [0.99, 1.01], "artefact": "teacher"},
        "quality": "ok",
        "warnings": [],
        "failures": [],
    }
    return copy.deepcopy(made | fields)
