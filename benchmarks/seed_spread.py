"""How much two runs of one method differ by their seeds alone: per image, and in top-1.

    python benchmarks/seed_spread.py RUNS [RUNS ...] [--write]

RUNS is a folder of runs that are called METHOD-SEED, such as benchmarks/without_teacher.py leaves in
WORK/SETTING/runs. Every two runs of a method are a pair. The table goes to stdout; --write keeps the figures
in seed_spread.json, from which tests/report/test_verdict_over_seeds.py simulates comparisons.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

from kdcompress.report.predictions import read_predictions

KEPT = Path(__file__).with_name("seed_spread.json")


def measured(runs):
    """Returns the spread over all methods of a folder of runs, as one entry of the table."""
    right = defaultdict(dict)
    finished = sorted(runs.glob("*-[0-9]/done"))
    for done in finished:
        method, _, seed = done.parent.name.rpartition("-")
        stored = read_predictions(done.parent / "checkpoints")
        if stored is not None:
            right[method][int(seed)] = stored.right()
    differing, tops, count = [], [], 0
    for seeds in right.values():
        differing += [float((a != b).float().mean()) for a, b in itertools.combinations(seeds.values(), 2)]
        if len(seeds) > 1:
            tops.append([100 * float(images.float().mean()) for images in seeds.values()])
        count = len(next(iter(seeds.values())))
    if not tops:
        raise SystemExit(f"{runs}: holds no method with two finished seeds")
    # Of a difference of two runs: twice the variance within a method, over all methods.
    freedom = sum(len(values) - 1 for values in tops)
    variance = sum((len(values) - 1) * statistics.variance(values) for values in tops) / freedom
    line = json.loads((finished[0].parent / "log.jsonl").read_text().splitlines()[-1])
    return {
        "set": runs.parent.name,
        "steps": line["step"],
        "images": count,
        "methods": len(tops),
        "pairs": len(differing),
        "differing": round(statistics.fmean(differing), 4),
        "sd_points": round(math.sqrt(2 * variance), 4),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    sets = [measured(runs.absolute()) for runs in options.runs]
    print("| set | steps | methods | pairs | right in one of the two | sd of the difference, points |")
    print("|---|---|---|---|---|---|")
    for found in sets:
        share = f"{100 * found['differing']:.1f} %"
        print(
            f"| {found['set']} | {found['steps']:,} | {found['methods']} | {found['pairs']} | {share} | "
            f"{found['sd_points']:.2f} |"
        )
    if options.write:
        KEPT.write_text(json.dumps({"source": "benchmarks/seed_spread.py", "sets": sets}, indent=2) + "\n")


if __name__ == "__main__":
    main()
