"""What the exported files gain on this processor, against eager PyTorch and against each other.

    python benchmarks/speed.py [--networks FAMILY/NAME ...] [--side 224] [--rounds 21] [--out FILE.md]

Each network gets random weights and norms as in benchmarks/export.py (speed does not depend on them, as long
as nothing underflows), ships, and is made int8; then `kdcompress bench` itself times all files and runtimes
together, batch 1, one thread. The baseline is the ONNX file in float32: in ONNX Runtime, and for the int8
file in another runtime, in that one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from export import CALIBRATION, TEST, crops, randomise
from torch import Tensor

from kdcompress.atomic import write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.calibration import calibration
from kdcompress.deploy.ship import Subject, ship
from kdcompress.deploy.variants import Fp32Reference, to_int8
from kdcompress.networks.build import build

NETWORKS = ["torchvision/resnet18", "torchvision/mobilenet_v3_small"]
GOALS = {
    ("torchvision/resnet18", "torch"): ("at most", 1 / 1.6),
    ("torchvision/mobilenet_v3_small", "torch"): ("at most", 1 / 3),
    ("torchvision/resnet18", "int8"): ("at least", 3.0),
}
"""What was asked for: the ONNX file 1.6 and 3 times as fast as eager PyTorch, int8 3 times as that."""
CLASSES = 1000


def files(name: str, side: int, folder: Path) -> list[str]:
    """The files of a network, in every precision."""
    torch.manual_seed(0)
    network = build(name, num_classes=CLASSES, channels=3, image_size=(side, side))
    spec = InputSpec(3, side, side, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
    train, images = crops(CALIBRATION, side, seed=1), crops(TEST, side, seed=3)
    randomise(network, (train - mean) / std, seed=2)

    def test() -> list[tuple[Tensor, Tensor]]:
        return [(part, torch.full((len(part),), -1)) for part in images.split(16)]

    names = [f"class {number}" for number in range(CLASSES)]
    ship(Subject(network, name, spec, names, test, {}), folder, formats=["onnx", "safetensors"])
    exact = Fp32Reference(folder / "student.onnx", test)
    labels = torch.full((CALIBRATION,), -1)
    drawn = calibration(labels, lambda indices: [train[indices]], CALIBRATION, 0)
    int8 = to_int8(exact, drawn, folder, target="x86")
    return [str(folder / "student.onnx"), str(int8.path), str(folder / "student.safetensors")]


def bench(paths: list[str], rounds: int) -> dict[str, Any]:
    """The command's document."""
    command = [
        sys.executable, "-m", "kdcompress", "bench", *paths, "--baseline", paths[0], "--threads", "1",
        "--runtime", "onnxruntime,openvino,openvino-bf16,torch,torch-compile",
        "--rounds", str(rounds), "--json", "-q",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def judged(name: str, result: dict[str, Any]) -> str:
    """Whether a row that has a goal meets it."""
    key = "int8" if result["precision"] == "int8" else result["runtime"]
    if (name, key) not in GOALS or (key == "int8" and result["runtime"] != "onnxruntime"):
        return ""
    direction, limit = GOALS[name, key]
    ratio = result["vs_baseline"]["ratio"]
    met = ratio >= limit if direction == "at least" else ratio <= limit
    return f"{direction} {limit:.2f}: {'met' if met else '**missed**'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lines = [
        "| network | runtime | precision | ms (95 %) | times as fast as fp32 (95 %) | goal | RSS MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    control = []
    for name in asked.networks:
        with tempfile.TemporaryDirectory() as folder:
            document = bench(files(name, asked.side, Path(folder)), asked.rounds)
        for result in document["results"]:
            latency, versus = result["latency_ms"], result["vs_baseline"]
            ratio = "1" if versus is None else f"{versus['ratio']:.2f} ({_span(versus['ci95'])})"
            goal = "" if versus is None else judged(name, result)
            shown = f"{latency['p50']:.2f} ({_span(latency['ci95'])})"
            cells = [
                name,
                result["runtime"],
                result["precision"],
                shown,
                ratio,
                goal,
                f"{result['rss_mb']['peak']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        aa = document["aa"]
        control.append(
            f"{name}: the same file twice {aa['ratio']:.3f} ({_span(aa['ci95'])}); {document['quality']}"
        )
    text = "\n".join([*lines, "", *control]) + "\n"
    print(text)
    if asked.out:
        write_bytes(asked.out, text.encode())


def _span(ci95: list[float] | None) -> str:
    return "no interval" if ci95 is None else f"{ci95[0]:.2f} to {ci95[1]:.2f}"


if __name__ == "__main__":
    main()
