"""What int8 and fp16 cost and gain for trained students: accuracy on the test split, time on this machine.

    python benchmarks/int8.py RUN... [--out FILE.md]

Each run folder (of `kdcompress distill`; benchmarks/methods.py makes 54) is exported once more by the command
itself, with `--int8 --fp16`, into a folder that is thrown away. The calibration images are of the training
split, the accuracy is that of the files on the test split, and the ratio is of a paired timing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_bytes
from kdcompress.deploy.config import read_config

LIMIT = 0.5
"""Points of top-1 that int8 may lose here."""


def exported(run: Path) -> dict[str, Any]:
    """The command's document."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "kdcompress",
            "export",
            str(run),
            "--int8",
            "--fp16",
            "--rounds",
            "21",
        ]
        command += ["--out", str(Path(folder) / "out"), "--json", "-q"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lines = [
        "| run | network | precision | top-1 fp32 | points lost | bytes | times as fast (95 %) | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    worst = -math.inf
    for run in asked.runs:
        document = exported(run)
        model = read_config(run / "config.json").model
        exact = document["student"]
        for precision, entry in document["variants"].items():
            verdict = entry["verdict"]
            if precision == "int8":
                worst = max(worst, entry["drop"])
            cells = [
                "/".join(run.parts[-2:]),
                model,
                precision,
                f"{100 * exact['top1']:.2f} %",
                f"{entry['drop']:+.2f}",
                f"{entry['bytes'] / exact['bytes']:.2f}",
                _ratio(verdict),
                verdict["sentence"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    lines.append(
        f"\nGreatest loss of int8: {worst:+.2f} points; at most {LIMIT} was asked for: "
        f"{'met' if worst <= LIMIT else '**missed**'}."
    )
    print(lines[-1])
    if asked.out:
        write_bytes(asked.out, ("\n".join(lines) + "\n").encode())


def _ratio(verdict: dict[str, Any]) -> str:
    if not verdict["timings"]:
        return "not timed"
    timing = verdict["timings"][0]
    ends = timing["ci95"]
    return f"{timing['ratio']:.2f}" + ("" if ends is None else f" ({ends[0]:.2f} to {ends[1]:.2f})")


if __name__ == "__main__":
    main()
