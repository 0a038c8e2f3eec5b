"""A folder of images and its tar shards through the command line, with a worker process and both caches."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main

RECIPE = """
data: {image_size: 16, batch_size: 32, pixel_cache: raw}
teacher: {model: cifar/resnet8, epochs: 1, min_top1: 0, cache: {views: 1}}
student: {model: cifar/resnet8}
method: {name: kd}
train: {epochs: 2, max_steps: 4, threads: 1}
optim: {lr: 0.05}
export: {formats: [safetensors]}
bench: {rounds: 1}
"""


def invoke(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


pytestmark = pytest.mark.exhaustive  # two runs from recipe to report


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of images of two classes, three shards of it, and a run on each."""
    work = tmp_path_factory.mktemp("shards")
    generator = torch.Generator().manual_seed(0)
    names = []
    for label, name in enumerate(("intact", "broken")):
        (work / "images" / name).mkdir(parents=True)
        for number in range(60):
            pixels = torch.randint(80 * label, 80 * label + 90, (20, 28, 3), generator=generator)
            names.append(f"{name}/{number}.png")
            Image.fromarray(pixels.byte().numpy()).save(work / "images" / names[-1])
    (work / "shards").mkdir()
    for number in range(3):
        shard = work / "shards" / f"{number}.tar"
        subprocess.run(["tar", "-cf", shard, "-C", work / "images", *names[number::3]], check=True)
    (work / "recipe.yaml").write_text(RECIPE)
    for place, workers in (("images", 0), ("shards", 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDCOMPRESS_CACHE", str(work / f"cache-{place}"))
            invoke(
                "distill", "--recipe", work / "recipe.yaml", "--data", work / place,
                "--out", work / f"run-{place}", "--set", f"data.workers={workers}",
            )  # fmt: skip
    return work


@pytest.mark.parametrize("name", ["student.safetensors", os.path.join("checkpoints", "teacher.safetensors")])
def test_a_folder_and_its_shards_give_the_same_networks(work, name):
    assert (work / "run-images" / name).read_bytes() == (work / "run-shards" / name).read_bytes()


def test_the_caches_of_pixels_and_outputs_are_filled_from_shards(work):
    assert list((work / "cache-shards" / "pixels").glob("*/*.pixels"))
    assert list((work / "cache-shards" / "teacher-outputs").glob("*/*.rows"))
    assert len(list((work / "cache-shards" / "shards").iterdir())) == 3


def test_a_run_is_evaluated_on_shards(work):
    scored = [
        json.loads(invoke("evaluate", work / "run-images", "--data", work / place, "--json").stdout)
        for place in ("images", "shards", os.path.join("shards", "{0..2}.tar"))
    ]
    assert scored[0] == scored[1] == scored[2]
