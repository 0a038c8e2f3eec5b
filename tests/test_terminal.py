"""Text of a stranger (paths, names, options) reaches the terminal without its control characters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.commands.summary import print_summary
from kdcompress.errors import UserError
from kdcompress.recipe import load_recipe

FINISHED = Path(__file__).parent / "fixtures" / "e33f4e2" / "finished"
NASTY = "\x1b[2J\x07\u202e"


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_clean(done, code):
    assert done.exit_code == code, (done.exception, done.output)
    assert not {"\x1b", "\x07", "\u202e"} & set(done.output)


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(FINISHED, tmp_path / f"run{NASTY}"))


def test_a_path_in_a_result_is_printed_with_escapes(run, tmp_path):
    assert_clean(kdcompress("report", run), 0)
    other = shutil.copytree(FINISHED, tmp_path / f"other{NASTY}")
    done = kdcompress("report", run, other, "--out", tmp_path / f"page{NASTY}.html")
    assert_clean(done, 0)
    assert "page\\x1b[2J\\x07\\u202e.html" in done.stdout


def test_a_name_in_a_checkpoint_is_printed_with_escapes(tmp_path):
    state = safetensors.torch.load_file(FINISHED / "student.safetensors")
    torch.save({f"aux{NASTY}.weight": torch.zeros(2, 2), **state}, tmp_path / "a.pth")
    student = ("--student", "cifar/resnet8", "--out", tmp_path / "out.safetensors")
    done = kdcompress("strip", tmp_path / "a.pth", *student)
    assert_clean(done, 0)
    assert "dropped: aux\\x1b" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [f"distil{NASTY}"], [f"--{NASTY}"], ["distill", f"--{NASTY}"],
        ["distill", "--recipe", "quickstart", "--device", NASTY], ["show", f"quick{NASTY}"],
    ],
    ids=["command", "group option", "option", "value", "recipe"],
)  # fmt: skip
def test_what_is_typed_wrong_is_quoted_with_escapes(arguments):
    assert_clean(kdcompress(*arguments), 2)


def test_show_gives_yaml_that_reads_back_and_has_no_direction_marks(tmp_path):
    root = f"a{NASTY}b: c"
    quoted = root.replace("\x1b", "\\e").replace("\x07", "\\a")
    done = kdcompress("show", "quickstart", "--set", f'data.root="{quoted}"')
    assert_clean(done, 0)
    (tmp_path / "shown.yaml").write_text(done.stdout)
    assert load_recipe(str(tmp_path / "shown.yaml")).data.root == root


def test_a_class_that_looks_like_markup_is_printed_as_it_is(tmp_path, capsys):
    folder = shutil.copytree(FINISHED, tmp_path / "[/bold]")
    results = {"schema": "kdcompress.results/1", "gain": None, "baseline": None, "teacher": None}
    results["student"] = {"top1": 0.5, "params": 1, "macs": 1, "file": "[/red]"}
    print_summary(results, Path(folder))
    printed = capsys.readouterr().out
    assert "[/red]" in printed
    assert "[/bold]/" in printed


def test_a_message_has_no_endless_line(monkeypatch):
    def fail(*args):
        raise UserError("x" * 100_000 + "\nadvice")

    monkeypatch.setattr(pipeline, "distill", fail)
    done = kdcompress("distill", "--recipe", "quickstart")
    assert done.exit_code == 2
    assert len(done.stderr) < 3000
    assert done.stderr.endswith("\nadvice\n")
