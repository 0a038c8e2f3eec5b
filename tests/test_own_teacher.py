"""A teacher from the user's own code: the example of the docs, own weights, outputs that do not fit."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.recipe import load_recipe

PAGE = Path(__file__).parent.parent / "docs" / "your-images-and-teacher.md"
RUN = (
    "distill", "--recipe", "quickstart", "--allow-code", "--set", "train.max_steps=2",
    "--set", "bench.rounds=1", "--set", "teacher.min_top1=0", "--set", "train.epochs=1",
)  # fmt: skip


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The docs' example as `my_teacher.py` in the current folder, forgotten afterwards."""
    text = re.search(r"```python\n(# my_teacher\.py\n.*?)```", PAGE.read_text(), re.S)[1]
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(more=""):
        (tmp_path / "my_teacher.py").write_text(text + textwrap.dedent(more))

    yield write
    sys.modules.pop("my_teacher", None)


def test_the_example_of_the_docs_teaches_with_its_own_weights_and_may_print(module, tmp_path):
    module('print("hello from my code")\n')
    import my_teacher

    torch.save(my_teacher.Teacher(10, 1).state_dict(), "my_teacher.pth")
    sys.modules.pop("my_teacher")
    done = kdcompress(
        *RUN, "--set", "teacher.model=python:my_teacher:build", "--out", tmp_path / "run", "--json"
    )
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert json.loads(done.stdout)["teacher"]["params"] == sum(
        tensor.numel() for name, tensor in torch.load("my_teacher.pth").items() if "running" not in name
        and "tracked" not in name
    )  # fmt: skip
    assert "hello from my code" in done.stderr
    assert "have the same weights, so it is used as it is" in done.stderr
    guessed = re.search(r"of the data: teacher\.input\.mean \[([\d.]+)\]", done.stderr)
    assert 0.2 < float(guessed[1]) < 0.4  # of the digits
    assert "teacher: epoch" not in done.stderr
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["teacher"]["pretrained"] is True
    teacher = json.loads((tmp_path / "run" / "manifest.json").read_text())["teacher"]
    assert teacher["weights"] == "those that its builder loads"
    assert len(teacher["sha256"]) == 64
    assert teacher["license"] is None
    assert "- Teacher: not known to kdcompress" in (tmp_path / "run" / "README.md").read_text()

    # Only the teacher has code, and neither of these builds it.
    scored = kdcompress("evaluate", tmp_path / "run", "-q", "--json")
    assert scored.exit_code == 0, scored.stderr
    assert json.loads(scored.stdout)["n"] == 180
    exported = kdcompress("export", tmp_path / "run", "--int8", "--rounds", 1, "-q", "--max-drop", 100)
    assert exported.exit_code == 0, exported.stderr
    assert (tmp_path / "run" / "student.int8.onnx").is_file()


REFUSED = ("--set", "train.ship=ema")  # without train.ema, which is checked after the teacher


@pytest.mark.parametrize(("more", "sentence"), [
    ("", "have different weights, so it is trained from scratch"),
    ("""
    def build(num_classes, channels, image_size, known=Teacher):
        state = torch.get_rng_state()
        torch.manual_seed(3)
        network = Teacher(7, channels)
        torch.set_rng_state(state)
        network.classifier = nn.Linear(64, num_classes)
        return network
    """, "have the same weights but for the classifier, so it is fine-tuned"),
])  # fmt: skip
def test_what_a_builder_loads_is_found_out(module, more, sentence):
    module(more)
    done = kdcompress(*RUN, "--set", "teacher.model=python:my_teacher:build", *REFUSED)
    assert sentence in done.stderr
    assert not Path("runs").exists()


def test_a_teacher_of_other_classes_is_refused_before_anything_is_written(module):
    module(
        """
        def build(num_classes, channels, image_size):
            torch.manual_seed(0)
            return Teacher(1000, channels)
        """
    )
    done = kdcompress(*RUN, "--set", "teacher.model=python:my_teacher:build")
    assert done.exit_code == 2, done.exception
    assert (
        "python:my_teacher:build: gives 1,000 outputs, the data has 10 classes; let it build its last layer "
        "with num_classes outputs (it is called with num_classes=10)" in done.stderr
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(("settings", "message"), [
    (["teacher.pretrained=true"], "teacher.pretrained: expected auto or false, since cifar/wrn-16-2"),
    (["teacher.weights=t.pt", "teacher.pretrained=false"], "teacher.pretrained: expected auto or true"),
    (["teacher.pretrained=perhaps"], "teacher.pretrained: expected"),
])  # fmt: skip
def test_a_claim_that_does_not_fit_the_teacher_is_refused(settings, message):
    overrides = [word for setting in settings for word in ("--set", setting)]
    done = kdcompress("show", "quickstart", *overrides)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_teacher_of_a_known_family_is_not_built_twice():
    assert load_recipe("quickstart").teacher.pretrained == "auto"
