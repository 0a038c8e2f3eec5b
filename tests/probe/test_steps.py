"""`evaluate --probe` and `--knowledge` on files that no run of the quickstart makes."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.config import write_config
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.errors import DataError, UserError
from kdcompress.networks.build import build
from kdcompress.probe.knowledge import Search
from kdcompress.progress import Progress
from kdcompress.recipe import load_recipe
from kdcompress.tasks import EMBEDDING
from kdcompress.tools import probe as probing

SPEC = InputSpec(1, 8, 8, mean=(0.3,), std=(0.35,))
QUIET = Progress(quiet=True)


def evaluate(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--recipe", "quickstart", "--json"])


def write_student(folder, *, classes=10, seed=0, model="cifar/resnet8"):
    """An untrained student, as a run would have written it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = build(model, num_classes=classes, channels=1, image_size=(8, 8)).eval()
    names = tuple(map(str, range(classes)))
    write_config(
        folder / "config.json", model=model, num_classes=classes, spec=SPEC, class_names=names, extra={}
    )
    safetensors.write(network, SPEC, folder / "student.safetensors", metadata={})
    return network


def write_run(folder, *overrides, seed=0):
    """A run folder as far as `--knowledge` reads it."""
    write_student(folder, seed=seed)
    recipe = load_recipe("quickstart", overrides)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    return folder


def knowledge(run, *overrides, images=2, data=None):
    return probing.knowledge(
        run, QUIET, recipe="quickstart", data=data, overrides=overrides, split="test", images=images,
        allow_code=False, search=Search(steps=6),
    )  # fmt: skip


def test_a_backbone_is_probed_by_its_output_whatever_its_format(tmp_path):
    network = write_student(tmp_path, classes=0)
    onnx.write(network, SPEC, tmp_path / "student.onnx", metadata={}, task=EMBEDDING)
    for kind in ("linear", "knn"):
        told = {}
        for name in ("student.safetensors", "student.onnx"):
            done = evaluate(tmp_path / name, "--probe", kind)
            assert done.exit_code == 0, done.stderr
            told[name] = json.loads(done.stdout)
            assert told[name]["file"] == str(tmp_path / name)
        assert told["student.onnx"]["features"] == 64
        assert told["student.onnx"]["top1"] == pytest.approx(told["student.safetensors"]["top1"], abs=0.02)
        assert told["student.onnx"]["top1"] > 0.5  # random features of digits are worth something


def test_a_test_split_without_labels_cannot_be_scored_on(tmp_path):
    write_student(tmp_path / "run")
    for number in range(40):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("L", (8, 8), 6 * number).save(tmp_path / "images" / f"{number}.png")
    done = evaluate(
        tmp_path / "run" / "student.safetensors", "--probe", "knn", "--data", tmp_path / "images",
        "--set", "data.dataset=imagefolder",
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--probe: no image of the test split has a label to score on" in done.stderr


def test_a_run_without_a_teacher_has_its_student_alone(tmp_path):
    run = write_run(tmp_path / "run", "teacher=null", "method={name: none}")
    told = knowledge(run)
    assert list(told["networks"]) == ["student"]
    assert told["comparable"]
    assert (run / "knowledge.png").is_file()


def test_a_teacher_of_given_weights_is_looked_into_as_it_taught(tmp_path):
    # The student's own weights as its teacher: then both keep the same.
    write_student(tmp_path / "weights", seed=3)
    run = write_run(
        tmp_path / "run", "teacher.model=cifar/resnet8", f"teacher.weights={tmp_path / 'weights'}",
        "teacher.train=never", seed=3,
    )  # fmt: skip
    networks = knowledge(run)["networks"]
    for key in ("entropy", "distortion", "concepts"):
        assert networks["teacher"][key] == pytest.approx(networks["student"][key], rel=1e-3)
    # Resized images are other images.
    run = write_run(
        tmp_path / "larger", "teacher.model=cifar/resnet8", f"teacher.weights={tmp_path / 'weights'}",
        "teacher.train=never", "teacher.input.size=16", seed=3,
    )  # fmt: skip
    networks = knowledge(run)["networks"]
    assert networks["teacher"]["entropy"] != pytest.approx(networks["student"]["entropy"], rel=1e-3)


def test_a_trained_teacher_normalises_by_the_images_it_was_trained_on(tmp_path):
    run = write_run(tmp_path / "run", "teacher.model=cifar/resnet8")
    network = build("cifar/resnet8", num_classes=10, channels=1, image_size=(8, 8))
    (run / "checkpoints").mkdir()
    safetensors.write(network, SPEC, run / "checkpoints" / "teacher.safetensors", metadata={})
    # With other images held out the training images have other means; the run's own recipe says its.
    assert probing.data_of(load_recipe("quickstart"), None, (8, 8), 1, QUIET).mean != (
        probing.data_of(load_recipe("quickstart", ["data.held_out=800"]), None, (8, 8), 1, QUIET).mean
    )
    assert knowledge(run)["networks"] == knowledge(run, "data.held_out=800")["networks"]


def test_unequal_distortions_are_told(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", "teacher=null", "method={name: none}")
    write_student(run / "baseline", seed=1)
    monkeypatch.setattr(probing, "COMPARABLE", 1.0)
    assert knowledge(run)["comparable"] is False
    told = capsys.readouterr().err
    assert "Warning: the networks' features are distorted unequally, so their entropies are no " in told
    assert "student 0." in told
    assert "baseline 0." in told


def test_the_seed_draws_the_images(tmp_path):
    run = write_run(tmp_path / "run", "teacher=null", "method={name: none}")
    first, again, other = knowledge(run), knowledge(run), knowledge(run, "seed=1")
    assert first == again
    assert (first["seed"], other["seed"]) == (0, 1)
    assert first["networks"]["student"]["entropy"] != other["networks"]["student"]["entropy"]


def test_more_images_than_there_are_are_all_of_them(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", "teacher=null", "method={name: none}")
    monkeypatch.setattr(probing, "_VARIANCE_IMAGES", 50)
    looked = probing.knowledge(
        run, QUIET, recipe="quickstart", data=None, overrides=("data.held_out=7",), split="held_out",
        images=1000, allow_code=False, search=Search(steps=2, samples=2),
    )  # fmt: skip
    assert (looked["images"], looked["split"]) == (7, "held_out")


def test_what_is_no_run_is_refused(tmp_path):
    write_student(tmp_path / "files")
    with pytest.raises(UserError, match=r"files: holds no recipe\.yaml, so it is no run of kdcompress"):
        knowledge(tmp_path / "files")
    run = write_run(tmp_path / "run", "teacher=null", "method={name: none}")
    with pytest.raises(DataError, match="--split held_out: the recipe holds nothing out"):
        probing.knowledge(
            run, QUIET, recipe="quickstart", data=None, overrides=("data.held_out=0",), split="held_out",
            images=2, allow_code=False,
        )  # fmt: skip
    assert not (run / "knowledge.png").exists()


def test_a_network_that_gives_every_image_the_same_is_refused(tmp_path):
    run = write_run(tmp_path / "run", "teacher=null", "method={name: none}")
    tensors = safetensors.tensors_of(run / "student.safetensors")
    network, _ = safetensors.read(run / "student.safetensors")
    network.load_state_dict({key: torch.zeros_like(tensor) for key, tensor in tensors.items()})
    safetensors.write(network, SPEC, run / "student.safetensors", metadata={})
    with pytest.raises(DataError, match="gives every image the same features"):
        knowledge(run)
