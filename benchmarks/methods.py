"""Every offline method on Fashion-MNIST with 3,000 labels: accuracy, minutes, memory, and the plain baseline.

    python benchmarks/methods.py [--work DIR] [--seeds 3] [--jobs 2] [--only NAME ...] [--steps 465]
                                 [--presets]

A teacher (ResNet-20) is trained on the 60,000 labels once. Each student (ResNet-8, 3.5 times smaller) then
sees 3,000 labels and the same number of images; the other 57,000 images come without labels, and a method
that has a use for them gets half of every batch from them. Everything runs on one thread; nothing is held
out, so the last epoch is what is scored, on the 10,000 test images, as the exported ONNX file.

It can be stopped at any time and goes on with the same command: runs that are done are not repeated, those
that were under way are resumed. The table goes to stdout, the figures to WORK/methods*.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdcompress.methods.base import find_method

LABELS = 3_000
BATCH = 64
STEPS = 465
"""29,760 images: what costs kd about one minute on one thread of a machine whose other core is busy too."""

SHARED = f"""
data: {{dataset: fashion-mnist, batch_size: {BATCH}, held_out: 0, labels: {LABELS}}}
student: {{model: cifar/resnet8}}
optim: {{lr: 0.1, schedule: one_cycle}}
bench: {{rounds: 1}}
"""
TEACHER = """
name: fashion-mnist-teacher
data: {dataset: fashion-mnist, batch_size: 128, held_out: 0}
student: {model: cifar/resnet20}
method: {name: none}
train: {epochs: 5, threads: 1}
optim: {lr: 0.1, schedule: one_cycle}
"""
ONLY_LABELLED, POOLED, ALL_ALIKE = 46, 93, 937
"""Steps of an epoch: of labelled images alone, of batches of which half are labelled, of all images alike."""

METHODS = {
    # Defaults, but for the training of heads beside the teacher, which is counted in epochs of 240, and
    # seed's queue.
    "none": (ONLY_LABELLED, {}),
    "kd": (POOLED, {}),
    "dkd": (ONLY_LABELLED, {}),
    "ctkd": (POOLED, {}),
    "dist": (POOLED, {}),
    "fitnet": (POOLED, {}),
    "at": (POOLED, {}),
    "ab": (POOLED, {}),
    "sp": (POOLED, {}),
    "rkd": (POOLED, {}),
    "crd": (ONLY_LABELLED, {}),
    "srrl": (POOLED, {}),
    "reviewkd": (POOLED, {}),
    "mlkd": (POOLED, {}),
    "sskd": (POOLED, {"head_epochs": 1}),
    "hsakd": (POOLED, {"head_epochs": 11}),
    "simreg": (ALL_ALIKE, {}),
    "seed": (ALL_ALIKE, {"queue": 4096}),
}
BACKBONES = ("simreg", "seed")
"""They train no classifier: scored by a linear probe on the same 3,000 labels."""


def command(*words):
    return [sys.executable, "-m", "kdcompress", *map(str, words), "-q"]


def measured(words, log):
    """Seconds and peak resident bytes of a command; its output goes to a file."""
    began = time.perf_counter()
    with open(log, "ab") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(words)} failed; see {log}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def train_teacher(work):
    recipe, folder = work / "teacher.yaml", work / "teacher"
    recipe.write_text(TEACHER)
    measured(command("distill", "--recipe", recipe, "--out", folder, "--resume"), work / "teacher.log")
    return folder


def method_section(name, presets):
    """Returns the recipe's method section: the defaults, or the published values.

    What a preset counts in epochs of its 240 keeps its default, which is a share of the run.
    """
    section = {"name": name, **METHODS[name][1]}
    if presets:
        values = find_method(name).PRESETS["cifar100"].method
        section |= {key: value for key, value in values.items() if not key.endswith("_epochs")}
    return section


def suffix(options):
    """Returns what tells the folders of this table from those of the first one."""
    return (f"-{options.steps}" if options.steps != STEPS else "") + ("-preset" if options.presets else "")


def one_run(options, teacher, name, seed):
    steps = options.steps
    epochs = math.ceil(steps / METHODS[name][0])
    folder = options.work.absolute() / f"{name}{suffix(options)}" / str(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = folder.parent / f"{seed}.yaml"
    text = f"name: {name}-{seed}\nseed: {seed}\n{SHARED}"
    text += f"train: {{epochs: {epochs}, max_steps: {steps}, threads: 1}}\n"
    text += f"method: {json.dumps(method_section(name, options.presets))}\n"
    if name != "none":
        text += f"teacher: {{model: cifar/resnet20, weights: {json.dumps(str(teacher))}, train: never}}\n"
    recipe.write_text(text)
    note = folder.parent / f"{seed}.json"
    if not note.exists():
        seconds, peak = measured(
            command("distill", "--recipe", recipe, "--out", folder, "--resume"), folder.parent / f"{seed}.log"
        )
        note.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}))
    return name, seed, figures(folder, recipe, note)


def figures(folder, recipe, note):
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    spent = {"preparation": 0.0, "student": 0.0}
    for line in lines:
        spent[line["phase"].split("/")[0]] += line["seconds"]
    found = {
        "top1": results["student"]["top1"],
        "student_s": spent["student"],
        "preparation_s": spent["preparation"],
        "peak_bytes": json.loads(note.read_text())["peak_bytes"],
        "params": results["student"]["params"],
        "teacher_top1": results["teacher"] and results["teacher"]["top1"],
    }
    if found["top1"] is None:
        words = command("evaluate", folder, "--recipe", recipe, "--probe", "linear", "--json")
        found["top1"] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)["top1"]
    return found


def table(found):
    baseline = found.get("none")
    lines = [
        "| method | top-1 %, mean ± sd | against the baseline | images | minutes | before | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in sorted(found.items(), key=lambda item: -mean(item[1], "top1")):
        top1 = [100 * run["top1"] for run in runs]
        sd = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        gain = ""
        if baseline and name != "none":
            gain = f"{statistics.fmean(top1) - 100 * mean(baseline, 'top1'):+.2f}"
        images = {ONLY_LABELLED: "3,000", POOLED: "60,000", ALL_ALIKE: "60,000, no label"}[METHODS[name][0]]
        before = mean(runs, "preparation_s") / 60
        lines.append(
            f"| {name}{' (probe)' if name in BACKBONES else ''} | {statistics.fmean(top1):.2f}{sd} | {gain} "
            f"| {images} | {before + mean(runs, 'student_s') / 60:.1f} | {f'{before:.1f}' if before else ''} "
            f"| {mean(runs, 'peak_bytes') / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def mean(runs, key):
    return statistics.fmean(run[key] for run in runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of every run")
    parser.add_argument("--presets", action="store_true", help="values of the presets cifar100, not defaults")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    teacher = train_teacher(work)
    # All methods before the next seed, so that a benchmark cut short is a table of fewer seeds.
    jobs = [(name, seed) for seed in range(options.seeds) for name in options.only]
    found = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, seed, run in pool.map(lambda job: one_run(options, teacher, *job), jobs):
            found.setdefault(name, []).append(run)
            print(f"{name} {seed}: {100 * run['top1']:.2f} %", file=sys.stderr, flush=True)
    (work / f"methods{suffix(options)}.json").write_text(json.dumps(found, indent=2))
    print(table(found))


if __name__ == "__main__":
    main()
