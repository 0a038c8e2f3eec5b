"""Records how this machine's timings of one and the same file vary, for tests/bench/test_truth.py.

    python benchmarks/record_noise.py tests/bench/data/noise-NAME.json

Four copies of a MobileNetV3-small are timed against each other at 224 pixels, one thread, with the turns and
the gaps of `kdcompress bench`, in as many rounds as give several runs of 21. What is kept is each copy's
median of each round, and what the machine was doing meanwhile. About six minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcompress.bench.measure import Artefact, measure
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.formats import onnx
from kdcompress.networks.build import build
from kdcompress.tools.bench import PROTOCOL

COPIES, SIZE = 4, 224


def text_of(recorded: dict[str, Any]) -> str:
    """JSON with a line for each entry and for each copy's medians."""
    entries = {key: json.dumps(value) for key, value in recorded.items()}
    rows = ",\n  ".join(json.dumps(row) for row in recorded["medians_ms"])
    entries["medians_ms"] = f"[\n  {rows}\n ]"
    return "{\n" + ",\n".join(f' "{key}": {text}' for key, text in entries.items()) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=126)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build("torchvision/mobilenet_v3_small", num_classes=10, channels=3, image_size=(SIZE, SIZE))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        spec = InputSpec(3, SIZE, SIZE, (0.5,) * 3, (0.25,) * 3)
        onnx.write(network.eval(), spec, file, metadata={})
        copies = [Artefact(f"copy {number}", file) for number in range(COPIES)]
        document = measure(copies, rounds=asked.rounds, protocol=PROTOCOL)
    medians_ms = [result["round_medians_ms"] for result in document["results"]]
    logarithms = np.log(np.array(medians_ms))
    apart = logarithms[:, None] - logarithms[None]
    recorded = {
        "how": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "env": {key: document["env"][key] for key in ("cpu", "granted_cores", "vm", "loadavg", "runtimes")},
        "protocol": {key: document["protocol"][key] for key in ("block_s", "turns", "rounds")},
        "quality": document["quality"],
        "marked_blocks": [result["noise"]["marked_blocks"] for result in document["results"]],
        "calls": [result["latency_ms"]["n"] for result in document["results"]],
        # Of the ratio of two copies in one round, on a logarithmic scale.
        "ratio_sd": round(float(np.std(apart[np.triu_indices(COPIES, 1)])), 4),
        "medians_ms": medians_ms,
    }
    asked.out.write_text(text_of(recorded), encoding="utf-8")
    print({key: recorded[key] for key in recorded if key != "medians_ms"})


if __name__ == "__main__":
    main()
