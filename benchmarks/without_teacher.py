"""Online and self methods on Fashion-MNIST with 3,000 labels: the network that ships against plain training.

    python benchmarks/without_teacher.py [--work DIR] [--seeds 3] [--only NAME ...]

3,000 labelled images and 300 held-out ones in every arm, to choose what ships. Every network sees 29,760
images, in batches of 64; a method with two views of every image takes half as many steps. ResNet-8, defaults
of each method, one thread. The gain is paired by seed with plain training; its interval is Student's t over
the seeds. Runs that are done are not repeated, and one that was under way is resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from scipy import stats

from kdcompress.methods.base import find_method

from runs import distill

IMAGES, BATCH, LABELLED = 29_760, 64, 2_700
RECIPE = """
seed: {seed}
data: {{dataset: fashion-mnist, batch_size: {batch}, held_out: 300, labels: 3000}}
student: {{model: cifar/resnet8}}
method: {method}
peers: {peers}
train: {{epochs: {epochs}, max_steps: {steps}, threads: 1{smoothing}}}
optim: {{lr: 0.1, schedule: one_cycle}}
bench: {{rounds: 1}}
"""
SMOOTHED = "none with label smoothing 0.1"
ONLINE = ("dml", "kdcl", "one", "okddip", "pcl", "ffl", "mfef", "afd", "mcl", "lmcl")
SELF = (
    "byot",
    "sad",
    "spkd-self",
    "scd",
    "ddgsd",
    "cskd",
    "zipf",
    "mixskd",
    "pskd",
    "tfkd",
    "dlb",
    "frskd",
    "snapshot",
)
TWICE = ("ddgsd", "dlb", "mixskd")
"""The network sees every image of a batch twice, or a mixed one beside it."""


def run(work, name, seed):
    """Trains one arm; returns the exported student's top-1 and, of a cohort, the ensemble's."""
    plain = name in ("none", SMOOTHED)
    method = find_method("none" if plain else name)
    config = method.Config()
    peers = ["cifar/resnet8"] * (method.needs(config).peers or 0)
    steps = IMAGES // BATCH // (2 if name in TWICE else 1)
    recipe = RECIPE.format(
        seed=seed, batch=BATCH, method=json.dumps({"name": "none" if plain else name}),
        peers=json.dumps(peers),
        epochs=-(-steps // (LABELLED // BATCH)), steps=steps,
        smoothing=", label_smoothing: 0.1" if name == SMOOTHED else "",
    )  # fmt: skip
    options = ["--set", "train.ship=ensemble"] if name in ONLINE and name != "okddip" else []
    results = distill(work, f"{name.replace(' ', '-')}-{seed}", recipe, *options)
    ensemble = (results.get("ensemble") or {}).get("top1")
    return 100 * results["student"]["top1"], None if ensemble is None else 100 * ensemble


def row(name, shares, ensembles, plain):
    """Builds a line of the table."""
    sd = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    gains = [own - other for own, other in zip(shares, plain, strict=True)]
    gain = f"{statistics.fmean(gains):+.2f}"
    if len(gains) > 1 and name != "none":
        half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
        gain += f" ({statistics.fmean(gains) - half:+.2f} to {statistics.fmean(gains) + half:+.2f})"
    ensemble = f"{statistics.fmean(ensembles):.2f}" if ensembles else ""
    return f"| {name} | {statistics.fmean(shares):.2f}{sd} | {'' if name == 'none' else gain} | {ensemble} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/without_teacher"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[*ONLINE, *SELF])
    options = parser.parse_args()
    work = options.work.absolute()
    (work / "runs").mkdir(parents=True, exist_ok=True)
    names = ["none", SMOOTHED, *options.only]
    reached = {name: [] for name in names}
    # All methods before the next seed, so that a benchmark cut short is a table of fewer seeds.
    for seed in range(options.seeds):
        for name in names:
            reached[name].append(run(work, name, seed))
            print(f"{name} {seed}: {reached[name][-1][0]:.2f} %", flush=True)
    print("| method | top-1 %, mean ± sd | gain (95 % interval) | ensemble |")
    print("|---|---|---|---|")
    for name in names:
        shares, ensembles = zip(*reached[name], strict=True)
        known = [value for value in ensembles if value is not None]
        print(row(name, shares, known, [share for share, _ in reached["none"]]))


if __name__ == "__main__":
    main()
