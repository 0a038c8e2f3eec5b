"""The listings: what there is, from headers alone, in the shape that scripts rely on."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompress import discovery, listing
from kdcompress.cli import main
from kdcompress.methods.base import find_method
from kdcompress.methods.presets import Preset, PublishedFigure
from kdcompress.networks.build import build
from kdcompress.recipe import load_recipe
from kdcompress.strict_yaml import read_yaml

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

KINDS = ("recipes", "methods", "students", "datasets")


def listed(kind):
    done = CliRunner().invoke(main, [kind, "--json"])
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_json_has_a_schema_and_rows_of_name_and_summary(kind):
    document = listed(kind)
    assert set(document) == {"schema", kind}
    assert re.fullmatch(r"kdcompress\.listing/\d+", document["schema"])
    rows = document[kind]
    assert rows
    for row in rows:
        assert row["name"]
        assert len(row["summary"]) > 10
        assert not row["summary"].endswith(".")
        assert "\n" not in row["summary"]
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", KINDS)
def test_for_a_person_each_has_one_line(kind):
    done = CliRunner().invoke(main, [kind])
    assert done.exit_code == 0
    names = [row["name"] for row in listed(kind)[kind]]
    assert [line.split()[0] for line in done.stdout.splitlines()] == names


def test_a_method_says_its_kind():
    rows = listed("methods")["methods"]
    assert {row["kind"] for row in rows} <= {"offline", "online", "self"}
    assert {row["name"]: row["kind"] for row in rows}["kd"] == "offline"
    assert [row["name"] for row in rows if row["kind"] == "online"]
    assert {row["name"] for row in rows} == set(discovery.names("method"))


def test_a_kind_other_than_offline_ends_the_line_of_a_method():
    lines = CliRunner().invoke(main, ["methods"]).stdout.splitlines()
    kinds = {row["name"]: row["kind"] for row in listed("methods")["methods"]}
    for line in lines:
        kind = kinds[line.split()[0]]
        assert line.endswith(f" [{kind}]") is (kind != "offline")


def test_every_listed_recipe_method_and_data_set_is_accepted_by_name():
    for row in listed("recipes")["recipes"]:
        assert load_recipe(row["name"]).name == row["name"]
    for row in listed("datasets")["datasets"]:
        assert load_recipe("quickstart", [f"data.dataset={row['name']}"])


def test_every_listed_student_of_a_closed_family_can_be_named_in_a_recipe():
    for row in listed("students")["students"]:
        if not row["name"].startswith(("timm/", "python:")):
            assert load_recipe("quickstart", [f"student.model={row['name']}"])


def test_a_listed_student_can_be_built():
    names = [row["name"] for row in listing.students() if row["name"].startswith("cifar/resnet")]
    assert build(names[0], num_classes=3, channels=1, image_size=(8, 8))


@pytest.mark.parametrize(("name", "file"), listing.shipped_recipes().items())
def test_a_shipped_recipe_says_summary_command_hardware_and_what_to_expect(name, file):
    header = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    assert len(header[0].removeprefix("# ")) > 10
    told = {
        key: rest
        for line in header
        if (m := re.match(r"# (\w+): +(\S.*)", line))
        for key, rest in [m.groups()]
    }
    assert {"Command", "Hardware", "Expect"} <= set(told)
    program, command, *arguments = shlex.split(told["Command"])
    assert (program, command) == ("kdcompress", "distill")
    options = main.commands["distill"].make_context("distill", arguments).params
    assert options["recipe"] == name
    assert load_recipe(name, options["overrides"]).name == name


def test_no_two_recipes_differ_by_their_method_alone():
    seen = {}
    for name, file in listing.shipped_recipes().items():
        document = {key: value for key, value in read_yaml(file).items() if key not in {"name", "method"}}
        assert document not in seen.values(), name
        seen[name] = document


def test_the_measured_figures_are_those_of_the_benchmark_table():
    script = runpy.run_path(str(BENCHMARKS / "measured.py"))
    document = json.loads(script["FILE"].read_text(encoding="utf-8"))
    table = script["TABLE"].read_text(encoding="utf-8")
    assert document == script["measured"](table)
    assert set(document["methods"]) <= set(discovery.names("method"))
    row = document["methods"]["dist"]
    assert "| dist | 86.56 ± 0.30 | +5.30 | 60,000 | 1.6 |  | 1,203 |" in table
    assert (row["top1"], row["sd"], row["gain_points"], row["minutes"]) == (86.56, 0.30, 5.30, 1.6)
    assert row["preparation_minutes"] is None


@pytest.mark.parametrize("name", discovery.names("method"))
def test_the_page_of_a_method_holds_its_options_needs_presets_and_figures(name):
    done = CliRunner().invoke(main, ["methods", name, "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    cls = find_method(name)
    assert document["schema"] == "kdcompress.method/1"
    assert {row["name"]: row["default"] for row in document["options"]} == cls.Config().model_dump(
        mode="json"
    )
    assert document["needs"]["teacher"] is cls.needs(cls.Config()).teacher
    assert set(document["presets"]) == set(cls.PRESETS)
    assert len(document["published"]) == len(cls.FIGURES)
    text = CliRunner().invoke(main, ["methods", name]).stdout
    assert text.startswith(f"{name} (")
    assert all(f"\n  {row['name']}: " in text for row in document["options"])
    assert max(map(len, text.splitlines())) <= 100


def test_the_page_of_a_method_prints_everything_that_is_known(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    preset = Preset({"weight": 0.9}, {"epochs": 7}, {"milestones": [2, 4]}, "With batches of 64.")
    figure = PublishedFigure("cifar100", "cifar/resnet32x4", "cifar/resnet8x4", 75.5, "a paper", "tiny")
    monkeypatch.setattr(find_method("crd"), "PRESETS", {"tiny": preset})
    monkeypatch.setattr(find_method("crd"), "FIGURES", (figure,))
    text = CliRunner().invoke(main, ["methods", "crd"]).stdout
    tiny = "method: weight=0.9\n    train: epochs=7\n    optim: milestones=[2, 4]\n    With batches of 64.\n"
    assert f"  tiny\n    {tiny}" in text
    published = "cifar100: a paper (--preset tiny)\n    75.50  cifar/resnet32x4 to cifar/resnet8x4\n"
    assert f"  {published}\n" in text
    assert "  A teacher, of which it reads the logits and the pooled features.\n" in text
    assert "  weight: auto\n" in text
    assert "  85.04 ± 0.18 % top-1, +3.78 points against plain training\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_unknown_method_has_no_page():
    done = CliRunner().invoke(main, ["methods", "crdd"])
    assert done.exit_code == 2
    assert done.stderr == "Error: unknown method 'crdd'; did you mean 'crd'?\n"


def test_a_reader_that_left_is_no_mistake():
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has seen enough
    command = [sys.executable, "-m", "kdcompress", "students"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
