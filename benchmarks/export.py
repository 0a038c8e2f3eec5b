"""What every network of the table survives: export, the gates of each precision, the round trips.

    python benchmarks/export.py [--networks FAMILY/NAME ...] [--out FILE.md]

The weights are random and so are the statistics of the norms: each batch norm gets random weights and biases,
the means and variances that real images then give, and a shift of those. (Fresh ones, of mean 0 and variance
1, let through any exporter that folds batch norms wrongly; and fresh scales of layers, such as ConvNeXt's
1e-6, let through anything.) The images are crops of the two photographs that scikit-learn ships.

fp16 is proved twice: with these weights, and after 60 steps of real training (which photograph is it?, at 64
pixels). A deep network of random weights hardly tells images apart and amplifies any disturbance from layer
to layer, its own rounding too.

Of int8 the gates count that hold for any weights: it loads, onnxruntime runs it where it should, the batch
size does not matter, it is smaller. Whether it still classifies rightly means nothing with random weights,
whose logits lie close together: that share is shown and not judged (see benchmarks/int8.md for trained ones).

With `openvino` installed its file is written and proved like the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from kdcompress.atomic import write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.calibration import calibration
from kdcompress.deploy.formats import onnx
from kdcompress.deploy.formats.onnx import PROVIDER, open_
from kdcompress.deploy.gate import Gate
from kdcompress.deploy.ship import Subject, ship
from kdcompress.deploy.variants import Fp32Reference, to_fp16, to_int8
from kdcompress.errors import GateFailed
from kdcompress.networks.build import build

NETWORKS = {
    "torchvision/resnet18": 224, "torchvision/mobilenet_v2": 224, "torchvision/mobilenet_v3_small": 224,
    "torchvision/shufflenet_v2_x1_0": 224, "cifar/resnet8x4": 32, "torchvision/efficientnet_b0": 224,
    "torchvision/regnet_y_400mf": 224, "torchvision/convnext_tiny": 224, "cifar/vgg8": 32,
    "timm/mobilenetv4_conv_small": 224, "timm/ghostnet_100": 224,
}  # fmt: skip
"""By the side of their images in pixels."""
CLASSES = 100
TEST, CALIBRATION = 64, 32
OF_TRAINED = ("int8_drop", "int8_agreement")
"""Gates that mean nothing with random weights."""


def crops(count: int, side: int, seed: int) -> Tensor:
    """`[count, 3, side, side]` in [0, 1]: squares of all sizes and places of two photographs."""
    generator = np.random.default_rng(seed)
    photographs = [
        torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in load_sample_images().images
    ]
    found = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        _, height, width = photograph.shape
        size = int(generator.integers(64, height))
        top, left = int(generator.integers(height - size)), int(generator.integers(width - size))
        square = photograph[None, :, top : top + size, left : left + size]
        found.append(nn.functional.interpolate(square, (side, side), mode="bilinear", antialias=True))
    return torch.cat(found).clamp(0, 1)


def randomise(network: nn.Module, images: Tensor, seed: int) -> None:
    """Gives norms and scales the look of a trained network's."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, norms) and part.weight is not None:
                part.weight.copy_(between(0.5, 1.5, part.weight))
                part.bias.copy_(between(-0.5, 0.5, part.bias))
        for name, parameter in network.named_parameters():
            if name.endswith(("layer_scale", ".gamma")):
                parameter.copy_(between(0.1, 1, parameter))
        batch_norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        for part in batch_norms:
            part.momentum = None  # the mean of all batches
        network.train()
        for batch in images.split(16):
            network(batch)
        network.eval()
        for part in batch_norms:
            part.momentum = 0.1
            shift = between(-0.3, 0.3, part.running_mean)
            part.running_mean += shift * part.running_var.sqrt()
            part.running_var *= between(0.7, 1.4, part.running_var)


def train(network: nn.Module, side: int, mean: Tensor, std: Tensor) -> None:
    """Sixty steps of telling the two photographs apart."""
    torch.manual_seed(0)
    images = (crops(512, side, seed=7) - mean) / std
    labels = torch.arange(len(images)) % 2
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(60):
        rows = torch.randint(0, len(images), (32,))
        loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()


