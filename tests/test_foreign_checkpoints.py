"""`strip` and `export` of checkpoints that other codes saved: what they print, write and refuse."""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from deploy.small_student import randomise
from PIL import Image
from safetensors.torch import load_file

import kdcompress
from kdcompress.atomic import sha256_of
from kdcompress.cli import main
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.golden_file import read_golden
from kdcompress.export import reexport
from kdcompress.networks.build import build

MODEL = "cifar/resnet8"
NORMAL = ("--mean", "0.3", "--std", "0.4")
DIGITS = ("--student", MODEL, "--recipe", "quickstart", *NORMAL)
FILES = {"student.onnx", "student.safetensors", "config.json", "labels.json", "golden.npz"}


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def trained(classes=10, channels=1, seed=0):
    torch.manual_seed(seed)
    network = build(MODEL, num_classes=classes, channels=channels, image_size=(8, 8))
    return randomise(network, seed).state_dict()


def saved(path, state, **more):
    """As a training code saves it: wrapped, in a dictionary, beside a head and its settings."""
    wrapped = {f"module.{key}": value for key, value in state.items()}
    head = {"module.aux.weight": torch.ones(4, 16)}
    torch.save({"epoch": 9, "model": {**wrapped, **head}, "opt": argparse.Namespace(lr=1), **more}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return saved(tmp_path / "last.pth.tar", trained())


# ---- strip


def test_strip_writes_the_plain_tensors_and_nothing_else(checkpoint, tmp_path):
    done = run("strip", checkpoint, "--student", MODEL, "--out", tmp_path / "plain.safetensors")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == (
        f"{tmp_path / 'plain.safetensors'}: cifar/resnet8, 10 classes, 77,754 parameters in 56 tensors\n"
        "kept: model:module.\n"
        "dropped: model:module.aux  1 tensors  64 parameters\n"
        "dropped: epoch, opt\n"
    )
    held, expected = load_file(tmp_path / "plain.safetensors"), trained()
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[key], expected[key]) for key in expected)
    fresh = build(MODEL, num_classes=10, channels=1, image_size=(8, 8))
    fresh.load_state_dict(held, strict=True)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth.tar", "plain.safetensors"}


def test_strip_json_is_the_whole_document(checkpoint, tmp_path):
    out = tmp_path / "plain.safetensors"
    done = run("strip", checkpoint, "--student", MODEL, "--out", out, "--json")
    assert json.loads(done.stdout) == {
        "schema": "kdcompress.strip/1",
        "checkpoint": {"file": str(checkpoint), "sha256": sha256_of(checkpoint)},
        "student": MODEL,
        "kept": {
            "at": "model:module.", "also_at": [], "tensors": 56, "parameters": 77754, "classes": 10,
            "channels": 1, "counters_added": 0, "cast_from": [],
        },
        "set_aside": [],
        "dropped": [{"at": "model:module.aux", "tensors": 1, "parameters": 64}],
        "values": ["epoch", "opt"],
        "file": str(out),
        "sha256": sha256_of(out),
        "bytes": out.stat().st_size,
    }  # fmt: skip


def test_the_same_weights_give_the_same_bytes_whatever_they_came_in(checkpoint, tmp_path):
    torch.save({f"student.{key}": value for key, value in trained().items()}, tmp_path / "best")
    for source, name in ((checkpoint, "one"), (tmp_path / "best", "two")):
        assert (
            run("strip", source, "--student", MODEL, "--out", tmp_path / f"{name}.safetensors").exit_code == 0
        )
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_old_and_half_precision_checkpoints_become_whole_float32_networks(tmp_path):
    old = {key: value for key, value in trained().items() if not key.endswith("num_batches_tracked")}
    torch.save({key: value.half() for key, value in old.items()}, tmp_path / "old.pt")
    out = tmp_path / "plain.safetensors"
    done = run("strip", tmp_path / "old.pt", "--student", MODEL, "--out", out, "--json")
    kept = json.loads(done.stdout)["kept"]
    assert (kept["counters_added"], kept["cast_from"]) == (9, ["float16"])
    held = load_file(out)
    assert "cast: float16 to float32" in run(
        "strip", tmp_path / "old.pt", "--student", MODEL, "--out", out
    ).stdout.split("\n")
    assert held["fc.weight"].dtype == torch.float32
    assert torch.equal(held["fc.weight"], old["fc.weight"].half().float())
    assert held["bn1.num_batches_tracked"] == 0


