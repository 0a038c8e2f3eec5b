"""Decoding rate per core and time of a second start, written to input.md.

    python benchmarks/input.py [--rounds 15] [--files 200000] [--work DIR]
    python benchmarks/input.py --files 0        the rates alone, printed

Rates: views of 224 x 224 out of JPEGs of 500 x 400 pixels and quality 96, cut out of scikit-learn's two
sample photographs. Each round decodes the same 32 files in every way, in another order; a ratio is the median
over the rounds of the two times of one round. Counted are CPU seconds of one thread, with the batch in the
layout that networks read. "e33f4e2" are the steps of that commit: a copy of the decoded picture,
channel-height-width images that are stacked, and a change of the layout. Rows with "simplejpeg" are of
`data.decoder: simplejpeg`, where it is installed. Two rows are pipelines of others: torchvision's
RandomResizedCrop, RandomHorizontalFlip and PILToTensor on pictures that Pillow opens, and, where OpenCV is
installed (`pip install opencv-python-headless`), libjpeg-turbo (simplejpeg) with OpenCV's resizing; both
stack a batch as the others do.

Start: `open_data` in a new process, for a folder and for a table of labels that list the same files, with an
empty cache and again. The files are of 64 x 64 pixels: with larger ones a first start takes longer, and a
second one does not. It writes 1 GB into DIR, or into a temporary folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from kdcompress.data import fast_views
from kdcompress.data.crop import crop_box
from kdcompress.data.decode import decode_image, open_image, upright_size
from kdcompress.data.pixel_cache import PictureFormat, PixelCache
from kdcompress.data.source import FolderSource

RESULT = Path(__file__).with_suffix(".md")
SIDE, COUNT = 224, 32
SCALE = (0.08, 1.0)
START = """
import json, sys, time
from kdcompress.data.dataset import open_data
from kdcompress.recipe import DataSection
section = DataSection(dataset="imagefolder", root=sys.argv[1])
began, cpu = time.perf_counter(), time.process_time()
data = open_data(section)
print(json.dumps([time.perf_counter() - began, time.process_time() - cpu, sum(data.counts.values())]))
"""


def crops(count, size, seed=0):
    """Cuts pictures out of scikit-learn's two sample photographs, at random places."""
    photographs, draw = load_sample_images().images, random.Random(seed)
    for number in range(count):
        pixels = photographs[number % len(photographs)]
        left, top = (draw.randrange(pixels.shape[1 - axis] - size[axis] + 1) for axis in (0, 1))
        yield Image.fromarray(pixels[top : top + size[1], left : left + size[0]])


def earlier_views(source, view):
    """Decodes a batch as commit e33f4e2 did."""
    parts = []
    for index in range(len(source)):
        with open_image(source.root / source.files[index]) as stored:
            width, height = upright_size(stored)
            box, flip = crop_box(0, view, index, width, height, SCALE)
            least = int(np.ceil(SIDE * max(width / (box[2] - box[0]), height / (box[3] - box[1]))))
            stored.draft(None, (least, least))
            image = decode_image(stored, 3).copy()
        x, y = image.width / width, image.height / height
        scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=scaled)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        parts.append(torch.from_numpy(np.ascontiguousarray(np.array(image).transpose(2, 0, 1))))
    return torch.stack(parts).contiguous(memory_format=torch.channels_last)


def cached(source, kind):
    cache = PixelCache(source, PictureFormat.of(source, kind))
    cache.fill(cache.open().store.missing, lambda *_: None)
    return cache.open()


def torchvision_views(source):
    """Returns a function that decodes a batch by torchvision's transforms."""
    from torchvision import transforms

    change = transforms.Compose([
        transforms.RandomResizedCrop(SIDE, SCALE),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ])  # fmt: skip

    def views(view):
        pictures = []
        for name in source.files:
            with Image.open(source.root / name) as stored:
                pictures.append(change(stored.convert("RGB")))
        return torch.stack(pictures).contiguous(memory_format=torch.channels_last)

    return views