def passed(gates: list[Gate], *, leave_out: tuple[str, ...] = ()) -> str:
    """`19 of 19`, and the names of those that failed."""
    counted = [gate for gate in gates if gate.gate not in leave_out]
    lost = [gate.gate for gate in counted if not gate.passed]
    return f"{len(counted) - len(lost)} of {len(counted)}" + (f": **{', '.join(lost)}**" if lost else "")


def figure(gates: list[Gate], name: str) -> str:
    """A gate's figure."""
    found = next((gate.figure for gate in gates if gate.gate == name), None)
    return "–" if found is None else f"{found:.1e}" if isinstance(found, float) else str(found)


def row(name: str, side: int) -> list[str]:
    """Of one network."""
    torch.manual_seed(0)
    network = build(name, num_classes=CLASSES, channels=3, image_size=(side, side))
    spec = InputSpec(3, side, side, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
    calibrating = crops(CALIBRATION, side, seed=1)
    randomise(network, (calibrating - mean) / std, seed=2)
    images = crops(TEST, side, seed=3)

    def test() -> list[tuple[Tensor, Tensor]]:
        return [(part, torch.full((len(part),), -1)) for part in images.split(16)]

    formats = ["onnx", "safetensors"] + ["openvino"] * (importlib.util.find_spec("openvino") is not None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            classes = [f"class {number}" for number in range(CLASSES)]
            shipped = ship(Subject(network, name, spec, classes, test, {}), Path(folder), formats=formats)
        except GateFailed as failed:
            return [name, str(side), "", f"**does not ship**: {str(failed).replace(chr(10), ' ')}"]
        exact = Fp32Reference(Path(folder) / "student.onnx", test)
        labels = torch.full((CALIBRATION,), -1)
        drawn = calibration(labels, lambda indices: [calibrating[indices]], CALIBRATION, 0)
        fp16 = to_fp16(exact, drawn, Path(folder))
        int8 = to_int8(exact, drawn, Path(folder), target="x86")
        assert open_(int8.path).providers == (PROVIDER,)
        size = int8.path.stat().st_size / exact.path.stat().st_size
        opset = exact.file.opset
        train(network, min(side, 64), mean, std)
        onnx.write(network, spec, Path(folder) / "student.onnx", metadata={})
        trained = to_fp16(Fp32Reference(Path(folder) / "student.onnx", test), drawn, Path(folder))
    gates = shipped.gates
    return [
        name,
        str(side),
        f"{shipped.student['params'] / 1e6:.2f}",
        str(opset),
        passed(gates),
        figure(gates, "parity_test_split"),
        figure(gates, "safetensors_round_trip"),
        figure(gates, "openvino_parity_test_split"),
        passed(fp16.gates),
        figure(fp16.gates, "fp16_parity"),
        passed(trained.gates),
        figure(trained.gates, "fp16_parity"),
        passed(int8.gates, leave_out=OF_TRAINED),
        figure(int8.gates, "int8_batch_invariance"),
        f"{size:.2f}",
        f"{100 * int8.score['agreement_fp32']:.0f} %",
    ]


HEAD = [
    "network", "side", "M params", "opset", "fp32 gates", "ONNX error/S", "safetensors round trip",
    "OpenVINO error/S", "fp16 gates", "fp16 error/S",
    "fp16 gates, 60 steps", "fp16 error/S, 60 steps", "int8 gates", "int8 batch error/S", "int8 bytes/fp32",
    "int8 agreement (not judged)",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows = [HEAD, ["---"] * len(HEAD)]
    for line in rows:
        print("| " + " | ".join(line) + " |", flush=True)
    for name in asked.networks:
        rows.append(row(name, NETWORKS.get(name, 224)))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    if asked.out:
        text = "\n".join("| " + " | ".join(line) + " |" for line in rows) + "\n"
        write_bytes(asked.out, text.encode())


if __name__ == "__main__":
    main()
