"""Does `kdcompress bench` say what is so, on this machine as it is? The same file twice, and 5 % more work.

    python benchmarks/bench_truth.py [--runs 10] [--out table.md]

Two networks that differ only in length, 40 and 42 equal convolutions: 5 % more work, in time a little less,
for a call has a fixed part too. Each run is the command itself with its defaults but for the threads: once
the shorter network against its file again, once against the longer one. Some 40 seconds each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, LONGER = 40, 42
CHANNELS, SIDE = 32, 32
EXPECTED = {"the same file": "no difference", "5 % more work": "slower"}


def chain(layers: int, path: Path) -> Path:
    """So many convolutions of 3×3 over 32 maps of 32×32, 9.4 M multiply-accumulates each, and a mean."""
    draw = np.random.default_rng(0)
    weight = draw.normal(0, (2 / (9 * CHANNELS)) ** 0.5, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CHANNELS])
    nodes, last = [], "images"
    for number in range(layers):
        nodes.append(helper.make_node("Conv", [last, "weight"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        last = f"r{number}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["map"])]
    nodes += [helper.make_node("Flatten", ["map"], ["logits"])]
    graph = helper.make_graph(nodes, "chain", [images], [logits], [numpy_helper.from_array(weight, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def bench(*arguments: str) -> dict[str, Any]:
    """The document that the command prints."""
    command = [sys.executable, "-m", "kdcompress", "bench", *arguments, "--threads", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="a Markdown table")
    asked = parser.parse_args()
    lines = ["| compared with | run | base ms | ratio (95 %) | A/A (95 %) | verdict | load | quality |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    told: dict[str, list[str]] = {what: [] for what in EXPECTED}
    ratios: dict[str, list[float]] = {what: [] for what in EXPECTED}
    with tempfile.TemporaryDirectory() as folder:
        base = chain(LAYERS, Path(folder) / "base.onnx")
        others = dict(zip(EXPECTED, (base, chain(LONGER, Path(folder) / "longer.onnx")), strict=True))
        for run in range(asked.runs):
            for what, other in others.items():
                document = bench(
                    f"base={base}", f"other={other}", "--baseline", "base", "--rounds", str(asked.rounds)
                )
                first, second = document["results"]
                against, control = second["vs_baseline"], document["aa"]
                told[what].append(against["verdict"])
                ratios[what].append(against["ratio"])
                lines.append(
                    f"| {what} | {run + 1} | {first['latency_ms']['p50']:.3g} | {with_ends(against)} "
                    f"| {with_ends(control)} | {against['verdict']} | {document['env']['loadavg'][0]} "
                    f"| {document['quality']} |"
                )
                print(lines[-1], flush=True)
    print()
    for what, verdict in EXPECTED.items():
        right, middle = told[what].count(verdict), statistics.median(ratios[what])
        lines.append("")
        lines.append(f"{what}: {right} of {asked.runs} runs say '{verdict}'; median ratio {middle:.3f}.")
        print(lines[-1])
    lines += ["", f"{os.cpu_count()} cores, {document['env']['cpu']}, {document['env']['runtimes']}"]
    if asked.out is not None:
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def with_ends(figure: dict[str, Any]) -> str:
    ends = figure["ci95"]
    return f"{figure['ratio']:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")


if __name__ == "__main__":
    main()
