"""Names that other trainers use, completion, problems together, and Ctrl-C before anything is saved."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.commands import hints
from kdcompress.problems import keys
from kdcompress.recipe import Recipe
from kdcompress.run import opening

COMPLETE = "from kdcompress.cli import main; main(prog_name='kdcompress')"
ROOT = Path(__file__).parent.parent


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("arguments", "hint"), [
    (("distill", "--recipe", "x", "--epochs", "3"), "'--epochs'. Did you mean '--set train.epochs=3'?"),
    (("distill", "--lr=0.1"), "'--lr'. Did you mean '--set optim.lr=0.1'?"),
    (("distill", "--batch-size", "-q"), "Did you mean '--set data.batch_size=VALUE'?"),
    (("distill", "--seed", "1"), "Did you mean '--set seed=1'?"),
    (("distill", "--model", "cifar/resnet8"), "Did you mean '--set student.model=cifar/resnet8'?"),
    (("distill", "--output-dir", "x"), "Did you mean '--out x'?"),
    (("show", "quickstart", "--lr", "1"), "Did you mean '--set optim.lr=1'?"),
    (("train", "--recipe", "quickstart"), "No such command 'train'. Did you mean 'distill'?"),
    (("eval", "x.onnx"), "No such command 'eval'. Did you mean 'evaluate'?"),
])  # fmt: skip
def test_words_of_other_trainers_are_answered_with_ours(arguments, hint):
    done = kdcompress(*arguments)
    assert done.exit_code == 2
    assert hint in " ".join(done.stderr.split())


def test_an_option_that_nobody_knows_keeps_clicks_message():
    assert "No such option '--lr'" in kdcompress("students", "--lr", "1").stderr
    assert "--set" not in kdcompress("students", "--lr", "1").stderr


def test_every_hint_names_a_key_or_a_command_that_exists():
    known = {*keys(Recipe), "method.temperature"}
    assert set(hints._KEYS.values()) <= known
    assert set(hints.OTHER_COMMANDS.values()) <= set(main.commands)
    assert not set(hints.OTHER_COMMANDS) & set(main.commands)


@pytest.mark.parametrize(("line", "expected"), [
    ("kdcompress distill --recipe quick", ["quickstart"]),
    ("kdcompress distill --method kdc", ["kdcl"]),
    ("kdcompress methods byo", ["byot"]),
    ("kdcompress show resnet34", ["resnet34-to-resnet18"]),
    ("kdcompress distill --set optim.mile", ["optim.milestones="]),
    ("kdcompress distill --set student.model=cifar/resnet8x", ["student.model=cifar/resnet8x4"]),
    ("kdcompress suggest --students cifar/resnet8,cifar/resnet8x", ["cifar/resnet8,cifar/resnet8x4"]),
])  # fmt: skip
def test_names_are_completed(line, expected):
    words = line.split()
    environment = {
        **os.environ, "_KDCOMPRESS_COMPLETE": "bash_complete", "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    heavy = "import sys; sys.modules['torch'] = None; sys.modules['rich'] = None; "
    done = subprocess.run(
        [sys.executable, "-c", heavy + COMPLETE], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"plain,{item}" for item in expected]


@pytest.mark.parametrize(("line", "expected"), [
    ("kdcompress distill --set student.model=cifar/resnet8x", ["cifar/resnet8x4"]),
    ("kdcompress distill --set optim.mile", ["optim.milestones="]),
    ("kdcompress show quickstart --set teacher.model=torchvision/resnet10", ["torchvision/resnet101"]),
    ("kdcompress compare quickstart --methods none,kdc", ["none,kdcl"]),
    ("kdcompress compare quickstart --teachers cifar/vgg8,cifar/vgg13", ["cifar/vgg8,cifar/vgg13"]),
])  # fmt: skip
def test_bash_itself_completes_words_that_it_splits(line, expected):
    """Bash gives its function the words split at `=` and `:`, and replaces what stands behind the last."""
    script = f"""
        kdcompress() {{ {sys.executable} -c {shlex.quote(COMPLETE)} "$@"; }}
        export -f kdcompress
        eval "$(_KDCOMPRESS_COMPLETE=bash_source kdcompress)"
        env() {{ (for pair; do [[ $pair == *=* ]] && export "$pair"; done; kdcompress); }}
        compopt() {{ echo "compopt $*" >&2; }}
        COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}
        _kdcompress_completion kdcompress
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == expected, done.stderr
    assert ("compopt -o nospace" in " ".join(done.stderr.split())) == expected[0].endswith("=")


