"""The commands as scripts use them: their output, their exit codes, and what a run leaves behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompress import __version__, atomic, pipeline
from kdcompress.cli import main
from kdcompress.errors import RunFolderError, WorldError
from kdcompress.networks import from_recipe, weights
from kdcompress.probe.knowledge import Search
from kdcompress.progress import Progress
from kdcompress.recipe import NetworkSection, load_recipe
from kdcompress.run_folder import RunFolder
from kdcompress.tools import probe as probing
from kdcompress.tools import report as report_tool
from kdcompress.train import checkpoint

TINY = (
    "distill", "--recipe", "quickstart", "--set", "train.max_steps=2", "--set", "bench.rounds=1",
    "--set", "teacher.min_top1=0",
)  # fmt: skip
COMMANDS = sorted(main.commands)


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """What a whole, tiny run printed, and its folder; never changed by a test."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        done = kdcompress(*TINY, "--out", folder / "run", "--json")
    return done, folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished[1], tmp_path / "run")


# ---- help and version


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself_and_its_common_options(command, flag):
    done = kdcompress(command, flag)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"Usage: main {command}" in done.stdout
    assert "--json" in done.stdout
    assert "-q, --quiet" in done.stdout
    assert len(main.commands[command].help) > 10


def test_every_option_explains_itself():
    for name, command in main.commands.items():
        for option in command.params:
            if option.param_type_name == "option":
                assert option.help or option.name in {"device", "formats", "split"}, (name, option.name)


def test_the_group_lists_its_commands():
    done = kdcompress("--help")
    assert done.exit_code == 0
    assert all(f"  {command} " in done.stdout for command in COMMANDS)
    assert "..." not in done.stdout.partition("Commands:")[2]  # each line is whole


def test_the_version_is_told():
    assert kdcompress("--version").stdout == f"kdcompress, version {__version__}\n"