def opencv_views(source):
    """Returns a function that decodes a batch by libjpeg-turbo and OpenCV; None: one is not installed."""
    try:
        import cv2
        import simplejpeg
    except ImportError:
        return None
    cv2.setNumThreads(1)

    def views(view):
        batch = np.empty((len(source), SIDE, SIDE, 3), np.uint8)
        for index, name in enumerate(source.files):
            pixels = simplejpeg.decode_jpeg((source.root / name).read_bytes(), "RGB")
            height, width = pixels.shape[:2]
            (left, top, right, bottom), flip = crop_box(0, view, index, width, height, SCALE)
            cut = cv2.resize(pixels[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
            batch[index] = cv2.flip(cut, 1) if flip else cut
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    return views


def decoding(work, rounds):
    """Returns milliseconds per image and the ratio to e33f4e2, by way."""
    root = work / "pictures"
    root.mkdir()
    for number, picture in enumerate(crops(COUNT, (500, 400))):
        picture.save(root / f"{number}.jpg", quality=96)
    source = FolderSource(root, sorted(os.listdir(root)), torch.zeros(COUNT, dtype=torch.int64), SIDE)
    everything = torch.arange(COUNT)
    ways = {"e33f4e2": lambda view: earlier_views(source, view)}
    sources = {"now": source}
    sources |= {f"pixel_cache: {kind}": cached(source, kind) for kind in ("jpeg", "raw")}
    if fast_views.version() is not None:
        sources |= {
            f"{name}, simplejpeg".replace("now, ", ""): dataclasses.replace(each, decoder="simplejpeg")
            for name, each in sources.items()
        }
    for name, each in sources.items():
        ways[name] = lambda view, each=each: each.training_images(everything, view, 0)
    ways["torchvision's transforms"] = torchvision_views(source)
    if (views := opencv_views(source)) is not None:
        ways["libjpeg-turbo and OpenCV"] = views
    assert torch.equal(ways["e33f4e2"](0), ways["now"](0)), "the same bits"
    times = {name: [] for name in ways}
    for view in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            began = time.process_time()
            ways[name](view)
            times[name].append(1e3 * (time.process_time() - began) / COUNT)
    times = {name: row[1:] for name, row in times.items()}  # the first round is a warm-up
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["e33f4e2"], row, strict=True))
        for name, row in times.items()
    }
    return {name: (statistics.median(times[name]), ratios[name]) for name in ways}


def starting(work, count):
    """Returns (wall seconds, CPU seconds) of the first and the second start, by kind of listing."""
    root, rows = work / "listed", ["path,label"]
    for number, picture in enumerate(crops(count, (64, 64), seed=1)):
        name = f"class{number % 100:02}/{number}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / name, quality=96)
        rows.append(f"{name},{number % 100}")
    table = root / "labels.csv"
    table.write_text("\n".join(rows) + "\n")
    results = {}
    for kind, place in (("folder", root), ("table of labels", table)):
        environment = {**os.environ, "KDCOMPRESS_CACHE": str(work / f"cache of {kind}")}
        command = [sys.executable, "-c", START, str(place)]
        runs = [
            json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
            for _ in range(2)
        ]
        assert all(run[2] == count for run in runs), runs
        results[kind] = [run[:2] for run in runs]
    return results


def table_of_rates(rates):
    """Returns the lines of the first table."""
    lines = [
        f"One thread, CPU time, JPEGs of 500 x 400 pixels and quality 96, views of {SIDE} x {SIDE}:",
        "",
        "| training images | ms per image | images/s per core | rate to e33f4e2 |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {ms:.2f} | {1e3 / ms:,.0f} | {ratio:.2f} |" for name, (ms, ratio) in rates.items()]
    return lines


def document(rates, starts, count):
    """Returns the text of input.md."""
    lines = ["# The input", "", "    python benchmarks/input.py", "", *table_of_rates(rates)]
    lines += ["", f"Opening a set of {count:,} listed files, of 64 x 64 pixels:", ""]
    lines += [
        "| listing | first start, s (CPU s) | second start, s (CPU s) | wall ratio | CPU ratio |",
        "|---|---|---|---|---|",
    ]
    for kind, ((wall, cpu), (wall_2, cpu_2)) in starts.items():
        first, second = f"{wall:.1f} ({cpu:.1f})", f"{wall_2:.1f} ({cpu_2:.1f})"
        lines.append(f"| {kind} | {first} | {second} | {wall / wall_2:.1f} | {cpu / cpu_2:.1f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="kdcompress-input-", dir=options.work))
    os.environ["KDCOMPRESS_CACHE"] = str(work / "cache")
    try:
        rates = decoding(work, options.rounds)
        if not options.files:
            print("\n".join(table_of_rates(rates)))
            return
        text = document(rates, starting(work, options.files), options.files)
    finally:
        shutil.rmtree(work)
    print(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
