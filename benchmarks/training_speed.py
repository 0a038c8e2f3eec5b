"""Images per second of `kdcompress distill`, data loading included, beside plain training and other code.

    python benchmarks/training_speed.py [--arms NAME ...] [--rounds 9] [--threads 1] [--out FILE.md]

resnet32x4 teaches resnet8x4 by KD on 1,920 pictures of Fashion-MNIST (Debian's package dataset-fashion-mnist)
at 32x32 pixels in three channels, batches of 64, crop and mirror:

- none: plain training of the student by kdcompress, the floor; kd: with the teacher; cached: with the teacher
  cache, all of whose rows are there; each also with `train.compile`.
- torchdistill: its own DistillationBox (`pip install torchdistill`), with the same networks and images,
  a DataLoader and torchvision's transforms.
- script: what a plain script does, float32 and NCHW, with the same DataLoader.

The first three are the product's own command up to the end of the training. Each arm is a process that trains
ten steps when it is asked to. In every round each arm is asked once, in shuffled order and never two at once;
ratios are taken per round. The first epoch, and compiling, are not timed; what compiling takes is told beside
the table: how much later the compiled arm had trained its first epoch (not of `cached`, whose first arm
fills the cache).
"""

from __future__ import annotations

import gzip
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from alternating import OnCall, answer, parsed, publish, setting, table, take_turns, train_plainly

from kdcompress.networks.build import build

SOURCE = Path("/usr/share/datasets/fashion-mnist")
IMAGES, TEST, BATCH, SIDE, CLASSES = 1_920, 200, 64, 32, 10
STEPS = 10
TEACHER, STUDENT = "cifar/resnet32x4", "cifar/resnet8x4"
PRODUCT = {
    "none": (), "kd": (), "cached": (),
    "none compiled": ("train.compile=true",), "kd compiled": ("train.compile=true",),
    "cached compiled": ("train.compile=true",),
}  # fmt: skip
FLOORS = {"plain training": "none", "torchdistill": "torchdistill", "script": "script"}
ARMS = (*PRODUCT, "torchdistill", "script")
RECIPE = """
data: {{dataset: fashion-mnist, root: {root}, image_size: 32, channels: 3, batch_size: 64, held_out: 0}}
student: {{model: {student}, weights: random}}
teacher: {{model: {teacher}, weights: {weights}, min_top1: 0, cache: {cache}}}
method: {{name: kd}}
train: {{epochs: 1000, threads: {threads}, bn_statistics: "off"}}
optim: {{lr: 0.05}}
bench: {{rounds: 1}}
"""


# ---- the process that trains


def product(arm, work, threads):
    """Trains by the product's command."""
    from kdcompress.pipeline import distill
    from kdcompress.run.opening import Request

    name = arm.split()[0]
    cache = "{views: 1}" if name == "cached" else "'off'"
    file = work / f"{arm}.yaml".replace(" ", "-")
    file.write_text(
        RECIPE.format(
            root=work / "data", student=STUDENT, teacher=TEACHER, weights=work / "teacher.safetensors",
            cache=cache, threads=threads,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        request = Request(
            str(file),
            out=Path(out) / "run",
            overrides=PRODUCT[arm],
            method="none" if name == "none" else None,
        )
        distill(request, OnCall(IMAGES // BATCH, STEPS))


def loader(work, dataset_only=False):
    """Builds a DataLoader with torchvision's transforms, in this process."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose([
        transforms.RandomCrop(SIDE, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize((0.286,) * 3, (0.353,) * 3),
    ])  # fmt: skip
    images, labels = np.load(work / "images.npy"), np.load(work / "labels.npy")

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return transform(Image.fromarray(images[index])), int(labels[index])

    if dataset_only:
        return Pictures()
    return torch.utils.data.DataLoader(Pictures(), BATCH, shuffle=True, drop_last=True)


def network(name):
    torch.manual_seed(0)
    return build(name, num_classes=CLASSES, channels=3, image_size=(SIDE, SIDE))


def script(work):
    """Trains as a plain script does."""
    teacher, student = network(TEACHER).eval(), network(STUDENT).train()
    optimiser = torch.optim.SGD(student.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    train_plainly(teacher, student, loader(work), optimiser, STEPS)


def torchdistill(work):
    """Trains by torchdistill's own loop."""
    from torchdistill.core.distillation import DistillationBox

    kd = {
        "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".",
        "teacher_module_io": "output", "temperature": 4.0, "alpha": 0.1, "beta": 0.9,
    }  # fmt: skip
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler},
            "kwargs": {"batch_size": BATCH, "drop_last": True},
        },
        "val_data_loader": {},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }
    box = DistillationBox(
        network(TEACHER), network(STUDENT), {"train": loader(work, dataset_only=True)}, config,
        torch.device("cpu"), None, False, 1,
    )  # fmt: skip
    step, began = 0, None
    while True:
        box.pre_epoch_process(epoch=0)
        for images, labels, supplementary in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(images, labels, supplementary)
            box.post_forward_process(loss=loss)
            step += 1
            if step % STEPS == 0:
                began = time.perf_counter() if began is None else answer(time.perf_counter() - began)


# ---- the process that asks and compares


def prepare(work):
    """Writes the pictures and a teacher's weights."""
    from safetensors.torch import save_file

    (work / "data").mkdir(parents=True)
    for name, count, header in (("train", IMAGES, 16), ("t10k", TEST, 16)):
        images = _read(f"{name}-images-idx3-ubyte")[header:]
        labels = _read(f"{name}-labels-idx1-ubyte")[8:]
        pixels = np.frombuffer(images, np.uint8).reshape(-1, 28, 28)[:count]
        chosen = np.frombuffer(labels, np.uint8)[:count]
        head = struct.pack(">4i", 0x803, count, 28, 28)
        (work / "data" / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (work / "data" / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, count) + chosen.tobytes()
        )
        if name == "train":
            wide = np.repeat(np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[..., None], 3, 3)
            np.save(work / "images.npy", wide)
            np.save(work / "labels.npy", chosen)
    save_file(
        {key: t.contiguous() for key, t in network(TEACHER).state_dict().items()},
        work / "teacher.safetensors",
    )


def _read(name):
    plain, packed = SOURCE / name, SOURCE / f"{name}.gz"
    return plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())


def main():
    options = parsed(__doc__, ARMS)
    if options.train:
        if options.train in PRODUCT:
            product(options.train, options.work, options.threads)
        else:
            {"script": script, "torchdistill": torchdistill}[options.train](options.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        prepare(work)
        arms = ["none", *(arm for arm in options.arms if arm != "none")]
        times, compiled = take_turns(__file__, arms, work, options.threads, options.rounds)
    said = f"{setting(options.threads, options.rounds, STEPS)}\n\n"
    said += f"{table(times, FLOORS, STEPS * BATCH)}\n\n{compiled}"
    publish(said, options.out)


if __name__ == "__main__":
    main()
