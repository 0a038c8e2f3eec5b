"""Wrong input gives one clear message, exit code 2, and leaves every file and folder as it was."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main
from kdcompress.networks.build import build

FINISHED = Path(__file__).parent / "fixtures" / "e33f4e2" / "finished"
QUICKSTART = ("distill", "--recipe", "quickstart")
FOLDER = ("distill", "--recipe", "resnet101-to-resnet18")
SMALL_FOLDER = """
data: {dataset: imagefolder, image_size: 8}
teacher: {model: cifar/wrn-16-1, weights: teacher.pt, train: never}
student: {model: cifar/resnet8}
method: {name: kd}
train: {epochs: 1, max_steps: 1, threads: 1}
optim: {lr: 0.1}
"""


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """The user's current folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(tmp_path):
    """Runs a command that must be refused, and gives its message."""

    def run(*arguments):
        before = tree(tmp_path)
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2, (done.exit_code, done.stderr, done.exception)
        assert isinstance(done.exception, SystemExit)
        assert done.stdout == ""
        assert done.stderr.count("Error: ") == 1
        assert "Traceback" not in done.stderr
        assert tree(tmp_path) == before, "something was written"
        return done.stderr.split("Error: ", 1)[1].strip()

    return run


def tree(folder):
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


def image(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def image_folder(root, classes="ab", count=6):
    for name in classes:
        for number in range(count):
            image(root / name / f"{number}.png", 16 * number + ord(name) % 16)
    return root


def weights(path, model="cifar/resnet8", classes=10):
    torch.save(build(model, num_classes=classes, channels=1, image_size=(8, 8)).state_dict(), path)
    return path


class Code:
    """A pickle of it makes a folder when it is run."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


# ---- what is typed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil"], "No such command 'distil'"),
        (["distill"], "Missing option '--recipe'. `kdcompress recipes` lists the shipped ones"),
        (["distill", "quickstart"], "Missing option '--recipe'. `kdcompress recipes` lists the shipped ones"),
        (["distill", "--recipe"], "Option '--recipe' requires an argument."),
        (["distill", "--recipe", "quickstrat"], "unknown recipe 'quickstrat'; did you mean 'quickstart'?"),
        (["distill", "--recipe", "recipes/quickstart.yaml"], "did you mean the shipped 'quickstart'?"),
        (["distill", "--recipe", "."], ".: is a folder, no recipe"),
        (["distill", "--recipe", "x" * 5000], "File name too long"),
        ([*QUICKSTART, "--set", "lr=0.1"], "did you mean 'teacher.lr' or 'optim.lr'?"),
        ([*QUICKSTART, "--set", "optim.lr"], "--set optim.lr: expected key.path=value"),
        ([*QUICKSTART, "--set", "optim.lr=fast"], "optim.lr: expected float, got 'fast'"),
        ([*QUICKSTART, "--set", "optim.speed=1"], "optim.speed: unknown key"),
        ([*QUICKSTART, "--set", "student.model=cifar/resnet9"], "did you mean 'resnet8'?"),
        ([*QUICKSTART, "--set", "teacher.model=torchvison/resnet18"], "did you mean 'torchvision'?"),
        ([*QUICKSTART, "--set", "method.name=kdd"], "method.name: unknown method 'kdd'; did you mean 'kd'?"),
        ([*QUICKSTART, "--set", "data.dataset=digts"], "data.dataset: unknown data set 'digts'"),
        ([*QUICKSTART, "--set", "teacher=null"], "teacher: required by the method 'kd'"),
        (["distill", "--recipe", "quickstart-dml", "--set", "peers=[]"], "'dml' needs at least 1"),
        ([*QUICKSTART, "--set", "student.model=python:work:net"], "'python:work:net' runs code of yours"),
        ([*QUICKSTART, "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        ([*QUICKSTART, "--device", "gpu"], "'gpu' is not one of 'auto', 'cpu', 'cuda'"),
        ([*QUICKSTART, "--seeds", "0"], "0 is not in the range"),
        ([*QUICKSTART, "--threads", "100000"], "100000 is not in the range"),
        ([*QUICKSTART, "--data", "images"], "data.root: the digits come with scikit-learn; leave"),
        ([*QUICKSTART, "--set", "train.precision=fp16", "--device", "cpu"], "fp16 needs a CUDA device"),
        ([*QUICKSTART, "--set", "train.class_weights=[1, 2]"], "train.class_weights: expected 10 numbers"),
        ([*QUICKSTART, "--set", "student.taps={stage1: body}"], "taps.stage1: no module 'body'"),
        ([*QUICKSTART, "--set", "teacher.input.mean=[1, 2, 3]"], "teacher.input.mean: expected one value"),
        ([*QUICKSTART, "--set", "data.held_out=5000"], "data.held_out: cannot set 5000 of 1617 images"),
        ([*QUICKSTART, "--set", "student.model=cifar/wrn-23-3"], "the depth must be 10, 16, 22"),
        ([*QUICKSTART, "--set", "method={name: seed, queue: 99, ce_weight: 1}"], "not made of whole batches"),
        (["show", "quickstrat"], "unknown recipe 'quickstrat'"),
        (["show", "quickstart", "--set", "x=1"], "x: unknown key"),
        (["export", "nowhere"], "nowhere: no such run folder"),
        (["export", "."], ".: holds no recipe.yaml, so it is no run of kdcompress"),
        (["export", ".", "--format", "onxx"], "--format: unknown format 'onxx'; did you mean 'onnx'?"),
        (["evaluate", "nowhere.onnx", "--recipe", "quickstart"], "nowhere.onnx: no such file"),
        (["evaluate", ".", "--recipe", "quickstart"], "holds neither student.onnx nor student.safetensors"),
        (["evaluate", "student.onnx"], "student.onnx: no such file or run folder"),
        (["report", "nowhere"], "nowhere: no such run folder"),
        (["report", "."], ".: has no recipe.yaml"),
    ],
    ids=lambda value: " ".join(value)[-50:] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_typed_wrong_is_named(refused, arguments, message):
    assert message in refused(*arguments)


def test_cuda_where_there_is_none_is_no_silent_fallback(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(*QUICKSTART, "--device", "cuda").startswith("--device cuda: torch sees no CUDA device")


# ---- recipe files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nb: [*a, *a]", "aliases (*name) are not allowed"),
        ("seed: !!python/object/apply:os.mkdir [marker]", "tags (tag:yaml.org,2002:python/"),
        ("just a sentence", "a recipe is a mapping of sections"),
        ("student: {model: cifar/resnet8}", "method: required"),
    ],
)
def test_a_bad_recipe_file_is_named(refused, text, message):
    Path("mine.yaml").write_text(text)
    said = refused("distill", "--recipe", "mine.yaml")
    assert said.startswith("mine.yaml: ")
    assert message in said
    assert not Path("marker").exists()


# ---- data folders


def empty(root):
    root.mkdir()


def one_class(root):
    image_folder(root, "a")


def broken(root):
    for name in "ab":
        image(root / name / "1.png")
        (root / name / "1.png").write_bytes(b"no image")


def archive(root):
    with zipfile.ZipFile(root, "w") as file:
        file.writestr("a/1.png", b"")


def flat(root):
    for number in range(20):
        image(root / f"{number}.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such folder"),
        (empty, "the folder is empty; a folder per class is expected"),
        (one_class, "only one class ('a')"),
        (broken, "no image can be read"),
        (archive, "is a file, not a folder; unpack it"),
        (flat, "no training image has a label, and the method kd needs them as it is set; sort the"),
    ],
    ids=["missing", "empty", "one class", "broken", "file", "flat"],
)
def test_a_data_folder_that_cannot_be_used_is_named(refused, work, make, message):
    make(work / "images")
    said = refused(*FOLDER, "--data", "images")
    assert str(work / "images") in said
    assert message in said


def test_an_image_folder_without_a_place_says_how_to_give_one(refused):
    assert "pass it with --data DIR" in refused(*FOLDER)


# ---- weights


def test_a_teacher_of_other_classes_that_must_not_be_trained_is_refused(refused, work):
    image_folder(work / "images")
    weights(work / "teacher.pt", "cifar/wrn-16-1", classes=7)
    Path("mine.yaml").write_text(SMALL_FOLDER)
    said = refused("distill", "--recipe", "mine.yaml", "--data", "images")
    assert said.startswith(
        "teacher.weights: teacher.pt knows 7 classes, the data has 2; take teacher.train: auto"
    )


def test_a_teacher_without_weights_that_must_not_be_trained_is_refused(refused):
    assert "teacher.weights: required with teacher.train: never" in refused(
        *QUICKSTART, "--set", "teacher.train=never"
    )


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("kind", ["wrapped.pt", "plain.pth", "zipped.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_run(refused, tmp_path, who, kind):
    code = Code(tmp_path / "marker")
    if kind == "wrapped.pt":
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "args": code}, kind)
    elif kind == "zipped.pt":
        torch.save(code, kind)
    else:
        Path(kind).write_bytes(pickle.dumps(code))
    assert refused(*QUICKSTART, "--set", f"{who}.weights={kind}").startswith(f"{kind}: ")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(refused, work, who, kept):
    whole = weights(work / "whole.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    assert refused(*QUICKSTART, "--set", f"{who}.weights=cut.pt").startswith("cut.pt: is ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.pt", "no weights file 'nowhere.pt'"),
        ("notes.txt", "notes.txt: unknown kind of file"),
        ("IMAGENET1K_V2", "no published weights 'IMAGENET1K_V2'"),
        ("folder", "folder: is no finished run folder"),
        ("other.pt", "other.pt: these weights are not of this network"),
    ],
)
def test_weights_that_do_not_fit_are_named(refused, work, spec, message):
    Path("notes.txt").write_text("x")
    Path("folder").mkdir()
    weights(work / "other.pt", "cifar/wrn-16-1")
    assert message in refused(*QUICKSTART, "--set", f"student.weights={spec}")


# ---- where to write


def test_a_file_in_the_way_of_the_run_folder_is_named(refused):
    Path("taken").write_text("x")
    assert "taken is a file" in refused(*QUICKSTART, "--out", "taken")
    assert "taken is a file" in refused(*QUICKSTART, "--out", "taken/run")


def test_a_folder_of_other_files_is_not_overwritten(refused):
    Path("thesis").mkdir()
    Path("thesis/thesis.tex").write_text("x")
    assert "holds files that are no run of kdcompress" in refused(
        *QUICKSTART, "--out", "thesis", "--overwrite"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_is_named(refused):
    Path("locked").mkdir(mode=0o500)
    try:
        assert "locked/run: cannot be written to" in refused(*QUICKSTART, "--out", "locked/run")
    finally:
        Path("locked").chmod(0o700)


def test_not_even_the_home_folder_is_written_to(tmp_path):
    # onnxruntime would, at its import.
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    before = tree(tmp_path)
    command = [sys.executable, "-m", "kdcompress", *QUICKSTART, "--set", "student.weights=nowhere.pt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: no weights file 'nowhere.pt'\n"
    assert tree(tmp_path) == before


# ---- files to evaluate


@pytest.mark.parametrize("command", [["export"], ["evaluate", "--recipe", "quickstart"]])
def test_a_folder_of_several_seeds_says_to_name_one(refused, command):
    Path("many/seeds/0").mkdir(parents=True)
    assert "many: holds the runs of several seeds; name one, such as many/seeds/0" in refused(
        *command, "many"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "expected a run folder, a .onnx or a .safetensors file"),
        ("notes.onnx", "notes.onnx: is not a whole ONNX file"),
        ("notes.safetensors", "config.json: cannot be read"),
    ],
)
def test_a_file_that_is_no_network_is_named(refused, name, message):
    Path(name).write_text("hello")
    assert message in refused("evaluate", name, "--recipe", "quickstart")


NOBODY = "~nosuchuser/place"
NO_HOME = f"{NOBODY}: '~nosuchuser' is no home folder here; write the whole path"


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("data.root", (*FOLDER, "--data", NOBODY)),
        ("data.root", (*FOLDER, "--data", NOBODY, "--out", ".")),
        ("data.root", (*QUICKSTART, "--set", f"data.root={NOBODY}", "--set", "data.dataset=fashion-mnist")),
        ("data.root", (*QUICKSTART, "--set", f"data.root={NOBODY}", "--set", "data.dataset=cifar10")),
        ("data.root", ("plan", "resnet101-to-resnet18", "--data", NOBODY)),
        ("data.extra.root", (*QUICKSTART, "--set", f"data.extra.root={NOBODY}")),
        ("weights", (*QUICKSTART, "--set", f"student.weights={NOBODY}.pt")),
        ("weights", (*QUICKSTART, "--set", f"teacher.weights={NOBODY}.pt")),
        ("teacher.cache.folder", (*QUICKSTART, "--set", f"teacher.cache.folder={NOBODY}")),
    ],
)
def test_a_home_folder_of_nobody_is_named_with_its_key(refused, key, arguments):
    said = refused(*arguments)
    assert f"{key}: {NOBODY}" in said
    assert "'~nosuchuser' is no home folder here; write the whole path" in said


def test_a_cache_folder_of_nobody_is_named(refused, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", NOBODY)
    assert f"KDCOMPRESS_CACHE: {NO_HOME}" in refused(*FOLDER, "--set", "data.dataset=cifar10")


MANY = ("wrn-10-" + "9" * 20, "wrn-" + "9" * 5000 + "-1", "wrn-1210-1", "wrn-10-65")


@pytest.mark.parametrize("name", MANY, ids=range(len(MANY)))
def test_a_network_of_too_many_layers_or_channels_is_refused(refused, name):
    said = refused(*QUICKSTART, "--set", f"student.model=cifar/{name}")
    assert "the depth must be 10, 16, 22, … (6n + 4, at most 1204) and the width 1 to 64" in said
    assert len(said) < 1000


def test_a_builder_of_too_many_channels_in_a_config_is_refused(refused, work):
    shutil.copy(FINISHED / "student.safetensors", work)
    config = json.loads((FINISHED / "config.json").read_text())
    config["kdcompress"]["builder"] = "cifar/wrn-10-" + "9" * 20
    (work / "config.json").write_text(json.dumps(config))
    said = refused("evaluate", "student.safetensors", "--recipe", "quickstart")
    assert "the width 1 to 64" in said


def test_a_candidate_of_too_many_channels_is_refused(refused):
    said = refused("suggest", "--budget", "5ms", "--students", "cifar/wrn-10-" + "9" * 20)
    assert "the width 1 to 64" in said


def test_a_network_that_is_too_large_in_all_is_refused(refused):
    said = refused(*QUICKSTART, "--set", "student.model=cifar/wrn-1204-64")
    assert "the depth times the width squared must be at most 40,000" in said
