"""A table of grey images through the command line: val stays val, pictures are padded, one channel ships."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import kdcompress
from kdcompress.cli import main

RECIPE = """
data: {image_size: 16, channels: 1, resize: pad, workers: 0, batch_size: 32}
teacher: {model: cifar/resnet8, epochs: 1, min_top1: 0, input: {channels: 3}}
student: {model: cifar/resnet8}
method: {name: kd}
train: {epochs: 1, max_steps: 3, threads: 1}
optim: {lr: 0.05}
export: {embed_preprocess: resize}
bench: {rounds: 1}
"""
CLASSES = ("0", "7", "12")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Images of three classes that are named by numbers, in the folder of a table."""
    work = tmp_path_factory.mktemp("table")
    (work / "set" / "images").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    lines = ["File Name;Category;Subset"]
    for number in range(150):
        label = number % 3
        pixels = torch.randint(80 * label, 80 * label + 90, (12, 20), generator=generator)
        Image.fromarray(pixels.byte().numpy()).save(work / "set" / "images" / f"{number}.png")
        lines.append(f"{number}.png;{CLASSES[label]};{'val' if number % 5 == 0 else 'train'}")
    (work / "set" / "labels.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    (work / "recipe.yaml").write_text(RECIPE)
    return work


@pytest.fixture(scope="module")
def done(work):
    result = invoke(
        "distill", "--recipe", work / "recipe.yaml", "--data", work / "set", "--out", work / "run",
        "--baseline",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return result, work / "run"


def read(run, name):
    return json.loads((run / name).read_text())


def test_classes_named_by_numbers_stay_names(done):
    assert read(done[1], "labels.json") == ["0", "12", "7"]
    assert read(done[1], "manifest.json")["data"]["name"] == "imagetable"


def test_the_student_takes_one_channel_and_its_files_say_how_pictures_become_square(done):
    _, run = done
    spec = read(run, "config.json")["input"]
    assert (spec["channels"], spec["fit"], spec["border"]) == (1, "pad", 114)
    session = onnxruntime.InferenceSession(run / "student.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [1, 16, 16]
    assert json.loads(session.get_modelmeta().custom_metadata_map["kdcompress.input"])["fit"] == "pad"
    for file in (run, run / "student.onnx"):
        assert kdcompress.load(file)[1].fit == "pad"
    assert "put it in the middle of a square of the grey 114" in (run / "README.md").read_text()
    assert np.load(run / "golden.npz")["images"].shape[1:] == (1, 16, 16)


def test_the_file_that_takes_images_pads_them_as_the_evaluation_does(done):
    gates = {gate["gate"]: gate for gate in read(done[1], "gates.json")["gates"]}
    assert gates["image_pixels_max"]["figure"] <= 1


def test_the_split_of_val_is_called_val(done):
    told, run = done
    for text in (
        (run / "README.md").read_text(), (run / "report.html").read_text(), (run / "gates.json").read_text(),
        (run / "baseline" / "README.md").read_text(), told.stdout, told.stderr,
    ):  # fmt: skip
        assert "test split" not in text
        assert "test images" not in text
    assert "30 images of the val split" in (run / "README.md").read_text()
    assert "on the 30 val images" in (run / "gates.json").read_text()
    data = read(run, "manifest.json")["data"]
    assert data["test_split"] == "val"
    assert data["counts"] == {"train": 108, "held_out": 12, "test": 30, "broken": 0}


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluate_scores_the_same_images_in_the_same_way(done, work, split):
    _, run = done
    # The file says channels and fit; the recipe's own are others.
    result = invoke(
        "evaluate", run / "student.onnx", "--recipe", work / "recipe.yaml", "--data", work / "set",
        "--set", "data.resize=crop", "--set", "data.channels=auto", "--split", split, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["split"], document["n"]) == ("val", 30)
    assert document["top1"] == read(run, "results.json")["student"]["top1"]
    assert document["loss"] == pytest.approx(read(run, "results.json")["student"]["loss"], rel=1e-4)


def test_a_split_that_the_data_has_not_is_refused(done, work):
    result = invoke(
        "evaluate", done[1], "--recipe", work / "recipe.yaml", "--data", work / "set", "--split", "valid"
    )
    assert result.exit_code == 2
    assert "the data has no test split of that name; expected test, held_out, val" in result.stderr


def test_a_resume_of_the_finished_run_reads_the_table_again(done, work):
    result = invoke(
        "distill", "--recipe", work / "recipe.yaml", "--data", work / "set", "--out", done[1],
        "--baseline", "--resume",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_a_wrong_table_exits_2_with_one_message_and_writes_nothing(work, tmp_path):
    (tmp_path / "labels.csv").write_text("name,colour\n0.png,red\n")
    result = invoke(
        "distill", "--recipe", work / "recipe.yaml", "--data", tmp_path / "labels.csv",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "columns found: 'name', 'colour'" in result.stderr
    assert result.stderr.count("Error") == 1
    assert not (tmp_path / "run").exists()
