"""Held-out accuracy with running and with re-estimated batch-norm statistics, and what re-estimation costs.

    python benchmarks/batch_norm.py [--work DIR] [--seeds 2] [--only NAME ...] [--methods none kd]

2,000 training images of Fashion-MNIST (200 of each class) in a folder, at 64 pixels, batches of 32, on one
thread. Three students from random weights with batch norms of different momentum, mobilenet_v3_small (0.01),
mnasnet0_5 (0.0003) and resnet18 (0.1), for 5 epochs (310 steps) and 24 (1,488), distilled from a
mobilenet_v3_large trained on 10,000 other images, and plain. Both figures of a row are of one training: the
weights are the same, 1,000 held-out images score both. A cell is stopped and resumed with the same command.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from kdcompress.data.datasets import fashion_mnist
from kdcompress.recipe import DataSection

from runs import distill, save_image

STUDENTS = {"mobilenet_v3_small": 0.01, "mnasnet0_5": 0.0003, "resnet18": 0.1}
EPOCHS = (5, 24)
TRAIN, HELD_OUT, TEACHER = 200, 100, 1_000
"""Images of each class."""
RECIPE = """
seed: {seed}
data: {{dataset: imagefolder, root: {root}, image_size: 64, batch_size: 32, workers: 0, augment: crop_flip}}
student: {{model: {student}, weights: {weights}}}
teacher: {teacher}
method: {method}
train: {{epochs: {epochs}, threads: 1, ship: last}}
optim: {{lr: 0.05, schedule: cosine, warmup: 0.05}}
export: {{formats: [safetensors]}}
bench: {{rounds: 1}}
"""


def write_folders(work):
    """Writes `images/{train,val,test}` and `teacher/{train,val,test}`, without an image in both."""
    if (work / "written").exists():
        return
    raw = fashion_mnist.read(DataSection(dataset="fashion-mnist"), None)
    taken = dict.fromkeys(range(10), 0)
    parts = [("images/train", TRAIN), ("images/val", HELD_OUT), ("teacher/train", TEACHER)]
    bounds = [sum(count for _, count in parts[: i + 1]) for i in range(len(parts))]
    for pixels, label in zip(raw.train.images, raw.train.labels.tolist(), strict=True):
        part = next((p for (p, _), bound in zip(parts, bounds, strict=True) if taken[label] < bound), None)
        if part is not None:
            save_image(pixels[0].numpy(), work / part / str(label), taken[label])
            taken[label] += 1
    for number, (pixels, label) in enumerate(
        zip(raw.test.images[:1000], raw.test.labels.tolist(), strict=False)
    ):
        for part in ("images/test", "teacher/test"):
            save_image(pixels[0].numpy(), work / part / str(label), number)
    (work / "written").touch()


def run(work, name, **settings):
    """Fills in the recipe and runs it."""
    return distill(work, name, RECIPE.format(**settings))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/batch_norm"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(STUDENTS))
    parser.add_argument("--methods", nargs="*", default=["none", "kd"])
    options = parser.parse_args()
    work = options.work.absolute()
    write_folders(work)
    if "kd" in options.methods:
        train_teacher(work)
    print("| student (momentum) | steps | method | running | re-estimated | gain, points | cost |")
    print("|---|---|---|---|---|---|---|")
    for epochs in EPOCHS:
        for student in options.only:
            for method in options.methods:
                print(row(work, student, epochs, method, options.seeds), flush=True)


def train_teacher(work):
    run(
        work, "teacher", root=work / "teacher", student="torchvision/mobilenet_v3_large", weights="random",
        teacher="null", method="{name: none}", epochs=8, seed=0,
    )  # fmt: skip


def row(work, student, epochs, method, seeds):
    both, cost = [], []
    for seed in range(seeds):
        weights = work / "runs" / "teacher"
        teacher = f"{{model: torchvision/mobilenet_v3_large, weights: {weights}, train: never}}"
        results = run(
            work, f"{student}-{epochs}-{method}-{seed}", root=work / "images",
            student=f"torchvision/{student}", weights="random",
            teacher=teacher if method == "kd" else "null",
            method="{name: kd}" if method == "kd" else "{name: none}", epochs=epochs, seed=seed,
        )  # fmt: skip
        facts = results["training"]["bn_statistics"]
        both.append([100 * facts["held_out"][which]["top1"] for which in ("running", "re-estimated")])
        cost.append(facts["seconds"] / results["training"]["seconds"])
    running, estimated = zip(*both, strict=True)
    gain = statistics.fmean(e - r for r, e in both)
    listed = [", ".join(f"{value:.1f}" for value in values) for values in (running, estimated)]
    return (
        f"| {student} ({STUDENTS[student]:g}) | {epochs * 62} | {method} | {listed[0]} | {listed[1]} | "
        f"{gain:+.1f} | {100 * statistics.fmean(cost):.1f} % |"
    )


if __name__ == "__main__":
    main()
