"""`kdcompress suggest`: what is within a budget, and what is said where nothing is; times are scripted."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from bench.documents import ENV
from click.testing import CliRunner
from rich.console import Console

from kdcompress.bench import targets
from kdcompress.bench.budget import Budget
from kdcompress.bench.measure import Protocol
from kdcompress.bench.target import Local
from kdcompress.cli import main
from kdcompress.commands import suggest_table
from kdcompress.errors import TargetUnreachable
from kdcompress.progress import Progress
from kdcompress.recipe import load_recipe
from kdcompress.tools import suggest as suggesting
from kdcompress.tools import suggest_candidates as candidates
from kdcompress.tools import suggest_search as trying
from kdcompress.tools.suggest import SuggestRequest, suggest
from kdcompress.tools.suggest_candidates import StudentCandidate
from kdcompress.tools.suggest_search import Trial

SCRIPTED = f"{Path(__file__).parent / 'bench' / 'scripted_runtime.py'}:Scripted"
TINY = ("cifar/resnet8", "cifar/resnet14")
HERE = Local()


def kdcompress(*arguments):
    return CliRunner().invoke(main, ["suggest", *(str(argument) for argument in arguments)])


@pytest.fixture
def short(monkeypatch):
    quick = Protocol(block_s=0.01, turns=1, min_calls=2, warmup_s=0)
    monkeypatch.setattr(trying, "PROTOCOL", quick)
    monkeypatch.setattr(trying, "SHORT_PROTOCOL", quick)


@pytest.fixture
def scripted(monkeypatch, short):
    """Students whose files are scripts: name -> (parameters, script)."""

    def script(**students):
        def make(student, spec, folder, *, largest_mb=None):
            params, text = students[student.partition("/")[2]]
            if largest_mb is not None and 4 * params / 1e6 > largest_mb:
                return StudentCandidate(student, 3, params, 7)
            file = folder / f"{student.partition('/')[2]}.script"
            file.write_text(text)
            return StudentCandidate(student, 3, params, 7, file, 4 * params, problem="")

        monkeypatch.setattr(trying, "RUNTIMES", (SCRIPTED,))
        monkeypatch.setattr(suggesting, "export_candidate", make)
        monkeypatch.setattr(suggesting, "check_students", lambda names, spec: names)
        return tuple(f"cifar/{name}" for name in students)

    return script


@pytest.fixture
def answers(monkeypatch):
    """Replaces the timing: every call takes the next of the given lists of round medians by name."""

    def give(*looks):
        calls = []
        rest = iter(looks)

        def measure(artefacts, *, rounds, target, **_):
            assert target is HERE
            medians = next(rest)
            calls.append((sorted(artefact.name for artefact in artefacts), rounds))
            results = []
            for artefact in artefacts:
                ms = medians[artefact.name]
                latency = {"p50": ms[0], "ci95": None, "p90": max(ms), "p99": None, "min": min(ms), "n": 99}
                noise = {"bimodal": False, "round_spread": max(ms) / min(ms)}
                rss = {"base": 40.0, "peak": 50.0}
                one = {"artefact": artefact.name, "latency_ms": latency, "round_medians_ms": ms}
                results.append(one | {"noise": noise, "rss_mb": rss})
            return {
                "env": ENV, "results": results, "failures": [], "warnings": [], "quality": "ok",
                "protocol": {"threads": [1]},
            }  # fmt: skip

        monkeypatch.setattr(trying, "measure", measure)
        return calls

    return give


def _trial(latency_ms, **limits):
    budget = Budget(latency_ms, **limits)
    return Trial(budget, side=8, threads=1, batch=1, rounds=6, target=HERE, tell=lambda *_: None)


def _candidates(**params):
    return [
        StudentCandidate(name, 3, count, 1, Path(f"{name}.onnx"), 4 * count) for name, count in params.items()
    ]


# ---- what is timed when


def test_few_students_are_timed_together_at_once(answers):
    calls = answers({"a": [4.0] * 6, "b": [9.0] * 6})
    trial, few = _trial(5), _candidates(a=10, b=20)
    trial.time(few)
    assert calls == [(["a", "b"], 6)]
    assert [trial.row(candidate)["verdict"] for candidate in few] == ["fits", "does not fit"]


def test_many_get_a_first_look_in_small_groups_and_the_slowest_leave(answers):
    times = {"a": 1.0, "b": 4.0, "c": 9.9, "d": 10.1, "e": 30.0}
    look = {name: [ms] * 6 for name, ms in times.items()}
    calls = answers(look, look, look)
    trial, many = _trial(5), _candidates(a=1, b=2, c=3, d=4, e=5)
    trial.time(many)
    assert calls == [(["a", "b", "c", "d"], 6), (["e"], 6), (["a", "b", "c"], 6)]
    rows = {candidate.student: trial.row(candidate) for candidate in many}
    assert {name for name, row in rows.items() if row["first_look_only"]} == {"d", "e"}
    assert [rows[name]["verdict"] for name in "abcde"] == ["fits", "fits", *["does not fit"] * 3]
    assert rows["e"]["latency_ms"]["p50"] == 30
    assert rows["a"]["rounds"] == 6  # a first look is no part of the timing


def test_one_quick_call_keeps_a_student_in(answers):
    slow = [30.0] * 6
    looks = {name: slow for name in "abcd"}
    calls = answers(looks, {"e": [4.0, *slow[1:]]}, {"e": slow})
    _trial(5).time(_candidates(a=1, b=2, c=3, d=4, e=5))
    assert calls[-1] == (["e"], 6)


def test_what_straddles_is_timed_twice_as_long_again_if_it_would_be_the_answer(answers):
    straddling = [4.0, 4.0, 4.0, 4.0, 4.0, 6.0]
    # Of 18 values the interval is from the fifth to the fourteenth.
    calls = answers(
        {"small": straddling, "middle": [4.0] * 6, "large": straddling, "huge": [6.0] * 6},
        {"large": [4.0] * 12},
    )
    trial, four = _trial(5), _candidates(small=1, middle=2, large=3, huge=4)
    trial.time(four)
    assert calls[1] == (["large"], 12)
    rows = {candidate.student: trial.row(candidate) for candidate in four}
    assert (rows["large"]["verdict"], rows["large"]["rounds"]) == ("fits", 18)
    assert rows["small"]["verdict"] == "undecided"


def test_nobody_is_looked_at_a_third_time(answers):
    straddling = [4.0, 6.0] * 3
    calls = answers({"a": straddling}, {"a": straddling * 2})
    trial, one = _trial(5), _candidates(a=1)
    trial.time(one)
    assert len(calls) == 2
    assert trial.row(one[0])["verdict"] == "undecided"


def test_memory_is_what_running_adds_and_has_its_own_limit(answers):
    answers({"a": [4.0] * 6}, {"a": [4.0] * 6})
    for limit, verdict, why in ((10, "fits", []), (9.9, "does not fit", ["memory 10 MB"])):
        trial, one = _trial(5, ram_mb=limit), _candidates(a=1)
        trial.time(one)
        row = trial.row(one[0])
        assert (row["verdict"], row["why"], row["ram_mb"]) == (verdict, why, 10)


# ---- the command, on scripted times


def _document(students, budget, *options):
    done = kdcompress("--budget", budget, "--students", ",".join(students), "--rounds", 6, "--json", *options)
    return done, json.loads(done.stdout)


def test_the_largest_that_fits_is_the_answer(scripted):
    students = scripted(little=(10, "calls 1"), most=(40, "calls 9"), more=(30, "calls 4"))
    done, document = _document(students, "5ms")
    assert done.exit_code == 0, done.stderr
    assert document["schema"] == "kdcompress.suggest/1"
    assert document["answer"] == {
        "student": "cifar/more",
        "recipe": "student: {model: cifar/more}",
        "set": "--set student.model=cifar/more",
    }
    rows = document["results"]
    assert [row["student"] for row in rows] == ["cifar/most", "cifar/more", "cifar/little"]
    assert [row["verdict"] for row in rows] == ["does not fit", "fits", "fits"]
    assert [row["latency_ms"]["p50"] for row in rows] == [9, 4, 1]
    assert rows[1]["latency_ms"]["ci95"] == [4, 4]
    assert document["budget"] == {"latency_ms": 5, "file_mb": None, "ram_mb": None, "confidence": 0.95}
    assert document["no_answer"] is None


def test_nothing_fits_ends_with_3_and_says_what_comes_nearest(scripted):
    students = scripted(little=(10, "calls 1"), more=(30, "calls 4"))
    done, document = _document(students, "0.5ms")
    assert done.exit_code == 3
    assert done.stderr.endswith(
        "Error: nothing fits 0.5 ms with 95 % confidence; the fastest timed is cifar/little with 1 ms "
        "[1, 1]\n"
    )
    assert document["answer"] is None
    assert document["no_answer"] in done.stderr


def test_a_file_that_is_too_large_is_not_timed(scripted):
    students = scripted(little=(1_000_000, "calls 1"), more=(3_000_000, "raise"))
    _, document = _document(students, "5ms", "--memory", "8MB")
    assert document["answer"]["student"] == "cifar/little"
    more = document["results"][0]
    assert (more["verdict"], more["why"], more["latency_ms"]) == (
        "does not fit",
        ["weights alone 12 MB"],
        None,
    )
    done, document = _document(students, "5ms", "--memory", "1MB")
    assert done.exit_code == 3
    assert "nothing fits 5 ms and a file of 1 MB" in done.stderr
    assert "the smallest file is that of cifar/little with 4 MB" in done.stderr
    assert document["env"] is None


def test_one_that_cannot_be_timed_is_told_and_the_others_go_on(scripted):
    students = scripted(little=(10, "calls 1"), more=(30, "raise"))
    _, document = _document(students, "5ms")
    assert document["answer"]["student"] == "cifar/little"
    broken = document["results"][0]
    assert broken["problem"] == "load: ValueError: a graph of two lines"
    assert (broken["verdict"], broken["latency_ms"]) == (None, None)
    done, _ = _document(students[1:], "5ms")
    assert done.exit_code == 3
    assert "cifar/more: load: ValueError" in done.stderr


def test_a_person_reads_a_table_and_the_line_for_the_recipe(scripted):
    students = scripted(little=(1_000, "calls 1"), more=(3_000, "calls 4"), broken=(9_000, "raise"))
    done = kdcompress("--budget", "5ms", "--students", ",".join(students), "--rounds", 6)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "Budget: 5 ms for a median call of 1 image. 3×224×224, 1,000 classes (assumed; --classes), 1 thread."
    )
    (more,) = [line for line in lines if line.strip().startswith("cifar/more")]
    assert "4 [4, 4]" in more
    assert more.rstrip().endswith("fits")
    assert "not timed: cifar/broken: load: ValueError: a graph of two lines" in lines
    assert "The largest that fits, by parameters: cifar/more (0.003 M parameters, 4 [4, 4] ms)" in lines
    assert "  in a recipe:        student: {model: cifar/more}" in lines
    assert "  on a command line:  --set student.model=cifar/more" in lines


def test_who_limits_the_file_is_told_of_the_memory(scripted):
    (little,) = scripted(little=(1_000, "calls 1"))
    _, document = _document([little], "5ms", "--memory", "8MB")
    document["results"][0]["ram_mb"] = 30.0
    assert any("--peak-memory limits this" in line for line in suggest_table.footer(document))
    document["budget"]["ram_mb"] = 64
    assert not any("--peak-memory" in line for line in suggest_table.footer(document))


def test_the_most_accurate_that_fits_is_told_where_it_is_another():
    known = {"verdict": "fits", "imagenet_top1": {"top1": 0.7, "weights": "V1"}, "student": "good"}
    better = known | {"imagenet_top1": {"top1": 0.8, "weights": "V1"}, "student": "better"}
    best = better | {
        "imagenet_top1": {"top1": 0.9, "weights": "V1"},
        "student": "best",
        "verdict": "undecided",
    }
    unknown = known | {"imagenet_top1": None, "student": "unknown"}
    assert suggesting._most_accurate([unknown, known, better, best]) == "better"
    assert suggesting._most_accurate([unknown]) is None


# ---- the command, in earnest


def test_it_runs_on_real_students_of_a_recipe_and_writes_one_that_is_a_recipe(tmp_path, short):
    out = tmp_path / "smaller.yaml"
    done = kdcompress(
        "--budget", "10s", "--recipe", "quickstart", "--students", ",".join(TINY), "--rounds", 6,
        "--set", "student.model=torchvision/resnet18", "--set", "student.weights=IMAGENET1K_V1",
        "--out", out, "--json",
    )  # fmt: skip
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["answer"]["student"] == "cifar/resnet14"
    assert document["input"] == {"channels": 1, "height": 8, "width": 8}
    assert (document["classes"], document["classes_from"]) == (10, "recipe")
    assert document["recipe"] == str(out)
    largest, smallest = document["results"]
    assert largest["params"] > smallest["params"] == 77_754
    assert largest["channels"] == smallest["channels"] == 1
    assert all(row["ram_mb"] > 0 and row["bytes"] > 4 * row["params"] for row in document["results"])
    assert "left out student.weights, which were torchvision/resnet18's" in done.stderr
    shown = CliRunner().invoke(main, ["show", str(out), "--json"])
    assert shown.exit_code == 0
    written = json.loads(shown.stdout)
    assert (written["name"], written["student"]["model"]) == ("smaller", "cifar/resnet14")
    assert written["student"]["weights"] == "auto"
    same = load_recipe("quickstart").model_dump(mode="json")
    assert all(written[key] == same[key] for key in same if key not in ("name", "student"))
    assert kdcompress("--budget", "1s", "--recipe", "quickstart", "--out", out).exit_code == 2


def test_no_answer_writes_no_recipe(tmp_path, scripted):
    students = scripted(little=(10, "calls 4"))
    out = tmp_path / "none.yaml"
    done, document = _document(students, "1ms", "--recipe", "quickstart", "--out", out)
    assert (done.exit_code, document["recipe"], out.exists()) == (3, None, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "5"], "write 5ms?"),
        (["--budget", "5ms", "--memory", "8"], "write 8MB?"),
        (["--budget", "5ms", "--peak-memory", "8ms"], "'ms' is no such unit"),
        (["--budget", "5ms", "--students", "cifar/resnt8"], "did you mean 'resnet8'?"),
        (
            ["--budget", "5ms", "--students", "resnet18"],
            "did you mean cifar/resnet18 or torchvision/resnet18?",
        ),
        (["--budget", "5ms", "--students", " , "], "names none"),
        (["--budget", "5ms", "--students", "python:a.b:c"], "pass --allow-code"),
        (["--budget", "5ms", "--opset", "13"], "can only write 18 and newer"),
        (["--budget", "5ms", "--threads", "1,2"], "a budget is for one count"),
        (["--budget", "5ms", "--rounds", "5"], "not in the range"),
        (["--budget", "5ms", "--target", "pack:there"], "only `bench` packs"),
        (["--budget", "5ms", "--out", "a.yaml"], "--out: is a copy of a --recipe"),
        (["--budget", "5ms", "--set", "seed=1"], "--set: belongs to a --recipe"),
        (["--budget", "5ms", "--method", "dml"], "--method: belongs to a --recipe"),
        (["--budget", "5ms", "--recipe", "quickstart", "--out", "a.json"], "ends in .yaml"),
        (["--budget", "5ms", "--recipe", "quickstart", "--out", "-a.yaml"], "its name becomes the recipe's"),
        (["--budget", "5ms", "--recipe", "quickstart", "--out", "no/a.yaml"], "there is no folder no"),
        (["--budget", "5ms", "--recipe", "quickstart", "--input-size", "32"], "--set data.image_size=N"),
        (["--budget", "5ms", "--recipe", "quickstart", "--classes", "9"], "the data set digits has 10"),
        (["--budget", "5ms", "--recipe", "quickstart", "--channels", "3"], "says them"),
        (["--budget", "5ms", "--recipe", "quickstrt"], "did you mean 'quickstart'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_before_anything_is_exported(options, message, monkeypatch):
    monkeypatch.setattr(suggesting, "export_candidate", lambda *_, **__: pytest.fail("exported"))
    done = kdcompress(*options)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_none_that_can_be_made_is_the_users_mistake(monkeypatch):
    monkeypatch.setattr(trying, "measure", lambda *_, **__: pytest.fail("measured"))
    done = kdcompress("--budget", "5ms", "--students", "torchvision/vgg11", "--input-size", 16)
    assert done.exit_code == 2
    assert "torchvision/vgg11: needs images of at least 32×32 pixels" in done.stderr


# ---- for which images and classes


def _student_spec(**request):
    recipe = load_recipe(request["recipe"], request.get("overrides", ())) if "recipe" in request else None
    return suggesting._student_spec(SuggestRequest("1ms", **request), recipe)


def test_without_a_recipe_it_is_an_imagenet_student():
    spec, source = _student_spec()
    assert (spec.channels, spec.side, spec.classes, source) == (3, 224, 1000, "default")
    spec, source = _student_spec(input_size=32, channels=1, classes=7)
    assert (spec.channels, spec.side, spec.classes, source) == (1, 32, 7, "option")


def test_a_recipe_tells_the_images_without_its_data():
    spec, source = _student_spec(recipe="cifar100-resnet32x4-to-resnet8x4")
    assert (spec.channels, spec.side, spec.classes, source) == (3, 32, 100, "recipe")
    spec, source = _student_spec(recipe="resnet101-to-resnet18", overrides=("data.image_size=96",))
    assert (spec.side, spec.classes, source) == (96, 1000, "default")
    assert spec.accepted == {3}  # as the teacher takes
    spec, source = _student_spec(recipe="resnet101-to-resnet18", classes=5)
    assert (spec.classes, source) == (5, "option")
    spec, _ = _student_spec(recipe="resnet50-to-mobilenet-v2")
    assert spec.classes == 0


def test_a_folder_tells_its_classes(tmp_path):
    for name in ("cat", "dog", "eel"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "a.png").touch()  # it is not opened
    spec, source = _student_spec(recipe="resnet101-to-resnet18", data=str(tmp_path))
    assert (spec.classes, source) == (3, "data")


def test_the_recipes_own_student_is_tried_and_none_that_is_no_smaller_than_the_teacher():
    request = SuggestRequest("1ms", recipe="cifar100-resnet32x4-to-resnet8x4")
    recipe = load_recipe(request.recipe, ("student.model=cifar/wrn-22-1",))
    spec, _ = suggesting._student_spec(request, recipe)
    names, left_out = suggesting._names(request, recipe, spec)
    assert names[0] == "cifar/wrn-22-1"
    assert {entry["student"] for entry in left_out} == {"cifar/resnet32x4", "cifar/resnet18"}
    assert set(names[1:]) == set(candidates.SMALL) - {"cifar/resnet32x4", "cifar/resnet18"}


def test_a_device_that_is_not_there_is_told_before_anything_is_exported(monkeypatch):
    class Gone(Local):
        def opened(self, artefacts):
            raise TargetUnreachable("board: cannot be reached")

    monkeypatch.setattr(targets, "parse_target", lambda *_, **__: Gone())
    monkeypatch.setattr(suggesting, "export_candidate", lambda *_, **__: pytest.fail("exported"))
    done = kdcompress("--budget", "5ms", "--target", "ssh://board")
    assert (done.exit_code, done.stderr) == (4, "Error: board: cannot be reached\n")


def test_progress_is_quiet_without_a_terminal(scripted):
    students = scripted(little=(10, "calls 1"))
    document = suggest(SuggestRequest("5ms", students=students, rounds=6), Progress(quiet=True))
    assert document["answer"]["student"] == students[0]


@pytest.mark.parametrize(("width", "all_figures"), [(80, False), (200, True)])
def test_a_narrow_terminal_gets_the_figures_that_decide_whole(scripted, width, all_figures):
    students = scripted(shufflenet_v2_x1_0=(2_280_000, "calls 3.25"), little=(1_000, "calls 1"))
    _, document = _document(students, "5ms")
    console = Console(file=StringIO(), width=width)
    suggest_table.print_suggestion(document, console)
    printed = console.file.getvalue()
    assert "3.25 [3.25, 3.25]" in printed
    assert "…" not in printed
    assert ("GMACs" in printed) == all_figures


def test_what_two_looks_warn_of_is_said_once_and_without_advice_on_ratios(scripted):
    (little,) = scripted(little=(1_000, "calls 1"))
    _, document = _document([little], "5ms")
    document["warnings"] = [f"the machine is busy (load {load}): trust the ratios" for load in (1, 2)]
    lines = suggest_table.footer(document)
    assert [line for line in lines if "busy" in line] == ["warning: the machine is busy (load 2)"]
