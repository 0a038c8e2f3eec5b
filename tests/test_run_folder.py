"""A run folder belongs to one process and one recipe, and is finished only while its files are as written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.errors import RunFolderError, UserError
from kdcompress.recipe import load_recipe
from kdcompress.run_folder import RunFolder, check_writable, create_folder, same_recipe

FINISHED = Path(__file__).parent / "fixtures" / "e33f4e2" / "finished"


@pytest.fixture
def recipe():
    return load_recipe("quickstart")


@pytest.fixture
def folder(tmp_path, recipe):
    """A run that is finished."""
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.begin(recipe)
        (folder / "student.onnx").write_bytes(b"graph")
        folder.finish({"seed": 0}, ["student.onnx", "recipe.yaml"])
    return folder


def test_a_lock_that_is_a_link_or_a_pipe_is_neither_followed_nor_waited_for(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    link = pytest.raises(RunFolderError, match=r"\.lock: is a link; remove it")
    with link, RunFolder(tmp_path / "run").held():
        pass
    assert (tmp_path / "precious").read_text() == "mine"
    (tmp_path / "run" / ".lock").unlink()
    os.mkfifo(tmp_path / "run" / ".lock")
    with RunFolder(tmp_path / "run").held():
        pass


def test_a_folder_that_is_no_text_is_refused_before_anything_is_written(tmp_path):
    for check in (check_writable, create_folder):
        with pytest.raises(UserError, match="is not UTF-8 text; choose another folder with --out"):
            check(tmp_path / "a\udcff" / "b")
    assert not list(tmp_path.iterdir())


def test_a_new_folder_is_welcome_and_the_check_creates_nothing(tmp_path):
    RunFolder(tmp_path / "a" / "b").check(resume=False, overwrite=False)
    RunFolder(tmp_path / "a" / "b").check(resume=True, overwrite=False)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_welcome(tmp_path):
    RunFolder(tmp_path).check(resume=False, overwrite=False)


def test_an_existing_run_needs_resume_or_overwrite(folder):
    with pytest.raises(RunFolderError, match=r"holds a run already; go on with --resume, or .* --overwrite"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=True, overwrite=False)
    folder.check(resume=False, overwrite=True)


def test_a_single_run_and_the_runs_of_several_seeds_are_not_mixed(folder):
    folder.check(resume=True, overwrite=False, seeds=True)  # killed before the first seed began
    (folder / "log.jsonl").write_text("{}")
    with pytest.raises(RunFolderError, match="holds a single run; choose another folder for --seeds"):
        folder.check(resume=True, overwrite=False, seeds=True)
    (folder / "log.jsonl").unlink()
    (folder / "seeds").mkdir()
    folder.check(resume=True, overwrite=False, seeds=True)
    with pytest.raises(
        RunFolderError, match="holds the runs of several seeds; go on with --resume --seeds N"
    ):
        folder.check(resume=True, overwrite=False)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_of_something_else_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="holds files that are no run of kdcompress"):
        RunFolder(tmp_path).check(resume=False, overwrite=overwrite)


def test_a_file_in_the_way_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "run"):
        with pytest.raises(UserError, match=f"since {file} is a file"):
            RunFolder(path).check(resume=False, overwrite=False)


def test_a_dead_link_in_the_way_is_one_message(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "nowhere" / "deep")
    with pytest.raises(UserError, match="cannot be written to"), RunFolder(tmp_path / "run").held():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot be written to; choose another folder with --out"):
            check_writable(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to; choose another folder with --out"):
        check_writable(tmp_path / "run")


UNUSABLE = {
    "a_file": "recipe.txt/run",
    "too_long": "x" * 300,
    "too_long_in_a_new_folder": "new/" + "x" * 300 + "/run",
    "nul": "a\0b",
    "loop": "loop/run",
}


@pytest.mark.parametrize("name", UNUSABLE.values(), ids=UNUSABLE)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_created(tmp_path, name):
    (tmp_path / "recipe.txt").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())

    def prepare(folder):
        check_writable(folder)
        create_folder(folder)

    with pytest.raises(UserError) as caught:
        prepare(tmp_path / name)
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_where_the_system_makes_none_is_one_message():
    with pytest.raises(UserError, match=r"^/proc/run: cannot be written to \(.*; choose another folder"):
        create_folder(Path("/proc/run"))
    with pytest.raises(UserError, match="cannot be written to"), RunFolder(Path("/proc/run")).held():
        pass


@pytest.mark.parametrize(
    "command",
    [
        ("distill", "--recipe", "quickstart", "--out"),
        ("export", FINISHED, "--out"),
        ("report",),
        ("report", FINISHED, FINISHED, "--out"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("place", [*UNUSABLE.values(), "/proc/run"], ids=[*UNUSABLE, "proc"])
def test_a_command_whose_folder_cannot_be_made_says_so_in_one_message(tmp_path, command, place):
    (tmp_path / "recipe.txt").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    done = CliRunner().invoke(main, [*map(str, command), str(tmp_path / place), "-q"])
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)  # no traceback
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_processes_cannot_hold_it(tmp_path):
    code = f"""
