"""What int8 costs trained students on Fashion-MNIST, and what quantisation-aware training recovers.

    python benchmarks/qat.py [--work DIR] [--only NAME ...] [--steps 4000] [--qat-epochs 2] [--qat-lr 0.01]

A teacher (WRN-22-2 on three channels, as the students of torchvision want them) is trained on the 60,000
images once. Each student is distilled from it (kd), 5,000 training images held out, and then tuned for int8
(`--qat-epochs`). The run itself makes both int8 files, chooses on the held-out images, and scores all three
files on the 10,000 test images. One thread each. Tuning is also more training: what the tuned weights give
in fp32 stands beside it. All columns but the first are points against fp32.

It can be stopped at any time and goes on with the same command. The table goes to stdout, the figures to
WORK/qat.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SHARED = """
data: {{dataset: fashion-mnist, batch_size: 64, held_out: 5000, image_size: 32}}
teacher: {{model: cifar/wrn-22-2, epochs: 4, train: always}}
method: {{name: kd}}
optim: {{lr: {lr}, schedule: one_cycle}}
train: {{epochs: {epochs}, max_steps: {steps}, threads: 1}}
bench: {{rounds: 1}}
export: {{int8: {{max_drop: 100, qat_epochs: {qat_epochs}, qat_lr: {qat_lr}}}}}
"""
STUDENTS = (
    "torchvision/mobilenet_v3_small",
    "torchvision/mobilenet_v2",
    "torchvision/efficientnet_b0",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/regnet_y_400mf",
    "cifar/mobilenet-v2",
    "cifar/resnet8",
)
"""Those with depthwise convolutions, gates and hard swish first: plain int8 is known to cost them most."""
STEPS_PER_EPOCH = 859
"""Of 55,000 images, the others being held out."""


def one_run(work, model, options):
    name = model.replace("/", "-")
    folder, recipe = work / name, work / f"{name}.yaml"
    text = SHARED.format(
        lr=options.lr, steps=options.steps, epochs=-(-options.steps // STEPS_PER_EPOCH),
        qat_epochs=options.qat_epochs, qat_lr=options.qat_lr,
    )  # fmt: skip
    recipe.write_text(f"name: {name}\nstudent: {{model: {model}}}\n{text}")
    words = [
        sys.executable,
        "-m",
        "kdcompress",
        "distill",
        "--recipe",
        recipe,
        "--out",
        folder,
        "--resume",
        "-q",
    ]
    with (work / f"{name}.log").open("ab") as log:
        done = subprocess.run(
            list(map(str, words)),
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{model}: failed; see {work / name}.log")
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = {phase: sum(e["seconds"] for e in lines if e["phase"] == phase) for phase in ("student", "qat")}
    return {
        "fp32": results["student"]["top1"],
        "fp32_tuned": tuned_in_float(work, folder, recipe),
        "teacher": results["teacher"]["top1"],
        "seconds": seconds,
        **results["variants"]["int8"]["qat"],
    }


def tuned_in_float(work, folder, recipe):
    """Top-1 of the tuned weights without any rounding: what the further epochs gave apart from int8."""
    plain = work / f"{folder.name}-tuned"
    plain.mkdir(exist_ok=True)
    shutil.copy(folder / "config.json", plain)
    shutil.copy(folder / "checkpoints" / "quantised.safetensors", plain / "student.safetensors")
    words = [sys.executable, "-m", "kdcompress", "evaluate", plain, "--recipe", recipe, "--json", "-q"]
    done = subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["top1"]


def table(found):
    lines = [
        "| student | fp32 | int8 | tuned, int8 | tuned, in fp32 | recovered | ships | minutes + tuning |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, run in found.items():
        plain, tuned = (-run["test"][name]["drop"] for name in ("ptq", "qat"))
        # Where nothing is lost, nothing can be recovered.
        recovered = f"{100 * (tuned - plain) / -plain:.0f} %" if plain < -0.3 else ""
        lines.append(
            f"| {model} | {100 * run['fp32']:.2f} % | {plain:+.2f} | {tuned:+.2f} "
            f"| {100 * (run['fp32_tuned'] - run['fp32']):+.2f} | {recovered} "
            f"| {'tuned' if run['kept'] else 'plain'} "
            f"| {run['seconds']['student'] / 60:.1f} + {run['seconds']['qat'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("runs/qat"))
    parser.add_argument("--only", nargs="+", default=list(STUDENTS), metavar="FAMILY/NAME")
    parser.add_argument(
        "--steps", type=int, default=4000, help="of the teacher's and of each student's training"
    )
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--qat-epochs", type=int, default=2)
    parser.add_argument("--qat-lr", type=float, default=0.01, help="share of --lr")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for model in options.only:
        found[model] = one_run(work, model, options)
        print(f"{model}: {found[model]['sentence']}", file=sys.stderr, flush=True)
    (work / "qat.json").write_text(json.dumps(found, indent=2))
    print(table(found))


if __name__ == "__main__":
    main()
