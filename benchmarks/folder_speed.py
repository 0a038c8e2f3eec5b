"""Images per second of resnet34 to resnet18 at 224 pixels, from JPEG files, data loading included.

    python benchmarks/folder_speed.py [--arms NAME ...] [--rounds 9] [--threads 1] [--out FILE.md]

KD on 256 JPEGs of 500 x 400 pixels and quality 96, cut out of scikit-learn's two sample photographs, in
batches of 32, with a random crop and a mirror:

- none: plain training of the student by kdcompress; kd: with the teacher, from the files; kd, pixel cache:
  from raw pixels of the pixel cache; cached: from the pixel cache, and all outputs of the teacher from its
  cache; none, pixel cache: the floor of the last one.
- script: what a plain script does, float32 and NCHW, with a DataLoader and torchvision's transforms.

Each is a process that trains three steps when it is asked to (`alternating.py`); the first epoch is not
timed. Files are read from the operating system's memory: after the first epoch no training reads a set of
this size from the disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from alternating import OnCall, parsed, publish, setting, table, take_turns, train_plainly
from input import crops
from safetensors.torch import save_file

from kdcompress.networks.build import build

IMAGES, TEST, BATCH, SIDE, CLASSES = 256, 8, 32, 224, 4
STEPS = 3
TEACHER, STUDENT = "torchvision/resnet34", "torchvision/resnet18"
PRODUCT = {
    "none": ("off", "'off'"), "none, pixel cache": ("raw", "'off'"), "kd": ("off", "'off'"),
    "kd, pixel cache": ("raw", "'off'"), "cached": ("raw", "{views: 1}"),
}  # fmt: skip
"""data.pixel_cache and teacher.cache of each arm."""
FLOORS = {"plain training": "none", "plain training, pixel cache": "none, pixel cache", "script": "script"}
ARMS = (*PRODUCT, "script")
RECIPE = """
data: {{root: {root}, image_size: 224, batch_size: 32, held_out: 0, pixel_cache: {pixels}}}
student: {{model: {student}, weights: random}}
teacher: {{model: {teacher}, weights: {weights}, min_top1: 0, cache: {cache}}}
method: {{name: kd}}
train: {{epochs: 1000, threads: {threads}, bn_statistics: "off"}}
optim: {{lr: 0.01}}
bench: {{rounds: 1}}
"""


# ---- the process that trains


def product(arm, work, threads):
    """Trains by the product's command."""
    from kdcompress.pipeline import distill
    from kdcompress.run.opening import Request

    pixels, cache = PRODUCT[arm]
    file = work / f"{arm.replace(', ', '-').replace(' ', '-')}.yaml"
    file.write_text(
        RECIPE.format(
            root=work / "data", student=STUDENT, teacher=TEACHER, weights=work / "teacher.safetensors",
            pixels=pixels, cache=cache, threads=threads,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        method = "none" if arm.startswith("none") else None
        request = Request(str(file), out=Path(out) / "run", method=method)
        distill(request, OnCall(IMAGES // BATCH, STEPS))


def network(name):
    torch.manual_seed(0)
    return build(name, num_classes=CLASSES, channels=3, image_size=(SIDE, SIDE))


def script(work):
    """Trains as a plain script does."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([
        transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    pictures = datasets.ImageFolder(work / "data" / "train", transform)
    batches = torch.utils.data.DataLoader(pictures, BATCH, shuffle=True, drop_last=True)
    teacher, student = network(TEACHER).eval(), network(STUDENT).train()
    optimiser = torch.optim.SGD(student.parameters(), 0.01, 0.9, weight_decay=1e-4)
    train_plainly(teacher, student, batches, optimiser, STEPS)


# ---- the process that compares


def prepare(work):
    """Writes the pictures and a teacher's weights."""
    for split, count in (("train", IMAGES), ("test", TEST)):
        for number, picture in enumerate(crops(count, (500, 400), seed=len(split))):
            place = work / "data" / split / f"class{number % CLASSES}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture.save(place, quality=96)
    weights = {key: tensor.contiguous() for key, tensor in network(TEACHER).state_dict().items()}
    save_file(weights, work / "teacher.safetensors")


def main():
    options = parsed(__doc__, ARMS)
    if options.train:
        if options.train in PRODUCT:
            product(options.train, options.work, options.threads)
        else:
            script(options.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        prepare(work)
        times, _ = take_turns(__file__, options.arms, work, options.threads, options.rounds)
    said = f"{setting(options.threads, options.rounds, STEPS)}\n\n"
    said += f"{table(times, FLOORS, STEPS * BATCH)}\n"
    publish(said, options.out)


if __name__ == "__main__":
    main()
