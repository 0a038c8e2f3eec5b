"""`--int8` and `--fp16` as scripts use them: in a run, after one, and when they fail."""

from __future__ import annotations

import json
import shutil

import onnxruntime
import pytest
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.export import add_compressed as adding
from kdcompress.export import compressed as variants
from kdcompress.run_folder import RunFolder

TINY = (
    "distill", "--recipe", "quickstart", "--threads", 1, "--set", "train.max_steps=2",
    "--set", "teacher.model=cifar/resnet8",  # quicker to export than the recipe's
    "--set", "bench.rounds=1", "--set", "teacher.min_top1=0",
)  # fmt: skip
INT8, FP16 = "student.int8.onnx", "student.fp16.onnx"


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def read(folder, name):
    return json.loads((folder / name).read_text())


def gates(folder):
    return {gate["gate"]: gate for gate in read(folder, "gates.json")["gates"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run with an fp16 file, and what it printed; never changed by a test."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        done = kdcompress(*TINY, "--set", "export.fp16=true", "--out", folder / "run")
    assert done.exit_code == 0, done.stderr
    return folder / "run", done.stdout


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture(scope="module")
def added(finished, tmp_path_factory):
    """A copy of it with an int8 file added, and what `export` said."""
    folder = shutil.copytree(finished[0], tmp_path_factory.mktemp("added") / "run")
    done = kdcompress("export", folder, "--int8", "--max-drop", 100)
    assert done.exit_code == 0, done.stderr
    return folder, done.stdout


def test_a_run_that_asks_for_fp16_ships_proves_times_and_judges_it(finished):
    folder, printed = finished
    assert (folder / FP16).exists()
    assert not (folder / INT8).exists()
    assert {"fp16_parity", "fp16_top1", "fp16_range"} <= set(gates(folder))
    assert all(gate["passed"] for gate in gates(folder).values())
    entry = read(folder, "results.json")["variants"]["fp16"]
    assert entry["file"] == FP16
    assert entry["bytes"] == (folder / FP16).stat().st_size
    assert entry["verdict"]["sentence"] in printed
    assert "student (fp16)" in printed
    assert FP16 in read(folder, "manifest.json")["files"]
    assert RunFolder(folder).finished() is not None


def test_its_timings_stand_beside_those_of_the_student(finished):
    bench = read(finished[0], "bench.json")
    assert bench["artefacts"]["student (fp16)"]["precision"] == "fp16"
    (row,) = [row for row in bench["results"] if row["artefact"] == "student (fp16)"]
    assert (row["precision"], row["provider"]) == ("fp16", "CPUExecutionProvider")
    assert "student (fp16)" in (finished[0] / "report.html").read_text()


def test_int8_is_added_to_a_run_that_is_over(added):
    folder, printed = added
    session = onnxruntime.InferenceSession(folder / INT8, providers=["CPUExecutionProvider"])
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ["images", "logits"]
    assert not (folder / "export").exists()
    assert {"int8_layers", "int8_drop", "fp16_top1", "top1_exported"} <= set(gates(folder))
    results = read(folder, "results.json")["variants"]
    assert set(results) == {"fp16", "int8"}
    verdict = results["int8"]["verdict"]
    assert verdict["sentence"] in printed
    assert verdict["keep"] is None  # one round shows no difference
    assert verdict["told"].startswith("worst layers by signal to noise: ")
    assert verdict["told"] in printed
    assert f"{folder / INT8}  {(folder / INT8).stat().st_size:,} bytes" in printed


def test_its_timings_join_the_run_each_paired_with_the_student(added):
    bench = read(added[0], "bench.json")
    told = {row["artefact"]: row["vs_baseline"] and row["vs_baseline"]["name"] for row in bench["results"]}
    assert told["student"] == told["student (fp16)"] == "teacher"
    assert told["student (int8)"] == "student (beside int8)"
    assert told["student (beside int8)"] is None
    later = "student (beside int8); student (int8): timed after the run, in rounds of their own"
    assert later in bench["warnings"]
    page = (added[0] / "report.html").read_text()
    assert "student (int8) int8" in page
    assert ", student (beside int8)</td>" in page  # not the teacher, whom the others are compared with
    assert "worst layers by signal to noise" in page
    assert "int8 in onnxruntime with 1 thread at batch 1" in (added[0] / "README.md").read_text()


def test_the_run_still_vouches_for_its_files(added):
    manifest = RunFolder(added[0]).finished()
    assert manifest is not None
    assert {INT8, FP16, "report.html", "results.json"} <= set(manifest["files"])


def test_the_file_says_how_it_was_calibrated(added):
    told = onnx_format.open_(added[0] / INT8).metadata
    making = json.loads(told["kdcompress.int8"])
    assert making["calibration"] | {"sha256": ""} == {
        "split": "train", "images": 128, "seed": 0, "sha256": "",
    }  # fmt: skip
    assert json.loads(told["kdcompress.labels"]) == [str(digit) for digit in range(10)]


@pytest.mark.exhaustive
def test_in_another_folder_all_files_stand_together(finished, added, tmp_path):
    out = tmp_path / "out"
    options = ("--int8-rescue", 1, "--int8-target", "arm", "--int8-images", 20, "--max-drop", 100)
    done = kdcompress(
        "export", finished[0], "--int8", *options, "--rounds", 2, "--out", out, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"student.onnx", "student.safetensors", INT8} <= set(document["files"])
    assert {name for name in document["files"] if not (out / name).exists()} == set()
    making = document["variants"]["int8"]["making"]
    assert (len(making["in_float"]), making["target"], making["activations"]) == (1, "arm", "int8")
    assert making["calibration"]["images"] == 20
    assert read(out, "bench.json")["protocol"]["rounds"] == 2
    assert next(gate for gate in document["gates"] if gate["gate"] == "int8_layers")["figure"] == 9
    assert set(read(out, "bench.json")["artefacts"]) == {"student", "student (int8)"}
    assert "int8_drop" in gates(out)
    assert not (finished[0] / INT8).exists()
    assert (out / INT8).read_bytes() != (added[0] / INT8).read_bytes()


# ---- failures


def test_an_interruption_while_timing_leaves_the_run_as_it_was(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}

    def interrupt(*arguments, **options):
        assert not (run / INT8).exists()  # not before all of it is known
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(variants, "measure", interrupt)
        assert kdcompress("export", run, "--int8", "--max-drop", 100).exit_code == 130
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert not (run / ".derived").exists()


def test_a_run_that_was_killed_while_files_were_placed_can_be_asked_again(run, monkeypatch):
    def killed(*arguments, **options):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(adding, "verdict_entries", killed)
        kdcompress("export", run, "--int8", "--max-drop", 100)
    assert (run / INT8).exists()
    assert RunFolder(run).finished() is not None
    assert kdcompress("export", run, "--int8", "--max-drop", 100).exit_code == 0
    assert INT8 in RunFolder(run).finished()["files"]


@pytest.fixture
def severe(monkeypatch):
    """A limit that no file keeps."""
    to_int8 = variants.to_int8

    def ruined(*arguments, **options):
        return to_int8(*arguments, **{**options, "max_drop": -101.0})

    monkeypatch.setattr(variants, "to_int8", ruined)


def test_a_file_that_loses_too_much_is_set_aside_with_exit_code_3(added, tmp_path, severe):
    folder = shutil.copytree(added[0], tmp_path / "run")
    done = kdcompress("export", folder, "--int8")
    assert done.exit_code == 3
    assert f"the int8 file does not ship: 1 gate failed; it is {folder / 'failed' / INT8}" in done.stderr
    assert "int8_drop: " in done.stderr
    assert "worst layers by signal to noise: " in done.stderr
    assert "try --int8-rescue 3, --int8-ranges percentile, or accept the loss with --max-drop" in done.stderr
    assert (folder / "failed" / INT8).exists()
    assert not (folder / INT8).exists()  # that of the earlier export is not what was asked for now
    assert gates(folder)["int8_drop"]["passed"] is False
    assert gates(folder)["top1_exported"]["passed"] is True
    assert set(read(folder, "results.json")["variants"]) == {"fp16"}
    assert "student (int8)" not in read(folder, "bench.json")["artefacts"]
    manifest = RunFolder(folder).finished()
    assert manifest is not None
    assert INT8 not in manifest["files"]


def test_a_run_whose_int8_fails_ships_the_rest_and_is_not_finished(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(finished[0].parent / "cache"))
    folder = tmp_path / "run"
    done = kdcompress(*TINY, "--set", "export.int8.rescue=10", "--out", folder)
    assert done.exit_code == 3
    assert "the int8 file does not ship: 1 gate failed; it was not made" in done.stderr
    assert "10 layers are to stay in float, and the network has 10 with weights" in done.stderr
    assert (folder / "student.onnx").exists()
    assert (folder / "report.html").exists()
    assert not (folder / INT8).exists()
    assert RunFolder(folder).finished() is None
    assert gates(folder)["int8_layers"]["passed"] is False


def test_a_network_that_the_tools_stumble_over_fails_a_gate(run, monkeypatch):
    def stumble(*arguments, **options):
        raise ValueError("no such operator\nand more")

    monkeypatch.setattr("kdcompress.deploy.ort_tools.QDQQuantizer", stumble)
    done = kdcompress("export", run, "--int8")
    assert done.exit_code == 3
    assert "int8_made: None (limit None): onnxruntime's tools fail on it (ValueError: no such operator)" in (
        done.stderr
    )
    assert not (run / "failed").exists()
    assert gates(run)["int8_made"]["passed"] is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--int8-rescue", 2], "--int8-rescue: belongs to --int8"),
        (["--max-drop", 1, "--fp16"], "--max-drop: belongs to --int8"),
        (["--int8-target", "arm"], "--int8-target: belongs to --int8"),
        (["--rounds", 9], "--rounds: belongs to --int8 and --fp16"),
        (["--int8", "--int8-rescue", -1], "Invalid value for '--int8-rescue'"),
        (["--int8", "--max-drop", 101], "Invalid value for '--max-drop'"),
        (["--int8", "--format", "safetensors"], "--int8: is made from student.onnx; add onnx to --format"),
        (["--fp16", "--format", "safetensors"], "--fp16: is made from student.onnx; add onnx to --format"),
        (
            ["--int8", "--int8-rescue", 10],
            "--int8-rescue 10: the network has 10 layers with weights, and at least one must be int8; "
            "give at most 9",
        ),
    ],
)
def test_what_cannot_be_had_is_one_message_and_nothing_written(finished, options, words):
    before = sorted(path.name for path in finished[0].iterdir())
    done = kdcompress("export", finished[0], *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert sorted(path.name for path in finished[0].iterdir()) == before


def test_a_run_without_its_graph_or_its_results_says_what_to_do(run):
    (run / "student.onnx").unlink()
    done = kdcompress("export", run, "--int8")
    assert done.exit_code == 2
    assert "shipped no student.onnx, from which they are made; name a folder with --out" in done.stderr
    (run / "results.json").unlink()
    done = kdcompress("export", run, "--fp16")
    assert done.exit_code == 2
    assert "holds no student.onnx; finish the run with --resume first" in done.stderr


def test_a_changed_graph_is_not_quantised(run):
    (run / "student.onnx").write_bytes((run / FP16).read_bytes())
    done = kdcompress("export", run, "--int8")
    assert done.exit_code == 2
    assert "student.onnx: has changed since the run" in done.stderr


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_what_is_no_run_says_so(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = kdcompress("export", place, "--int8")
    assert done.exit_code == 2
    assert "no such run folder" in done.stderr or "so it is no run of kdcompress" in done.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("export.int8.rescue=-1", "export.int8.rescue: expected at least 0, got -1"),
        ("export.int8.imags=9", "export.int8.imags: unknown key; did you mean 'images'?"),
        ("export.int8=lots", "export.int8: expected a section, got 'lots'"),
        ("export.fp16=often", "export.fp16: expected true or false, got 'often'"),
        ("export.int8.max_drop=101", "export.int8.max_drop: expected at most 100, got 101"),
    ],
)
def test_a_recipe_that_asks_for_what_there_is_not_says_where(setting, words):
    done = kdcompress("show", "quickstart", "--set", setting)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_recipe_without_the_graph_that_they_are_made_from_is_refused():
    done = kdcompress(
        "show", "quickstart", "--set", "export.formats=[safetensors]", "--set", "export.int8=true",
        "--set", "export.fp16=true",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "export.int8: is made from student.onnx; add onnx to export.formats" in done.stderr
    assert "export.fp16: is made from student.onnx; add onnx to export.formats" in done.stderr


@pytest.mark.parametrize(("value", "images"), [("true", 128), ("{images: 64}", 64), ("false", None)])
def test_true_false_and_a_section_are_understood(value, images):
    done = kdcompress("show", "quickstart", "--json", "--set", f"export.int8={value}")
    assert done.exit_code == 0, done.stderr
    section = json.loads(done.stdout)["export"]["int8"]
    assert (section and section["images"]) == images
