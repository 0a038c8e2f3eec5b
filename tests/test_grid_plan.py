"""The cells of `kdcompress compare`: what is crossed with what, and what a resume demands."""

from __future__ import annotations

import json

import pytest

from kdcompress.errors import RecipeError, RunFolderError, UserError
from kdcompress.recipe import resolve_recipe
from kdcompress.tools.grid_plan import GridRequest, make_plan, record, with_teacher

STUDENTS = ("cifar/resnet8", "cifar/wrn-16-1")


def planned(**options):
    return make_plan(GridRequest("quickstart", **{"seeds": 1, **options}))


def resolved(cell):
    words = cell.options("quickstart")
    assert words[:2] == ["--recipe", "quickstart"]
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    method = words[words.index("--method") + 1] if "--method" in words else None
    return resolve_recipe("quickstart", sets, method=method).recipe


def test_every_method_meets_every_student_with_every_seed_seed_by_seed():
    cells = planned(methods=("none", "kd"), students=STUDENTS, seeds=2).cells
    recipes = [resolved(cell) for cell in cells]
    found = [(recipe.seed, recipe.student.model, recipe.method["name"]) for recipe in recipes]
    assert found == [
        (seed, student, name) for seed in (0, 1) for student in STUDENTS for name in ("none", "kd")
    ]
    assert [recipe.teacher is None for recipe in recipes] == [True, False] * 4
    assert len({recipe.train.epochs for recipe in recipes}) == 1
    assert len({cell.folder for cell in cells}) == 8
    assert cells[0].folder == "cells/none--cifar-resnet8/seeds/0"
    assert len({cell.row for cell in cells}) == 4


def test_without_options_the_recipe_itself_is_repeated():
    own = resolve_recipe("quickstart", ["seed=1"]).recipe
    assert [resolved(cell) for cell in planned(seeds=2).cells][1] == own


def test_a_method_can_be_named_with_settings_of_its_own():
    plain, weak = planned(methods=("kd", "kd:temperature=2:kd_weight=0.5")).cells
    assert resolved(plain).method["temperature"] != 2
    assert (resolved(weak).method["temperature"], resolved(weak).method["kd_weight"]) == (2, 0.5)
    assert weak.folder == "cells/kd-temperature=2-kd_weight=0.5--cifar-resnet8/seeds/0"
    with pytest.raises(UserError, match=r"'temperature' is no KEY=VALUE; write it as crd:weight=0.8"):
        planned(methods=("kd:temperature",))


def test_settings_of_the_teacher_are_left_out_of_the_runs_without_one():
    none, kd = planned(methods=("none", "kd"), overrides=("teacher.epochs=2", "train.epochs=3")).cells
    assert resolved(kd).teacher.epochs == 2
    assert resolved(none).teacher is None
    assert [resolved(cell).train.epochs for cell in (none, kd)] == [3, 3]


def test_one_teacher_is_taken_as_it_is_and_several_are_tried_in_short_runs():
    one = planned(methods=("none", "kd"), teachers=("cifar/wrn-40-2",))
    assert one.probes == ()
    assert [resolved(cell).teacher and resolved(cell).teacher.model for cell in one.cells] == [
        None,
        "cifar/wrn-40-2",
    ]
    several = planned(
        methods=("none", "kd", "fitnet"), teachers=("cifar/wrn-40-2", "cifar/resnet20@runs/teacher")
    )
    recipes = [resolved(probe) for probe in several.probes]
    assert [recipe.method["name"] for recipe in recipes] == ["kd", "kd"]
    assert [recipe.teacher.model for recipe in recipes] == ["cifar/wrn-40-2", "cifar/resnet20"]
    assert recipes[1].teacher.weights == "runs/teacher"
    full = resolve_recipe("quickstart").recipe.train.epochs
    assert all(recipe.train.epochs == max(1, round(0.2 * full)) for recipe in recipes)
    auto = planned(teachers=("cifar/wrn-40-2", "cifar/resnet20"), overrides=("train.epochs=auto",))
    lengths = [resolved(probe).train for probe in auto.probes]
    assert [(train.epochs, train.max_steps) for train in lengths] == [("auto", 600)] * 2
    request = GridRequest("quickstart", methods=("none", "kd", "fitnet"), seeds=1)
    taken = with_teacher(request, several.cells, "cifar/resnet20@runs/teacher")
    assert [resolved(cell).teacher and resolved(cell).teacher.weights for cell in taken] == [
        None,
        "runs/teacher",
        "runs/teacher",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("kd", "kd")}, "--methods: kd is named twice"),
        ({"students": ("cifar/resnet8", "cifar/resnet8")}, "--students: cifar/resnet8 is named twice"),
        ({"methods": ("none",), "teachers": ("cifar/resnet20",)}, "none of the methods has a teacher"),
        ({"overrides": ("export.formats=[safetensors]",)}, "export.formats: add onnx"),
        (
            {"teachers": ("cifar/resnet20", "cifar/vgg8"), "overrides": ("data.held_out=0",)},
            "set data.held_out above 0",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        planned(**options)


def test_a_single_teacher_that_does_not_exist_is_refused_before_anything_is_written():
    with pytest.raises(RecipeError, match=r"teacher\.model: unknown network 'resnet21'"):
        planned(methods=("kd",), teachers=("cifar/resnet21",))


def test_the_problems_of_all_cells_are_told_at_once():
    with pytest.raises(RecipeError) as error:
        planned(methods=("kdd", "kd:temprature=2"), students=("cifar/resnet9",))
    told = str(error.value)
    assert all(wrong in told for wrong in ("kdd", "temprature", "cifar/resnet9"))


def test_a_resume_demands_the_same_cells_and_keeps_the_threads(tmp_path):
    plan, folder = planned(methods=("none", "kd"), jobs=1), tmp_path / "grid"
    assert record(plan, folder, resume=False) == plan
    with pytest.raises(RunFolderError, match="has a comparison already; continue with --resume"):
        record(plan, folder, resume=False)
    file = folder / "grid.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "threads": 7}))
    assert record(plan, folder, resume=True).threads == 7
    with pytest.raises(RunFolderError, match="comparison of other runs"):
        record(planned(methods=("none", "fitnet")), folder, resume=True)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="files that are no comparison"):
        record(planned(), tmp_path, resume=False)
