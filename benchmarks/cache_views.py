"""Test top-1 of a student whose teacher's outputs are cached, by the number of views, against new views.

    python benchmarks/cache_views.py [--work DIR] [--views 1 2 4 8 24] [--seeds 3] [--epochs 72] [--jobs 1]

WRN-16-2 teaches ResNet-8 by KD on the first images of Fashion-MNIST (Debian's package
dataset-fashion-mnist), tested on its 10,000 test images. Nothing is held out and the last epoch counts, so
that no choice adds noise. All runs share one teacher; a row says how far its mean is from that of new views,
with the joint standard error over the seeds. Cells that are done are not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import math
import statistics
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from runs import distill

SOURCE = Path("/usr/share/datasets/fashion-mnist")
RECIPE = """
seed: {seed}
data: {{dataset: fashion-mnist, root: {root}, batch_size: 64, held_out: 0}}
student: {{model: cifar/resnet8, weights: random}}
teacher: {{model: cifar/wrn-16-2, epochs: 30, cache: {cache}}}
method: {{name: kd}}
train: {{epochs: {epochs}, threads: 1, ship: last}}
optim: {{lr: 0.1, schedule: cosine, warmup: 1}}
bench: {{rounds: 1}}
"""


def pictures(folder, count):
    """Writes the first training images and all test images, in the format of the set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in (("train", count), ("t10k", 10_000)):
        for kind, magic, header, sides in (
            ("images-idx3", 0x803, 16, (28, 28)),
            ("labels-idx1", 0x801, 8, ()),
        ):
            file = f"{name}-{kind}-ubyte"
            content = gzip.decompress((SOURCE / f"{file}.gz").read_bytes())[header:]
            values = np.frombuffer(content, np.uint8).reshape(-1, *sides)[:images]
            head = struct.pack(f">{2 + len(sides)}i", magic, images, *sides)
            (folder / file).write_bytes(head + values.tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("cache-views"))
    parser.add_argument("--views", type=int, nargs="*", default=[1, 2, 4, 8, 24])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=72)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at one time, a thread each")
    options = parser.parse_args()
    root = options.work / f"images{options.images}"
    if not root.exists():
        pictures(root, options.images)

    def run(cell):
        seed, views = cell
        cache = f"{{views: {views}, folder: {(options.work / 'cache').absolute()}}}" if views else '"off"'
        recipe = RECIPE.format(seed=seed, root=root.absolute(), cache=cache, epochs=options.epochs)
        name = f"v{views}-e{options.epochs}-n{options.images}-s{seed}"
        return cell, distill(options.work.absolute(), name, recipe)

    # The first seed of a row fills the cache that the others read. The very first run is alone, so that the
    # teacher is trained once.
    cells = [(seed, views) for seed in range(options.seeds) for views in (0, *options.views)]
    results = dict([run(cells[0])])
    with ThreadPoolExecutor(options.jobs) as pool:
        results.update(pool.map(run, cells[1:]))
    found = {
        views: [100 * results[seed, views]["student"]["top1"] for seed in range(options.seeds)]
        for views in (0, *options.views)
    }
    teacher = 100 * results[0, 0]["teacher"]["top1"]
    print(f"{options.images:,} images, {options.epochs} epochs, teacher {teacher:.2f} %\n")
    print("| views | top-1 of each seed | mean | against new views | joint standard error |")
    print("|---|---|---|---|---|")
    fresh = found[0]
    for views in (0, *options.views):
        top1 = found[views]
        cells = " ".join(f"{value:.2f}" for value in top1)
        error = math.nan
        if len(top1) > 1:
            error = math.sqrt((statistics.variance(top1) + statistics.variance(fresh)) / len(top1))
        apart = statistics.fmean(top1) - statistics.fmean(fresh)
        print(f"| {views or 'new'} | {cells} | {statistics.fmean(top1):.2f} | {apart:+.2f} | {error:.2f} |")


if __name__ == "__main__":
    main()
