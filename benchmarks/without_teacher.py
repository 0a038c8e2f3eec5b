"""Online and self methods without a teacher: the network that ships against the same network trained plainly.

    python benchmarks/without_teacher.py [--work DIR] [--seeds 3] [--jobs 2] [--only NAME ...]
    python benchmarks/without_teacher.py --setting resnet20 --seeds 2 --only dml one okddip mcl lmcl

Setting resnet8 (the default): Fashion-MNIST with 3,000 labelled images, of which 300 are held out in every
arm to choose what ships. Every network sees 119,040 images in batches of 64: 1,860 steps, 45 epochs. Setting
resnet8-short: a quarter of that, in which plain training does not fit its labels yet. Setting resnet8-few:
1,000 labelled images, of which 100 are held out, as many steps, 133 epochs. Setting resnet20: 5,000 labelled
images, of which 500 are held out, 90,000 images seen (20 epochs).

A method with two views of every image takes batches of half as many images, so that every step of every arm
shows a network 64. (The branches of `pcl` see one view each, and its shared stem those of all branches.)
Defaults of each method, one thread a run.
Differences are paired by seed; their intervals are Student's t over the seeds. The lead of an ensemble is
over the network that ships. Runs that are done are not repeated, and one that was under way is resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from kdcompress.methods.base import find_method

from runs import distill

BATCH = 64


@dataclass(frozen=True)
class Setting:
    """What all arms of a table have in common."""

    student: str
    labels: int
    """Labelled images, the held-out ones included."""
    held_out: int
    seen: int
    """Images that every network sees in the whole run."""


SETTINGS = {
    "resnet8": Setting("cifar/resnet8", labels=3_000, held_out=300, seen=119_040),
    "resnet8-short": Setting("cifar/resnet8", labels=3_000, held_out=300, seen=29_760),
    "resnet8-few": Setting("cifar/resnet8", labels=1_000, held_out=100, seen=119_040),
    "resnet20": Setting("cifar/resnet20", labels=5_000, held_out=500, seen=90_000),
}
RECIPE = """
seed: {seed}
data: {{dataset: fashion-mnist, batch_size: {batch}, held_out: {held_out}, labels: {labels}}}
student: {{model: {student}}}
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


def run(work, setting, name, seed):
    """Trains one arm; returns the exported student's top-1 and, of a cohort, the ensemble's."""
    plain = name in ("none", SMOOTHED)
    method = find_method("none" if plain else name)
    config = method.Config()
    peers = [setting.student] * (method.needs(config).peers or 0)
    steps, batch = setting.seen // BATCH, BATCH // 2 if name in TWICE else BATCH
    recipe = RECIPE.format(
        seed=seed, batch=batch, held_out=setting.held_out, student=setting.student,
        labels=setting.labels - setting.held_out,  # the recipe counts those that train
        method=json.dumps({"name": "none" if plain else name}), peers=json.dumps(peers),
        epochs=-(-steps // ((setting.labels - setting.held_out) // batch)), steps=steps,
        smoothing=", label_smoothing: 0.1" if name == SMOOTHED else "",
    )  # fmt: skip
    options = ["--set", "train.ship=ensemble"] if name in ONLINE else []
    results = distill(work, f"{name.replace(' ', '-')}-{seed}", recipe, *options)
    ensemble = (results.get("ensemble") or {}).get("top1")
    return 100 * results["student"]["top1"], None if ensemble is None else 100 * ensemble


def paired(own, other):
    """Formats the mean difference of two arms, paired by seed, with its interval if there are several."""
    gains = [x - y for x, y in zip(own, other, strict=True)]
    text = f"{statistics.fmean(gains):+.2f}"
    if len(gains) > 1:
        half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
        text += f" ({statistics.fmean(gains) - half:+.2f} to {statistics.fmean(gains) + half:+.2f})"
    return text


def row(name, reached):
    """Builds a line of the table."""
    shares, ensembles = ([found[k] for found in reached[name]] for k in (0, 1))
    sd = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    gains = [
        "" if name == other else paired(shares, [found[0] for found in reached[other]])
        for other in ("none", SMOOTHED)
    ]
    ensemble = "" if None in ensembles else f"{statistics.fmean(ensembles):.2f}, {paired(ensembles, shares)}"
    return f"| {' | '.join([name, f'{statistics.fmean(shares):.2f}{sd}', *gains, ensemble])} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/without_teacher"))
    parser.add_argument("--setting", choices=SETTINGS, default="resnet8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--only", nargs="+", choices=[*ONLINE, *SELF], default=[*ONLINE, *SELF])
    options = parser.parse_args()
    work = options.work.absolute() / options.setting
    (work / "runs").mkdir(parents=True, exist_ok=True)
    names = ["none", SMOOTHED, *options.only]
    reached = {name: [] for name in names}
    # All methods before the next seed, so that a benchmark cut short is a table of fewer seeds.
    arms = [(name, seed) for seed in range(options.seeds) for name in names]
    with ThreadPoolExecutor(options.jobs) as pool:
        tops = pool.map(lambda arm: run(work, SETTINGS[options.setting], *arm), arms)
        for (name, seed), found in zip(arms, tops, strict=True):
            reached[name].append(found)
            print(f"{name} {seed}: {found[0]:.2f} %", file=sys.stderr, flush=True)
    print("| method | top-1 %, mean ± sd | against none (95 %) | against smoothing | ensemble, its lead |")
    print("|---|---|---|---|---|")
    for name in names:
        print(row(name, reached))


if __name__ == "__main__":
    main()
