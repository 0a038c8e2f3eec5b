"""Run folders as a finished run leaves them, made up."""

from __future__ import annotations

import json
import math

import yaml

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

RECIPE = {
    "name": "resnet32x4-to-resnet8x4",
    "seed": 0,
    "data": {"dataset": "cifar10", "root": None, "image_size": None, "batch_size": 64, "held_out": 0.1},
    "teacher": {"model": "cifar/resnet32x4", "weights": None, "train": "auto", "epochs": 30},
    "student": {"model": "cifar/resnet8x4", "weights": None},
    "peers": [],
    "method": {"name": "kd", "temperature": 4.0, "weight": 0.9},
    "train": {"epochs": 60, "precision": "auto", "ship": "best"},
    "optim": {"name": "sgd", "lr": 0.05, "weight_decay": 0.0005, "schedule": "cosine"},
}


def write_run(
    folder,
    *,
    baseline=True,
    bench=True,
    gate_fails=False,
    teacher=True,
    epochs=60,
    labels=True,
    backbone=False,
):
    """Writes every file of a run, plausible in each; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {**RECIPE, "teacher": RECIPE["teacher"] if teacher else None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    phases = {"teacher": (0.952, 0.9)} if teacher else {}
    phases["student"] = (0.931, 1.0)
    if baseline:
        phases["baseline"] = (0.917, 1.3)
    with (folder / "log.jsonl").open("w") as log:
        for phase, (top1, start) in phases.items():
            for epoch in range(epochs):
                line = _log_line(phase, epoch, epochs, top1, start)
                if phase == "student":
                    line["held_out"] = _held_out(line["held_out"], labels, backbone)
                log.write(json.dumps(line) + "\n")
    _json(folder / "results.json", _results(baseline, teacher, labels, backbone))
    _json(folder / "gates.json", {"schema": "kdcompress.gates/1", "gates": _gates(gate_fails)})
    if bench:
        _json(folder / "bench.json", _bench(teacher))
    _json(folder / "config.json", _config(backbone))
    _json(folder / "labels.json", [] if backbone else list(CLASSES))
    for name in ("student.onnx", "student.safetensors"):
        (folder / name).write_bytes(b"weights")
    _json(folder / "manifest.json", _manifest(teacher))
    return folder


def _json(path, document):
    path.write_text(json.dumps(document))


def _log_line(phase, epoch, epochs, top1, start):
    progress = (epoch + 1) / epochs
    wobble = 0.02 * math.sin(7 * epoch) * (1 - progress)
    decay = math.exp(-4 * progress)
    losses = {"cross_entropy": 0.05 + start * decay}
    if phase == "student":
        losses = {"cross_entropy": 0.02 + 0.2 * start * decay, "kd": 0.4 + 5 * start * decay}
    return {
        "schema": "kdcompress.log/1",
        "phase": phase,
        "epoch": epoch + 1,
        "step": 703 * (epoch + 1),
        "seconds": 41.5,
        "images_per_s": 1084.0,
        "lr": 0.025 * (1 + math.cos(math.pi * progress)),
        "losses": losses,
        "held_out": {"top1": top1 - 0.5 * decay + wobble, "loss": 0.3 + decay},
    }


def _held_out(figures, labels, backbone):
    if labels and not backbone:
        return figures
    found = {"knn_top1": figures["top1"]} if labels else {}
    return {**found, "agreement": figures["top1"] - 0.1}


def _scores(top1, params, macs, size, labels):
    per_class = [min(1.0, top1 + 0.03 * math.sin(3 * k) - (0.1 if k == 3 else 0)) for k in range(10)]
    scores = {"top1": top1, "balanced_top1": top1 - 0.001, "per_class": per_class, "n": 10000}
    if not labels:
        scores = {"top1": None, "balanced_top1": None, "per_class": [None] * 10, "n": 0, "agreement": 0.953}
    return scores | {"params": params, "macs": macs, "bytes": size}


def _results(baseline, teacher, labels, backbone):
    student = _scores(0.9312, 1_209_834, 177_000_000, 4_870_000, labels)
    if backbone:
        student |= {"top1": None, "balanced_top1": None, "per_class": [], "agreement": 0.617}
        student |= {"knn_top1": 0.842 if labels else None}
    return {
        "schema": "kdcompress.results/1",
        "student": student,
        "teacher": _scores(0.9523, 7_410_154, 1_083_000_000, 29_700_000, labels) if teacher else None,
        "baseline": _scores(0.9174, 1_209_834, 177_000_000, 4_870_000, labels) if baseline else None,
        "gain": {"points": 1.38, "ci95": [0.81, 1.95], "verdict": "better"}
        if baseline and labels and not backbone
        else None,
    }


def _gates(gate_fails):
    rows = [
        ("strict_load", True, 0, 0, "keys missing or left over in a fresh network"),
        ("equal_outputs", True, 0.0, 1e-6, "trained module against the plain network, in eval mode"),
        ("same_keys", True, 50, 50, "tensors of the plain network and of a fresh student"),
        ("parameters", True, 1209834, 1209834, "as many as a fresh student"),
        ("macs", True, 177000000, 177000000, "as many as a fresh student"),
        ("onnx_checker", True, "valid", "valid", "full check of the graph"),
        ("opset", True, 20, 20, "read back from the file"),
        ("provider", True, "CPUExecutionProvider", "CPUExecutionProvider", "the one that ran"),
        ("outputs_vary", True, 2.13, 0.0004, "spread of the logits between images"),
        ("parity_batch_1", True, 2.1e-6, 0.005, "largest error over the spread, on real images"),
        ("parity_batch_3", True, 2.4e-6, 0.005, "largest error over the spread, on real images"),
        (
            "top1_exported",
            not gate_fails,
            0.9312 if not gate_fails else 0.8801,
            0.9312,
            "on 10 000 test images",
        ),
    ]
    keys = ("gate", "passed", "figure", "limit", "detail")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _bench_result(name, p50, half, verdict, ratio):
    against = {"name": "teacher", "ratio": ratio, "verdict": verdict}
    if verdict:
        against["ci95"] = [ratio - 0.3, ratio + 0.3]
    rest = {"min": 0.9 * p50, "n": 420}
    return {
        "artefact": name,
        "runtime": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "input": [1, 3, 32, 32],
        "images": "real",
        "parity": None,
        "load_ms": 21.4,
        "first_ms": 1.3 * p50,
        "latency_ms": {"p50": p50, "ci95": [p50 - half, p50 + half], "p90": 1.1 * p50, "p99": None} | rest,
        "round_medians_ms": [p50] * 21,
        "vs_baseline": against if verdict else None,
        "rss_mb": {"base": 52.0, "peak": 91.0},
        "noise": {"bimodal": False},
        "warnings": [],
    }


def _bench(teacher):
    artefact = {"file": "student.onnx", "sha256": "0" * 64, "params": 1, "macs": 1, "precision": "fp32"}
    results = [_bench_result("student", 2.31, 0.09, "faster" if teacher else None, 6.4)]
    if teacher:
        results.append(_bench_result("teacher", 14.8, 0.6, None, None))
    return {
        "schema": "kdcompress.bench/1",
        "target": {"kind": "local"},
        "env": {
            "cpu": "Example CPU", "granted_cores": 2, "logical_cores": 8, "vm": True, "governor": None,
            "runtimes": {"onnxruntime": "1.31.1", "torch": "2.14.1"},
        },
        "protocol": {"rounds": 21},
        "artefacts": {
            "student": {**artefact, "bytes": 4_870_000}, "teacher": {**artefact, "bytes": 29_700_000},
        },
        "results": results,
        "aa": {"ratio": 1.01, "ci95": [0.99, 1.03], "threads": 1, "batch": 1, "artefact": "teacher"},
        "quality": "ok",
        "warnings": ["the machine is busy (load 1.4 on 2 cores): trust the ratios more than the times"],
        "failures": [],
    }  # fmt: skip


def _config(backbone):
    spec = {
        "channels": 3, "height": 32, "width": 32,
        "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616],
        "resize": None, "crop": None, "interpolation": "bilinear",
    }  # fmt: skip
    return {
        "schema": "kdcompress.config/1",
        "kdcompress": {"builder": "cifar/resnet8x4", "version": "0.1.0"},
        "num_classes": 0 if backbone else 10,
        "label_names": [] if backbone else list(CLASSES),
        "num_features": 256,
        "input": spec,
    }


def _manifest(teacher):
    return {
        "schema": "kdcompress.manifest/1",
        "kdcompress": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.14.1", "torchvision": "0.29.1", "onnxruntime": "1.31.1"},
        "seed": 0,
        "threads": 2,
        "device": "cpu",
        "teacher": {
            "model": "cifar/resnet32x4",
            "weights": "trained here",
            "sha256": "ab" * 32,
            "license": None,
        }
        if teacher
        else None,
        "data": {
            "name": "cifar10",
            "listing_sha256": "cd" * 32,
            "counts": {"train": 45000, "held_out": 5000, "test": 10000},
        },
        "files": {
            "student.onnx": {"sha256": "12" * 32, "bytes": 4_870_000},
            "student.safetensors": {"sha256": "34" * 32, "bytes": 4_861_000},
        },
        "command": "kdcompress distill --recipe resnet32x4-to-resnet8x4 --baseline",
    }