import pathlib
from kdcompress.errors import RunFolderError
from kdcompress.run_folder import RunFolder
try:
    with RunFolder(pathlib.Path({str(tmp_path)!r})).held():
        print("held")
except RunFolderError as error:
    print(error)
"""

    def other():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with RunFolder(tmp_path).held():
        assert "another process is running in it" in other()
    assert other() == "held\n"


def test_clearing_keeps_the_lock_and_nothing_else(folder, tmp_path):
    (folder / "checkpoints" / "x").write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (folder / "link").symlink_to(outside)
    with folder.held():
        folder.clear()
        assert [entry.name for entry in folder.path.iterdir()] == [".lock"]
    assert (outside / "kept").exists()


def test_a_finished_run_says_so_with_its_hashes(folder):
    manifest = folder.finished()
    assert manifest["schema"] == "kdcompress.manifest/1"
    assert manifest["files"]["student.onnx"]["bytes"] == 5
    assert len(manifest["files"]["student.onnx"]["sha256"]) == 64


def test_a_run_without_a_manifest_or_with_a_preliminary_one_is_not_finished(folder):
    folder.finish({}, ["student.onnx"], done=False)
    assert folder.finished() is None
    (folder / "manifest.json").unlink()
    assert folder.finished() is None


def test_a_changed_file_is_named(folder):
    (folder / "student.onnx").write_bytes(b"other")
    with pytest.raises(RunFolderError, match=r"student\.onnx: has changed since the run"):
        folder.finished()


def test_a_missing_file_is_named(folder):
    (folder / "student.onnx").unlink()
    with pytest.raises(RunFolderError, match=r"student\.onnx: is gone since the run"):
        folder.finished()


def test_a_manifest_of_a_newer_version_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": "kdcompress.manifest/2"}))
    with pytest.raises(RunFolderError, match=r"'kdcompress.manifest/2' is newer than this"):
        folder.finished()


@pytest.mark.parametrize("text", ["{", "", "[]"])
def test_a_damaged_manifest_is_one_message(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"manifest\.json: "):
        folder.finished()


def test_the_recorded_recipe_is_the_one_that_was_begun(folder, recipe):
    assert folder.recorded_recipe(allow_code=False) == recipe
    assert RunFolder(folder.path / "nowhere").recorded_recipe(allow_code=False) is None


@pytest.mark.parametrize("kind", ["link", "dead_link", "pipe", "folder"])
@pytest.mark.parametrize(
    "name", ["log.jsonl", "steps.jsonl", "recipe.yaml", "manifest.json", "results.json", "checkpoints/a.pt"]
)
@pytest.mark.parametrize("below", [".", "baseline", "seeds/0"])
def test_what_a_resume_reads_or_appends_to_is_a_file_of_the_folder(folder, tmp_path, below, name, kind):
    path = folder.path / below / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    (tmp_path / "precious").write_text("mine")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "precious" if kind == "link" else tmp_path / "nothing")
    message = (
        f"{path.name}: is {'a link' if 'link' in kind else 'no regular file'}; put the regular file itself"
    )
    with pytest.raises(RunFolderError, match=message):
        folder.check(resume=True, overwrite=False, seeds=below == "seeds/0")
    folder.check(resume=False, overwrite=True)
    with folder.held():
        folder.clear()
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints", "baseline", "seeds", "tensorboard", "failed", "seeds/0", "seeds/0/baseline",
        "seeds/0/baseline/checkpoints", "tensorboard/student",
    ],
)  # fmt: skip
def test_what_a_resume_writes_into_is_a_folder_of_the_run(folder, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    if (folder / name).exists():
        (folder / name).rmdir()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match=rf"{name}: is a link; put the folder itself there, or"):
        folder.check(resume=True, overwrite=False, seeds="seeds/" in name)


def test_a_resume_through_a_link_that_the_user_named_goes_on(folder, tmp_path):
    (tmp_path / "shortcut").symlink_to(folder.path)
    RunFolder(tmp_path / "shortcut").check(resume=True, overwrite=False)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_resume_whose_log_is_no_file_is_one_message(tmp_path, kind):
    run = Path(shutil.copytree(FINISHED, tmp_path / "run"))
    (run / "log.jsonl").unlink()
    (tmp_path / "precious").write_text("mine")
    if kind == "link":
        (run / "log.jsonl").symlink_to(tmp_path / "precious")
    elif kind == "pipe":
        os.mkfifo(run / "log.jsonl")
    else:
        (run / "log.jsonl").mkdir()
    words = ["distill", "--recipe", str(FINISHED / "recipe.yaml"), "--out", str(run), "--resume", "-q"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Error: {run}/log.jsonl: is ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "precious").read_text() == "mine"


def test_another_recipe_is_refused_with_every_difference(tmp_path, recipe):
    other = load_recipe("quickstart", ["optim.lr=0.2", "teacher=null", "method.name=none"])
    same_recipe(recipe, recipe, tmp_path)
    with pytest.raises(RunFolderError) as caught:
        same_recipe(recipe, other, tmp_path)
    text = str(caught.value)
    assert "holds a run of another recipe" in text
    assert "optim.lr: was 0.1, is 0.2" in text
    assert "method.name: was 'kd', is 'none'" in text
