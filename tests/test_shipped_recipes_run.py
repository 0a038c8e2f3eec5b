"""Every shipped recipe trains and ships on a small folder of pictures, with all else as it is written."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main
from kdcompress.listing import shipped_recipes
from kdcompress.networks.build import build

SIDE, CLASSES = 32, 3
PACKAGED = ("quickstart", "fashion-mnist-wrn-16-2-to-resnet8")
"""Recipes of data that is at hand; other tests and the benchmarks run them."""
WITHOUT_TEACHER = [
    name for name, file in shipped_recipes().items() if not yaml.safe_load(file.read_text()).get("teacher")
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder per class, and one of test images."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for number in range(CLASSES * 16):
        kind, within = number % CLASSES, number // CLASSES
        pixels = torch.randint(0, 128, (40, 36, 3), generator=generator, dtype=torch.uint8)
        pixels[..., kind] += 100
        place = folder / ("test" if within < 4 else "train") / f"class{kind}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
    return folder


def weights(model, file):
    """Writes random weights with real batch-norm statistics, so that the outputs depend on the image."""
    torch.manual_seed(0)
    network = build(model, num_classes=CLASSES, channels=3, image_size=(SIDE, SIDE))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        network(torch.randn(32, 3, SIDE, SIDE))
    torch.save(network.state_dict(), file)
    return file


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in WITHOUT_TEACHER else pytest.mark.exhaustive)
        for name in shipped_recipes()
        if name not in PACKAGED
    ],
)
def test_a_shipped_recipe_ends_with_its_files_proved(name, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    proved_run(name, pictures, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["mcl", "lmcl", "kdcl", "okddip", "one"])
def test_the_recipe_of_two_networks_takes_the_other_methods_that_it_names(
    method, pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    offers = re.findall("--method ([^;.]*)", shipped_recipes()["resnet18-x2"].read_text())
    assert method in re.findall(r"\w+", " ".join(offers))
    proved_run("resnet18-x2", pictures, tmp_path, "--method", method)


def proved_run(name, pictures, tmp_path, *more):
    """Trains a recipe for two steps and checks that every file is proved."""
    written = yaml.safe_load(shipped_recipes()[name].read_text())
    settings = [
        "data.dataset=imagefolder", f"data.image_size={SIDE}", "data.batch_size=16", "data.workers=0",
        "train.epochs=2", "train.max_steps=2", "train.threads=1", "bench.rounds=1",
    ]  # fmt: skip
    if written.get("teacher"):
        teacher = weights(written["teacher"]["model"], tmp_path / "teacher.pth")
        settings += [f"teacher.weights={teacher}", "teacher.min_top1=0"]
        # Two steps from random weights do not make a MobileNet's outputs depend on the image.
        settings.append(f"student.weights={weights(written['student']['model'], tmp_path / 'student.pth')}")
    if written.get("pseudo_labels"):
        settings += [f"pseudo_labels.clusters={CLASSES}", "pseudo_labels.epochs=1"]
    options = [word for setting in settings for word in ("--set", setting)]
    arguments = ["distill", "--recipe", name, "--data", str(pictures), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, [*arguments, *options, *more])
    assert done.exit_code == 0, done.output
    gates = json.loads((tmp_path / "run" / "gates.json").read_text())["gates"]
    assert gates
    assert all(gate["passed"] for gate in gates)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["kdcompress"]["builder"] == written["student"]["model"]