# ---- exit codes


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was saved yet, run it again"),
        (MemoryError(), 5, "out of memory; lower data.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory"), 5, "out of memory; lower data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 5, "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "out of memory; lower data.batch_size"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 5, "out of memory (lib"),
        (
            ImportError("our page\n\nOriginal error was: a.so: failed to map segment from shared object\n"),
            5, "out of memory (Original error was: a.so: failed to map segment from shared object); the proc",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "the disk is full (No space left on device)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), 5, "a/b: the disk is full (Disk quota"),
        (OSError(errno.EFBIG, "File too large", "a/b"), 5, "a/b: the disk is full (File too"),
        (OSError(errno.EIO, "Input/output error", "a/b"), 5, "a/b: Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: Permission denied; "),
        (WorldError("a worker was lost"), 5, "a worker was lost"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_what_goes_wrong_in_a_run_is_one_message_and_an_exit_code(monkeypatch, error, code, message):
    def fail(*args):
        raise error

    monkeypatch.setattr(pipeline, "distill", fail)
    done = kdcompress("distill", "--recipe", "quickstart")
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_command_without_resume_does_not_advise_it(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_tool, "report", interrupt)
    done = kdcompress("report", "runs/x")
    assert done.exit_code == 130
    assert done.stderr == "Error: interrupted; nothing was finished\n"


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(pipeline, "distill", fail)
    done = kdcompress("distill", "--recipe", "quickstart")
    assert done.exit_code == 1
    assert isinstance(done.exception, RuntimeError)


def test_sigterm_is_an_interruption_and_its_handler_is_given_back(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pipeline, "distill", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    assert kdcompress("distill", "--recipe", "quickstart").exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_is_recorded_as_it_can_be_typed_again(monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "distill", lambda request, progress: asked.append(request))
    monkeypatch.setattr("sys.argv", ["kdcompress", "distill", "--set", "teacher.input={mean: [0.5]}"])
    assert kdcompress("distill", "--recipe", "quickstart").exit_code == 0
    assert asked[0].command == "kdcompress distill --set 'teacher.input={mean: [0.5]}'"


# ---- show


def test_show_prints_yaml_that_repeats_the_recipe(tmp_path):
    overrides = ["--set", "optim.lr=1e-5", "--set", "student.model=cifar/wrn-22-3"]
    done = kdcompress("show", "quickstart", *overrides)
    (tmp_path / "shown.yaml").write_text(done.stdout)
    assert done.stderr == ""
    assert load_recipe(str(tmp_path / "shown.yaml")) == load_recipe("quickstart", overrides[1::2])


def test_show_json_is_the_same_document():
    document = json.loads(kdcompress("show", "quickstart", "--json").stdout)
    assert document.pop("schema") == "kdcompress.recipe/1"
    assert document.pop("sources")["optim.lr"] == "recipe"
    assert document == load_recipe("quickstart").model_dump(mode="json")


# ---- a whole run


def test_json_leaves_stdout_with_one_document(finished):
    done, folder = finished
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"].startswith("kdcompress.results/")
    assert document["folder"] == str(folder)
    assert document["student"]["file"] == "student.onnx"
    lines = done.stderr.splitlines()
    assert sum(line.endswith("log.jsonl") for line in lines) == 1
    for begin in (
        "teacher: epoch 1 of 30; ",
        "student: epoch 1 of 60; ",
        "Exporting and proving",
        "bench: timing",
    ):
        assert any(line.startswith(begin) for line in lines), begin


def test_a_run_leaves_what_the_contract_names(finished):
    _, folder = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "recipe.yaml", "manifest.json", "log.jsonl", "checkpoints", "student.safetensors", "config.json",
        "labels.json", "student.onnx", "golden.npz", "gates.json", "bench.json", "results.json",
        "report.html", "README.md",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp") or name == ".staging"]


def test_the_recorded_recipe_repeats_the_run(finished):
    recorded = load_recipe(str(finished[1] / "recipe.yaml"))
    assert recorded.name == "quickstart"
    assert recorded.train.max_steps == 2
    assert recorded.train.threads == 1


def test_an_existing_run_is_refused(run):
    before = sorted(run.rglob("*"))
    done = kdcompress(*TINY, "--out", run)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds a run already; go on with --resume, or replace it with --overwrite" in done.stderr
    assert sorted(run.rglob("*")) == before


def test_resume_of_a_finished_run_checks_its_hashes_and_changes_nothing(run, finished):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    done = kdcompress(*TINY, "--out", run, "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["student"] == json.loads(finished[0].stdout)["student"]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"} == before


def test_resume_of_a_run_with_a_changed_file_is_an_error(run):
    with (run / "student.onnx").open("ab") as file:
        file.write(b"x")
    done = kdcompress(*TINY, "--out", run, "--resume")
    assert done.exit_code == 2
    assert "student.onnx: has changed since the run; start again with --overwrite" in done.stderr


def test_resume_of_another_recipe_is_refused_with_what_differs(run):
    done = kdcompress(*TINY, "--set", "optim.lr=0.2", "--out", run, "--resume")
    assert done.exit_code == 2
    assert "holds a run of another recipe" in done.stderr
    assert "optim.lr: was 0.1, is 0.2" in done.stderr


def test_a_run_that_another_process_holds_is_refused(run):
    with RunFolder(run).held():
        done = kdcompress(*TINY, "--out", run, "--resume")
    assert done.exit_code == 2
    assert "another process is running in it" in done.stderr


def test_a_person_sees_the_results_and_where_the_files_are(run):
    done = kdcompress(*TINY, "--out", run, "--resume")
    assert "student" in done.stdout
    assert "gates passed" in done.stdout
    assert "report.html" in done.stdout


# ---- afterwards


@pytest.mark.parametrize("name", ["student.onnx", "student.safetensors", "."])
def test_evaluate_gives_the_figures_of_the_run(finished, name):
    done = kdcompress("evaluate", finished[1] / name, "--recipe", finished[1] / "recipe.yaml", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) >= {"schema", "file", "split", "n", "top1", "balanced_top1", "loss", "per_class"}
    told = json.loads((finished[1] / "results.json").read_text())["student"]
    assert (document["split"], document["n"]) == ("test", told["n"])
    assert document["top1"] == told["top1"]


def test_evaluate_without_json_is_one_line(finished):
    done = kdcompress("evaluate", finished[1], "--recipe", "quickstart", "--split", "held_out")
    assert done.exit_code == 0, done.stderr
    assert "top-1" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probe_scores_frozen_features(finished, kind):
    done = kdcompress("evaluate", finished[1], "--recipe", "quickstart", "--probe", kind, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["probe"]) == ("kdcompress.evaluation/1", kind)
    assert document["file"] == str(finished[1] / "student.safetensors")
    assert (document["features"], document["loss"], document["split"]) == (64, None, "test")
    told = json.loads((finished[1] / "manifest.json").read_text())["data"]["counts"]
    assert (document["n"], document["labelled"]) == (told["test"], told["train"])
    # The network has taken two steps; even so its features tell the digits apart better than it does.
    assert document["top1"] > json.loads((finished[1] / "results.json").read_text())["student"]["top1"]
    assert len(document["per_class"]) == 10
    if kind == "knn":
        assert document["k"] == 20
    else:
        assert document["C"] in {0.01, 0.1, 1.0, 10.0}
        assert document["chosen_on"] == "held_out"


def test_a_probe_without_json_is_one_line_that_says_how(finished):
    done = kdcompress("evaluate", finished[1], "--recipe", "quickstart", "--probe", "knn")
    assert done.exit_code == 0, done.stderr
    assert "knn probe (k = 20): top-1 " in done.stdout
    assert done.stdout.endswith("; 64 features of 1,437 labelled training images\n")
    done = kdcompress(
        "evaluate", finished[1], "--recipe", "quickstart", "--probe", "linear", "--split", "held_out"
    )
    assert "linear probe (C = 1): top-1 " in done.stdout  # what is scored on has not chosen
    assert "of held_out" in done.stdout


def test_a_probe_learns_from_the_images_whose_labels_may_be_seen(finished):
    options = ["--recipe", "quickstart", "--probe", "knn", "--json"]
    few = json.loads(kdcompress("evaluate", finished[1], *options, "--set", "data.labels=15").stdout)
    assert (few["labelled"], few["k"]) == (15, 15)
    done = kdcompress("evaluate", finished[1], *options, "--set", "data.labels=none")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--probe: no training image has a label to learn from; set data.labels" in done.stderr


def test_clusters_of_the_features_are_compared_with_the_classes_and_with_clusters_of_the_pixels(finished):
    options = ["evaluate", finished[1], "--recipe", "quickstart", "--probe", "clusters"]
    done = kdcompress(*options, "--json", "--set", "data.labels=none")  # no training label is read
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    told = json.loads((finished[1] / "manifest.json").read_text())["data"]["counts"]
    assert (document["schema"], document["probe"]) == ("kdcompress.evaluation/1", "clusters")
    assert (document["n"], document["clusters"], document["features"]) == (told["test"], 10, 64)
    for figures in (document, document["pixels"]):
        # Digits are far from chance, which is about 0.1, even as pixels.
        assert 0.3 < figures["nmi"] < 1
        assert 0.2 < figures["ari"] < 1
        assert 0.4 < figures["accuracy"] <= figures["purity"] < 1
    assert document["nmi"] != document["pixels"]["nmi"]
    assert json.loads(kdcompress(*options, "--json").stdout) == document
    line = kdcompress(*options).stdout
    assert f": 10 clusters of 64 features: NMI {document['nmi']:.3f}, ARI" in line
    assert f"; of the pixels: NMI {document['pixels']['nmi']:.3f}, ARI" in line
    assert line.endswith(f"; {told['test']} images of test\n")


def test_a_probe_of_a_graph_of_logits_names_the_file_to_take(finished):
    done = kdcompress("evaluate", finished[1] / "student.onnx", "--recipe", "quickstart", "--probe", "linear")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "gives logits, and a probe reads features; name the student.safetensors" in done.stderr


@pytest.fixture(scope="session")
def looked_into(finished, tmp_path_factory):
    """A finished run with a baseline that is its student, and what `--knowledge` said of it."""
    run = shutil.copytree(finished[1], tmp_path_factory.mktemp("looked_into") / "run")
    (run / "baseline").mkdir()
    for name in ("student.safetensors", "config.json"):
        shutil.copy(run / name, run / "baseline" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "Search", lambda: Search(steps=20))  # as many as show where it goes
        done = kdcompress(
            "evaluate", run, "--recipe", run / "recipe.yaml", "--knowledge", "--images", "3", "--json"
        )
    return done, run


def test_knowledge_compares_the_networks_of_a_run(looked_into):
    done, run = looked_into
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "kdcompress.knowledge/1"
    assert (document["images"], document["lambda"], document["view"]) == (3, 0.1, "shifted by 1")
    networks = document["networks"]
    assert list(networks) == ["teacher", "student", "baseline"]
    assert networks["teacher"]["model"] == "cifar/wrn-16-2"
    assert networks["student"] == networks["baseline"]
    assert networks["student"]["entropy"] != networks["teacher"]["entropy"]
    for figures in networks.values():
        assert 0 < figures["distortion"] < 0.2
        assert 0 <= figures["concepts"] <= 1
        assert 0 <= figures["iou"] <= 1
        assert figures["entropy"] < 1.42
    with Image.open(run / "knowledge.png") as page:
        assert page.format == "PNG"
        assert page.width > 4 * 112
    assert RunFolder(run).finished() is not None  # its own files are as they were


def test_knowledge_without_json_is_a_table_and_the_picture(looked_into, monkeypatch):
    told, run = json.loads(looked_into[0].stdout), looked_into[1]
    told["networks"]["baseline"] |= {"sd": None, "iou": None}  # of one image; of none with a concept
    monkeypatch.setattr(probing, "knowledge", lambda *args, **options: told)
    lines = kdcompress("evaluate", run, "--recipe", "quickstart", "--knowledge").stdout.splitlines()
    assert lines[0].split()[:4] == ["entropy", "nats", "distortion", "concepts"]
    assert [line.split()[0] for line in lines[1:4]] == ["teacher", "student", "baseline"]
    assert [line.split()[-1] for line in lines[1:4]] == ["cifar/wrn-16-2", "cifar/resnet8", "cifar/resnet8"]
    assert f"{told['networks']['student']['entropy']:.2f} ± " in lines[2]
    assert "±" not in lines[3]
    assert lines[4] == f"3 images of test; second view: shifted by 1. Maps: {run / 'knowledge.png'}"


def test_knowledge_wants_a_run_whose_networks_are_there(run, tmp_path):
    options = ["--recipe", "quickstart", "--knowledge"]
    done = kdcompress("evaluate", run / "student.safetensors", *options)
    assert done.exit_code == 2
    assert "is a file; --knowledge compares the networks of a run" in done.stderr
    done = kdcompress("evaluate", tmp_path / "none", *options)
    assert done.exit_code == 2
    assert "no such file or run folder" in done.stderr
    (run / "checkpoints" / "teacher.safetensors").unlink()
    done = kdcompress("evaluate", run, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "teacher.safetensors: is gone, and with it the teacher, which was trained" in done.stderr
    (run / "student.safetensors").unlink()
    done = kdcompress("evaluate", run, *options)
    assert done.exit_code == 2
    assert "so it is no finished run" in done.stderr
    assert not (run / "knowledge.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probe", "knn", "--knowledge"], "--probe and --knowledge exclude each other"),
        (["--images", "3"], "--images: belongs to --knowledge"),
        (["--probe", "knn", "--images", "3"], "--images: belongs to --knowledge"),
        (["--knowledge", "--images", "0"], "0 is not in the range x>=1"),
        (["--probe", "tree"], "'tree' is not one of 'linear', 'knn', 'clusters'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_ways_of_evaluating_that_do_not_go_together_are_refused(options, message):
    done = kdcompress("evaluate", "anything", "--recipe", "quickstart", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_evaluate_on_data_of_other_classes_is_refused(finished, tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (8, 8), 20 * number).save(tmp_path / "images" / name / f"{number}.png")
    options = ["--recipe", "quickstart", "--set", "data.dataset=imagefolder", "--data", tmp_path / "images"]
    done = kdcompress("evaluate", finished[1], *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "student.onnx: tells 10 classes apart, the data has 2" in done.stderr


def test_evaluate_on_a_split_that_is_not_held_out_is_refused(finished):
    options = ["--recipe", "quickstart", "--set", "data.held_out=0", "--split", "held_out"]
    done = kdcompress("evaluate", finished[1], *options)
    assert done.exit_code == 2
    assert "--split held_out: the recipe holds nothing out" in done.stderr


def test_export_writes_the_same_network_again(finished, tmp_path):
    done = kdcompress("export", finished[1], "--out", tmp_path / "again", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document["files"]) == {
        "student.onnx", "student.safetensors", "config.json", "labels.json", "golden.npz",
    }  # fmt: skip
    for name in document["files"]:
        assert (tmp_path / "again" / name).read_bytes() == (finished[1] / name).read_bytes(), name


def test_export_into_the_run_itself_or_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("x")
    done = kdcompress("export", run, "--out", run)
    assert done.exit_code == 2
    assert "is the run itself" in done.stderr
    done = kdcompress("export", run, "--out", tmp_path / "file")
    assert done.exit_code == 2
    assert "file is a file" in done.stderr


def test_export_into_another_run_is_refused(run, finished, tmp_path):
    other = shutil.copytree(finished[1], tmp_path / "other")
    before = {path: path.read_bytes() for path in other.iterdir() if path.is_file()}
    done = kdcompress("export", run, "--out", other)
    assert done.exit_code == 2
    assert f"{other}: is a run, whose files stay as its manifest says they are" in done.stderr
    assert {path: path.read_bytes() for path in other.iterdir() if path.is_file()} == before


def test_export_to_a_folder_that_cannot_be_made_is_one_sentence(run, tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def on_a_full_disk(path, *arguments, **options):
        if path.name == "again":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", on_a_full_disk)
    done = kdcompress("export", run, "--out", tmp_path / "again")
    assert done.exit_code == 5
    assert "disk is full: cannot write" in done.stderr


def test_export_of_an_unfinished_run_says_how_to_finish_it(run):
    (run / "student.safetensors").unlink()
    done = kdcompress("export", run)
    assert done.exit_code == 2
    assert "holds no student.safetensors; finish the run with --resume first" in done.stderr
    assert not (run / "export").exists()


def test_report_writes_the_pages_again(run):
    (run / "report.html").unlink()
    done = kdcompress("report", run, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["files"] == ["report.html", "README.md"]
    assert (run / "report.html").exists()


def test_a_report_that_looks_otherwise_than_before_leaves_the_run_finished(run):
    (run / "README.md").write_text("# by an older version\n")
    manifest = json.loads((run / "manifest.json").read_text())
    assert kdcompress("report", run).exit_code == 0
    assert RunFolder(run).finished() is not None
    assert json.loads((run / "manifest.json").read_text())["files"].keys() == manifest["files"].keys()


def test_a_measurement_on_another_device_takes_the_place_of_the_runs_own(run):
    bench = json.loads((run / "bench.json").read_text())
    bench["env"]["cpu"] = "Cortex of another device"
    (run / "bench.json").write_text(json.dumps(bench))
    with pytest.raises(RunFolderError, match="has changed since the run"):
        RunFolder(run).finished()
    assert kdcompress("report", run).exit_code == 0
    assert RunFolder(run).finished() is not None
    assert "Cortex of another device" in (run / "report.html").read_text()


# ---- when the world fails


def test_a_full_disk_in_mid_run_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    # Every write is fsynced before it gets its name; the sixth finds the disk full. A checkpoint is due after
    # each step.
    written = []
    sync = atomic.sync_file

    def full(path):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        sync(path)

    monkeypatch.setattr(atomic, "sync_file", full)
    run = tmp_path / "run"
    done = kdcompress(
        "distill", "--recipe", "quickstart", "--set", "train.checkpoint_minutes=1e-9", "--out", run
    )
    assert (done.exit_code, done.stdout) == (5, "")
    assert "Error: disk is full: cannot write" in done.stderr
    assert "--resume" in done.stderr
    # recipe.yaml, then a checkpoint for each of four steps.
    assert checkpoint.load(run / "checkpoints" / "teacher.pt").state["position"]["step"] == 4
    assert not list(run.rglob("*.tmp"))
    assert not (run / "student.onnx").exists()


@pytest.mark.parametrize(("quiet", "seen"), [(False, True), (True, False)])
def test_a_terminal_has_bars_on_stderr_unless_they_are_refused(monkeypatch, capsys, quiet, seen):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(quiet)
    with progress.bar("training", 2) as bar:
        bar.advance(1, "epoch 1")
        bar.advance()
    with progress.counter() as tell:
        tell("download", 1, 0)
        tell("download", 2, 2)
    progress.warn("a class is tiny")
    out, err = capsys.readouterr()
    assert out == ""
    assert ("training" in err) is ("download" in err) is seen
    assert "Warning: a class is tiny\n" in err


@pytest.mark.parametrize("watched", [True, False])
def test_a_download_of_weights_is_shown_when_a_person_watches(monkeypatch, watched):
    asked = []

    def resolve(spec, model, *, progress=False):
        asked.append(progress)
        network = from_recipe.build(model, num_classes=10, channels=1, image_size=(8, 8))
        return weights.ResolvedWeights(network.state_dict(), "0" * 64, spec)

    monkeypatch.setattr(weights, "resolve", resolve)
    from_recipe.load_network(
        NetworkSection(model="cifar/resnet8", weights="SOME"), num_classes=10, channels=1, image_size=(8, 8),
        seed=0, purpose="student", allow_code=False, progress=watched,
    )  # fmt: skip
    assert asked == [watched]