def test_what_steps_back_for_its_name_is_told(tmp_path):
    torch.save({"student": trained(), "teacher": trained(seed=1)}, tmp_path / "a.pt")
    done = run("strip", tmp_path / "a.pt", "--student", MODEL, "--out", tmp_path / "b.safetensors")
    assert "set aside: teacher, which fits too but is named a teacher\n" in done.stdout
    assert torch.equal(load_file(tmp_path / "b.safetensors")["fc.weight"], trained()["fc.weight"])


def test_several_candidates_are_listed_and_one_is_chosen_by_its_place(checkpoint, tmp_path):
    saved(checkpoint, trained(), ema=trained(seed=1))
    out = tmp_path / "b.safetensors"
    done = run("strip", checkpoint, "--student", MODEL, "--out", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith("choose one:\n  --at model:module.  (10 classes)\n  --at ema  (10 classes)\n")
    assert not out.exists()
    assert run("strip", checkpoint, "--student", MODEL, "--out", out, "--at", "ema").exit_code == 0
    assert torch.equal(load_file(out)["fc.weight"], trained(seed=1)["fc.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["last.pth.tar", "--out", "b.safetensors"], "Missing option '--student'"),
        (["last.pth.tar", "--student", MODEL], "Missing option '--out'"),
        (["nowhere.pth", "--student", MODEL, "--out", "b.safetensors"], "nowhere.pth: no such file"),
        ([".", "--student", MODEL, "--out", "b.safetensors"], ".: is a folder"),
        (["last.pth.tar", "--student", MODEL, "--out", "b.pth"], "expected a name that ends in .safetensors"),
        (["last.pth.tar", "--student", MODEL, "--out", "no/b.safetensors"], "there is no folder no"),
        (["plain.safetensors", "--student", MODEL, "--out", "plain.safetensors"], "is the checkpoint itself"),
        (["last.pth.tar", "--student", "cifar/resnet9", "--out", "b.safetensors"], "did you mean 'resnet8'?"),
        (["last.pth.tar", "--student", "resnet8", "--out", "b.safetensors"], "expected FAMILY/NAME"),
        (
            ["last.pth.tar", "--student", "python:a:b", "--out", "b.safetensors"],
            "pass --allow-code to let it",
        ),
        (
            ["last.pth.tar", "--student", "cifar/resnet14", "--out", "b.safetensors"],
            "missing: layer1.1.conv1",
        ),
        (["cut.pth", "--student", MODEL, "--out", "b.safetensors"], "cut.pth: is truncated or no checkpoint"),
        (["evil.pth", "--student", MODEL, "--out", "b.safetensors"], "refused and nothing in it was run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_stripped_is_refused_and_nothing_is_written(
    checkpoint, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:3000])
    torch.save({"model": trained(), "net": torch.nn.Linear(1, 1)}, tmp_path / "evil.pth")
    run("strip", checkpoint, "--student", MODEL, "--out", "plain.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("strip", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The files of a checkpoint, and what `export` said; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        done = run("export", saved(folder / "last.pth", trained()), *DIGITS, "--opset", "19", "--json")
    return done, folder / "last-export"


def test_export_of_a_checkpoint_passes_every_gate_beside_it(exported):
    done, folder = exported
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["folder"] == str(folder)
    assert set(document["files"]) == FILES
    assert {path.name for path in folder.iterdir()} == FILES | {"gates.json"}
    gates = {gate["gate"]: gate for gate in document["gates"]}
    assert len(gates) == 17
    assert all(gate["passed"] for gate in gates.values())
    assert gates["opset"]["figure"] == gates["opset"]["limit"] == 19
    assert document["stripped"]["kept"]["at"] == "model:module."


def test_the_opset_that_was_asked_for_is_the_one_that_is_written(exported):
    model = onnx.load(exported[1] / "student.onnx")
    assert [entry.version for entry in model.opset_import if not entry.domain] == [19]


def test_its_files_load_and_compute_what_the_checkpoint_computes(exported):
    folder = exported[1]
    network, spec = kdcompress.load(folder)
    assert (spec.mean, spec.std, spec.height, spec.channels) == ((0.3,), (0.4,), 8, 1)
    expected = trained()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())
    golden = read_golden(folder / "golden.npz")
    assert golden.images.shape == (16, 1, 8, 8)
    assert golden.error(onnx_format.open_(folder / "student.onnx")) < golden.tolerance
    with torch.no_grad():
        logits = network((torch.from_numpy(golden.images) - 0.3) / 0.4)
    np.testing.assert_allclose(logits.numpy(), golden.outputs, rtol=1e-4, atol=1e-4)


def test_the_same_weights_give_the_same_files_whatever_they_came_in(exported, tmp_path):
    torch.save({"state_dict": {f"student.{k}": v for k, v in trained().items()}}, tmp_path / "other.pt")
    done = run("export", tmp_path / "other.pt", *DIGITS, "--opset", "19", "--out", tmp_path / "again")
    assert done.exit_code == 0, done.stderr
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (exported[1] / name).read_bytes(), name


def test_an_exported_file_is_exported_again_by_what_lies_beside_it(exported, tmp_path):
    weights = exported[1] / "student.safetensors"
    done = run("export", weights, "--recipe", "quickstart", "--opset", "19", "--out", tmp_path / "again")
    assert done.exit_code == 0, done.stderr
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (exported[1] / name).read_bytes(), name
    done = run("export", weights, "--recipe", "quickstart", "--student", "cifar/resnet14")
    assert done.exit_code == 2
    assert "config.json: says that student.safetensors is a cifar/resnet8, --student says" in done.stderr


def test_a_person_sees_what_was_dropped_the_files_and_the_score(checkpoint, tmp_path):
    done = run("export", checkpoint, *DIGITS, "--format", "safetensors", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{checkpoint}: cifar/resnet8, 10 classes, 77,754 parameters in 56 tensors"
    assert "dropped: model:module.aux  1 tensors  64 parameters" in lines
    assert lines[-1].startswith("13 gates passed; top-1 ")
    assert lines[-1].endswith(" % on 180 images")


def test_an_untrained_network_is_warned_of(checkpoint, tmp_path):
    done = run("export", checkpoint, *DIGITS, "--format", "safetensors", "--out", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["student"]["top1"] < 0.15
    assert "with 10 classes, which is near chance: are --mean and --std those of its training" in done.stderr


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of three classes, as the names of their folders tell; decoded without other processes."""
    monkeypatch.setattr(reexport, "granted_cores", lambda: 0)
    for shade, name in enumerate(("ant", "bee", "cow")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = torch.full((8, 8), 60 * shade + number, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


ON_FOLDER = ("--student", MODEL, *NORMAL, "--format", "safetensors", "--input-size", "8", "--json")


def labels_seen(tmp_path, folder, classes, text, *more):
    (tmp_path / "names").write_text(text)
    source = saved(tmp_path / "a.pth", trained(classes))
    out = tmp_path / "out"
    options = (*ON_FOLDER, "--labels", tmp_path / "names", "--out", out, *more)
    done = run("export", source, "--data", folder, *options)
    assert done.exit_code == 0, done.stderr
    golden = read_golden(out / "golden.npz")
    shades = [int(image.mean() * 255) // 60 for image in golden.images]
    return json.loads((out / "labels.json").read_text()), dict(
        zip(shades, golden.labels.tolist(), strict=True)
    )


def test_names_in_another_order_than_the_datas_are_matched(tmp_path, folder):
    names, label_of = labels_seen(tmp_path, folder, 3, '["cow", "ant", "bee"]')
    assert names == ["cow", "ant", "bee"]
    assert label_of == {0: 1, 1: 2, 2: 0}


def test_data_of_some_of_the_classes_is_scored_among_all(tmp_path, folder):
    names, label_of = labels_seen(tmp_path, folder, 5, "dog\ncow\nant\neel\nbee\n")
    assert names == ["dog", "cow", "ant", "eel", "bee"]
    assert label_of == {0: 2, 1: 4, 2: 1}


def test_other_words_for_the_classes_keep_the_datas_order(tmp_path, folder):
    names, label_of = labels_seen(tmp_path, folder, 3, "Ameise\nBiene\nKuh\n")
    assert names == ["Ameise", "Biene", "Kuh"]
    assert label_of == {0: 0, 1: 1, 2: 2}


def test_a_folder_of_images_is_taken_in_the_size_that_is_usual_for_the_network(tmp_path, folder):
    options = [option for option in ON_FOLDER if option not in {"--input-size", "8"}]
    source, out = saved(tmp_path / "a.pth", trained(3)), tmp_path / "out"
    done = run("export", source, "--data", folder, *options, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert kdcompress.load(out)[1].height == 32


def test_nothing_smaller_of_an_earlier_export_stays_beside_another_network(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("student.int8.onnx", "student.fp16.onnx", "bench.json", "notes.txt"):
        (out / name).write_text("of another network")
    done = run("export", checkpoint, *DIGITS, "--format", "safetensors", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {*FILES, "gates.json", "notes.txt"} - {"student.onnx"}


def test_images_without_labels_prove_a_network_of_any_classes(tmp_path, folder):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.glob("*/*.png"):
        path.rename(flat / f"{path.parent.name}{path.name}")
    source = saved(tmp_path / "a.pth", trained(4))
    done = run("export", source, "--data", flat, *ON_FOLDER, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["student"]["top1"] is None
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "quickstart", *NORMAL], "--student FAMILY/NAME: required, since nothing beside a.pth"),
        (["--student", MODEL, *NORMAL], "--data DIR or --recipe NAME|FILE: required, since the files are"),
        (["--student", MODEL, "--set", "seed=1"], "--set: changes a recipe; name one with --recipe"),
        (
            ["--student", MODEL, "--recipe", "quickstart"],
            "--mean and --std: required, since a checkpoint does not say how its images were normalised, and "
            "a wrong guess would spoil the outputs unseen; say what it was trained with, per channel, of "
            "images in [0, 1] (those of this data: --mean 0.305354 --std 0.375635)",
        ),
        (["--student", MODEL, "--recipe", "quickstart", "--mean", "0.3"], "--mean and --std: required"),
        ([*DIGITS, "--mean", "0.3,0.3,0.3"], "--mean: expected one number per channel of the images"),
        ([*DIGITS, "--std", "0.1,x"], "expected numbers such as 0.485,0.456,0.406, got '0.1,x'"),
        ([*DIGITS, "--std", "58.4"], "58.4: is not of images in [0, 1]; divide what is of 0 to 255 by 255"),
        ([*DIGITS, "--std", "0"], "0: is not of images in [0, 1]"),
        ([*DIGITS, "--mean", "nan"], "nan: is not of images in [0, 1]"),
        ([*DIGITS, "--opset", "17"], "opset 17 was asked for, but the exporter can only write 18 and newer"),
        ([*DIGITS, "--opset", "99"], "opset 99 was asked for, but the exporter wrote "),
        ([*DIGITS, "--opset", "19", "--format", "safetensors"], "--opset: belongs to ONNX files"),
        ([*DIGITS, "--format", "onxx"], "--format: unknown format 'onxx'; did you mean 'onnx'?"),
        ([*DIGITS, "--labels", "nowhere"], "--labels nowhere: cannot be read"),
        ([*DIGITS, "--labels", "few"], "--labels: 2 names, but a.pth tells 10 classes apart"),
        ([*DIGITS, "--labels", "mixed"], "--labels: the class '2' of the data is not one of the 10 names"),
        ([*DIGITS, "--labels", "object"], "--labels object: expected a JSON list of names, or a name"),
        ([*DIGITS, "--labels", "gap"], "expected a name for every class, and one is empty"),
        ([*DIGITS, "--at", "ema"], "--at ema: nothing of it stands there"),
        ([*DIGITS, "--out", "run"], "run: is a run, whose files stay as its manifest says they are"),
        ([*DIGITS, "--out", "a.pth"], "a.pth is a file"),
        ([*DIGITS, "--student", "cifar/resnet14"], "missing: layer1.1.conv1.weight"),
        ([*DIGITS, "--student", "torchvision/resnet18"], "nearest is at model:module., where"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_said_before_anything_is_written(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a.pth", trained())
    (tmp_path / "few").write_text("a\nb\n")
    (tmp_path / "mixed").write_text("\n".join("01abcdefgh"))
    (tmp_path / "object").write_text('{"0": "a"}')
    (tmp_path / "gap").write_text("a\n\nb\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    done = run("export", "a.pth", *arguments)
    assert done.exit_code == 2, (done.stdout, done.stderr, done.exception)
    assert done.stdout == ""
    assert message in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_data_of_other_classes_is_refused(tmp_path, folder):
    source = saved(tmp_path / "a.pth", trained(7))
    done = run("export", source, "--data", folder, *ON_FOLDER)
    assert done.exit_code == 2
    assert f"{source}: tells 7 classes apart, the data has 3; take data of its classes" in done.stderr


def test_a_run_is_not_asked_what_it_knows(tmp_path):
    for option, value in (("--student", MODEL), ("--at", "ema"), ("--mean", "0.5"), ("--set", "seed=1")):
        done = run("export", tmp_path, option, value)
        assert done.exit_code == 2
        assert f"{option}: belongs to a checkpoint; a run knows it by itself" in done.stderr


def test_a_network_that_fails_on_its_images_is_named(tmp_path, monkeypatch, folder):
    (tmp_path / "own_flat.py").write_text(
        "from torch import nn\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).state_dict(), "a.pt")
    options = (
        "--student",
        "python:own_flat:build",
        "--allow-code",
        "--data",
        folder,
        "--mean",
        "0.3,0.3,0.3",
    )
    options = (*options, "--std", "0.4,0.4,0.4", "--input-size", "8", "--format", "safetensors")
    done = run("export", "a.pt", *options)
    assert done.exit_code == 2
    assert "python:own_flat:build: fails on images of 3×8×8 (" in done.stderr
