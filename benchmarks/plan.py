"""What `kdcompress plan` forecasts, beside the run that follows.

    python benchmarks/plan.py [--out FILE.md]

Each case is forecast in a new process, and then run, with an empty cache of its own. Compared are the seconds
of the student's training (`results.json`), the seconds of the whole command less those of its start, and the
peak memory of the process. The machine must do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from input import crops

FOLDER = """
name: folder
data: {{root: {root}, image_size: 64, batch_size: 32}}
student: {{model: torchvision/resnet18, weights: random}}
teacher: {{model: torchvision/resnet34, weights: random, epochs: 2, min_top1: 0}}
method: {{name: kd}}
train: {{epochs: 8}}
optim: {{lr: 0.05}}
bench: {{rounds: 3}}
"""
PICTURES = 800
CASES = {
    "quickstart": [],
    "quickstart, teacher cache": ["--set", "teacher.cache={views: 6}"],
    "quickstart, dml": ["--method", "dml"],
    "folder, resnet34 to resnet18": [],
}


def measured(command, cache):
    """Runs a command; returns its output, its seconds and its peak memory in bytes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "kdcompress", *map(str, command)], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "KDCOMPRESS_CACHE": str(cache)},
    )  # fmt: skip
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, command
    return output, time.perf_counter() - began, usage.ru_maxrss * 1024


def case(name, options, work):
    """Returns (forecast, found) of the student's seconds, the whole seconds and the memory."""
    recipe = "quickstart"
    if name.startswith("folder"):
        for number, picture in enumerate(crops(PICTURES, (250, 200))):
            place = work / "images" / f"class{number % 4}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture.save(place, quality=90)
        recipe = work / "folder.yaml"
        recipe.write_text(FOLDER.format(root=work / "images"))
    told = json.loads(measured(["plan", recipe, *options, "--json"], work / "cache of plan")[0])
    out = work / "run"
    _, seconds, peak = measured(
        ["distill", "--recipe", recipe, *options, "--out", out, "-q"], work / "cache of run"
    )
    # What a command takes before it does anything: imports.
    _, start, _ = measured(["recipes"], work / "cache of run")
    results = json.loads((out / "results.json").read_text())
    forecast = told["seconds"]["student"], told["seconds"]["total"], told["peak_memory_bytes"]
    return zip(forecast, (results["training"]["seconds"], seconds - start, peak), strict=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = ["| run | student's training, s: forecast, found | in all, s | memory, GB |", "|---|---|---|---|"]
    for name, settings in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            pairs = list(case(name, settings, Path(folder)))
        scales, digits = (1, 1, 1e9), (0, 0, 2)
        cells = [
            f"{told / scale:.{places}f}, {found / scale:.{places}f} ({100 * (told / found - 1):+.0f} %)"
            for (told, found), scale, places in zip(pairs, scales, digits, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
