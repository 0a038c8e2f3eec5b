"""A run whose outputs on a split are too many for memory gives the figures that any other run gives."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.metrics import split_rows as rows
from kdcompress.networks.build import build


def run(folder, weights):
    """Two steps of the quickstart with a teacher, a baseline and an int8 file."""
    arguments = [
        "distill", "--recipe", "quickstart", "--method", "kd", "--baseline", "--threads", 1, "--out", folder,
        "--set", "teacher.model=cifar/resnet8", "--set", f"teacher.weights={weights}",
        "--set", "teacher.min_top1=0", "--set", "train.max_steps=2", "--set", "bench.rounds=1",
        "--set", "export.int8={max_drop: 100}",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    # Both trainings are called "student"; what trains is said before.
    baseline = f"Baseline: the student without distillation; its log: {folder / 'baseline'}"
    lines = done.stderr.splitlines()
    assert lines.index(baseline) < lines.index("Student: trained by kd")
    return {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("results", "gates", "details")
    }


def numbers(document, path=""):
    """Yields every number of a document but those that are times, with its path."""
    if isinstance(document, dict):
        for key, value in document.items():
            if "seconds" not in key and key not in ("timings", "images_per_s"):
                yield from numbers(value, f"{path}.{key}")
    elif isinstance(document, list):
        for place, value in enumerate(document):
            yield from numbers(value, f"{path}[{place}]")
    elif isinstance(document, (int, float)):
        yield path, document


def test_figures_do_not_depend_on_where_the_outputs_are(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = build("cifar/resnet8", num_classes=10, channels=1, image_size=(8, 8))
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    in_memory = run(tmp_path / "memory", tmp_path / "teacher.pth")
    files = []
    real = rows.tempfile.TemporaryFile
    monkeypatch.setattr(rows.tempfile, "TemporaryFile", lambda **k: files.append(real(**k)) or files[-1])
    monkeypatch.setattr(rows, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 200)  # five images
    in_files = run(tmp_path / "files", tmp_path / "teacher.pth")
    assert len(files) > 5
    expected, got = (dict(numbers(documents)) for documents in (in_memory, in_files))
    assert got.keys() == expected.keys()
    assert len(got) > 200
    # Sums are taken in another order.
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)
