"""The listings: what there is, from headers alone, in the shape that scripts rely on."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner

from kdcompress import discovery, listing
from kdcompress.cli import main
from kdcompress.networks.build import build
from kdcompress.recipe import load_recipe

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


def test_a_reader_that_left_is_no_mistake():
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has seen enough
    command = [sys.executable, "-m", "kdcompress", "students"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