@pytest.mark.parametrize("line", ["kdcompress distill --data ./im", "kdcompress evaluate runs/qu"])
def test_paths_are_left_to_bash(line):
    script = f"""
        kdcompress() {{ {sys.executable} -c {shlex.quote(COMPLETE)} "$@"; }}
        export -f kdcompress
        eval "$(_KDCOMPRESS_COMPLETE=bash_source kdcompress)"
        env() {{ (for pair; do [[ $pair == *=* ]] && export "$pair"; done; kdcompress); }}
        COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}
        _kdcompress_completion kdcompress
        echo "offered: ${{#COMPREPLY[@]}}"
        complete -p kdcompress
    """
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=ROOT, capture_output=True, text=True)
    offered, registered = done.stdout.splitlines()
    assert offered == "offered: 0", done.stderr
    assert " -o default " in registered  # bash's own completion of files, where there is nothing else


def test_options_of_the_recipes_method_are_completed():
    main_context = main.make_context("kdcompress", ["distill", "--help"], resilient_parsing=True)
    command = main.commands["distill"]
    context = command.make_context(
        "distill", ["--recipe", "quickstart"], parent=main_context, resilient_parsing=True
    )
    option = next(parameter for parameter in command.params if parameter.name == "overrides")
    found = [item.value for item in option.shell_complete(context, "method.temp")]
    assert found == ["method.temperature="]


def test_a_run_folder_and_a_data_folder_that_are_both_wrong_are_told_together(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    done = kdcompress("distill", "--recipe", "resnet18", "--out", run, "--data", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "Error: 2 problems\n" in done.stderr
    assert "holds a run already; go on with --resume" in done.stderr
    assert f"data.root: {tmp_path / 'nowhere'}: no such folder" in done.stderr


def test_a_bad_recipe_hides_neither_of_them(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    wrong = ("--out", run, "--data", tmp_path / "nowhere", "--set", "optim.lrr=1")
    done = kdcompress("distill", "--recipe", "resnet18", *wrong)
    assert done.exit_code == 2
    assert "Error: resnet18: 3 problems\n  optim.lrr: unknown key; did you mean 'lr'?" in done.stderr


def test_a_wrong_run_folder_alone_is_one_message(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    done = kdcompress("distill", "--recipe", "quickstart", "--out", tmp_path / "run")
    assert done.stderr.startswith(f"Error: {tmp_path / 'run'}: holds a run already")


def test_an_interruption_before_the_first_checkpoint_says_that_nothing_was_saved(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(opening, "_check_buildable", interrupt)
    done = kdcompress("distill", "--recipe", "quickstart", "--out", out)
    assert (done.exit_code, done.stderr) == (130, "Error: interrupted; nothing was saved yet, run it again\n")
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "student.pt").write_bytes(b"")
    done = kdcompress("distill", "--recipe", "quickstart", "--out", out, "--resume")
    assert done.stderr == "Error: interrupted; what was saved before stays, go on with --resume\n"


def test_an_interruption_while_the_program_still_loads_says_so_too(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "distill", interrupt)
    assert "nothing was saved yet" in kdcompress("distill", "--recipe", "quickstart").stderr
    assert "go on with --resume" in kdcompress("distill", "--recipe", "quickstart", "--resume").stderr
