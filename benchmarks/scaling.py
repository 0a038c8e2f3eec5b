"""What ImageNet costs on eight GPUs, computed from measured and published constants; nothing runs.

    python benchmarks/scaling.py [--epochs 100] [--gpus 8]

An image costs the student s seconds of a GPU, the teacher t, and the input d seconds of a node:

    live    max(d, s + t)          cached  max(d, s)
    run     E · 0.9 N · (V/E · live + (1 - V/E) · cached) / GPUs + E · evaluation

V is the number of cached views, N the number of training images, E the epochs. Constants, with their sources:

- s: a ResNet-18 trains 10,000 images/s on an A100 at 160 to 192 pixels (libffcv/ffcv-imagenet: 88 epochs in
  187 minutes), which is 5,800 at 224 by pixels; an H100 is taken as 1.7 times as fast.
- t: by multiplications, ResNet-101 forward (7.8 G) against forward and backward of ResNet-18 (3 · 1.81 G).
- d: images per second and core of `benchmarks/input.py`, times 1.2 for hyper-threads, times 48 cores beside
  eight A100 and 112 beside eight H100. The rate of torchvision's transforms that Composer reports for such an
  A100 node is 17,800 images/s.
- Evaluation in every epoch: a tenth of the training images; before, by one process alone; now by all.
- Rows: 2,048 features in 16 bits with a scale and a checksum, 4,104 bytes; 1,000 logits, 2,008 bytes.
"""

from __future__ import annotations

import argparse

IMAGES, HELD_OUT = 1_281_167, 128_117
STUDENT = {"A100": 5_800.0, "H100": 5_800.0 * 1.7}
CORES = {"A100": 48, "H100": 112}
TEACHER_TO_STUDENT = 7.8 / (3 * 1.81)
HYPER = 1.2
PILLOW = 203.0
"""Images per second and core of commit e33f4e2 in input.md."""
INPUT = {
    "as e33f4e2": 1.0,
    "pixel cache, jpeg": 1.94,
    "pixel cache, raw": 3.14,
    "pixel cache, jpeg, simplejpeg": 2.85,
    "pixel cache, raw, simplejpeg": 5.64,
}
"""Rates relative to e33f4e2 in input.md."""
POOLED, LOGITS = 4_104, 2_008
PICTURE = {"pixel cache, jpeg": 25_000, "pixel cache, raw": 262_000}
"""Bytes of a kept 4:3 picture for views of 224 x 224."""


def hours(gpu, gpus, epochs, views, rate, shared_evaluation):
    """Returns the hours of a run, and what limits it when the teacher computes and when it does not."""
    student = 1 / STUDENT[gpu] / gpus
    teacher = TEACHER_TO_STUDENT * student
    data = 1 / (CORES[gpu] * HYPER * PILLOW * rate)
    live, cached = max(data, student + teacher), max(data, student)
    share = min(1.0, views / epochs) if views else 1.0
    training = epochs * 0.9 * IMAGES * (share * live + (1 - share) * cached)
    central = 0.78 * PILLOW * HYPER * CORES[gpu]  # full decoding of the centre; kept pixels need none
    evaluation = 0.0 if shared_evaluation else epochs * HELD_OUT / (central / gpus)
    if shared_evaluation:
        evaluation = HELD_OUT / central + epochs * HELD_OUT * student / 3
    limits = [("input" if data >= gpu_time else "GPU") for gpu_time in (student + teacher, student)]
    return (training + evaluation) / 3600, limits


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=8)
    options = parser.parse_args()
    print(f"ResNet-101 to ResNet-18, {options.epochs} epochs, {options.gpus} GPUs\n")
    print("| input | evaluation | teacher | A100: hours (limit) | H100: hours (limit) |")
    print("|---|---|---|---|---|")
    steps = [("as e33f4e2", False, 0), ("as e33f4e2", True, 0), ("as e33f4e2", True, 8)]
    steps += [(name, True, views) for name in list(INPUT)[1:] for views in (0, 8)]
    for name, shared, views in steps:
        cells = []
        for gpu in STUDENT:
            found, (live, cached) = hours(gpu, options.gpus, options.epochs, views, INPUT[name], shared)
            cells.append(f"{found:.1f} ({cached if views else live})")
        teacher = f"{views} views cached" if views else "at every step"
        print(f"| {name} | {'shared' if shared else 'one process'} | {teacher} | {' | '.join(cells)} |")
    rate = {gpu: options.gpus * each for gpu, each in STUDENT.items()}
    print("\n| kept | bytes per image | ImageNet | read at the student's speed, A100 | H100 |")
    print("|---|---|---|---|---|")
    several = [(views, f"{views} view" + "s" * (views > 1)) for views in (1, 8, 25, 50)]
    kept = {f"{told} of pooled features": (POOLED, views) for views, told in several}
    kept |= {f"{told} of logits": (LOGITS, views) for views, told in several}
    kept |= {name: (size, 1) for name, size in PICTURE.items()}
    for name, (size, copies) in kept.items():
        speeds = " | ".join(f"{rate[gpu] * size / 1e9:.1f} GB/s" for gpu in STUDENT)
        print(f"| {name} | {size:,} | {copies * IMAGES * size / 1e9:.1f} GB | {speeds} |")


if __name__ == "__main__":
    main()
