"""`kdcompress bench` as scripts use it: names, documents, exit codes, and mistakes told before it starts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from deploy.small_student import randomise

from kdcompress.bench.measure import Protocol
from kdcompress.cli import main
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.config import write_config
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.networks.build import build
from kdcompress.progress import Progress
from kdcompress.tools import bench as timing
from kdcompress.tools.bench import BenchRequest, bench

SPEC = InputSpec(1, 8, 8, mean=(0.3,), std=(0.35,))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "PROTOCOL", Protocol(block_s=0.01, turns=1, min_calls=2, warmup_s=0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A student for the digits in both formats; never changed by a test."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    network = randomise(build("cifar/resnet8", num_classes=10, channels=1, image_size=(8, 8)))
    onnx.write(network.eval(), SPEC, folder / "student.onnx", metadata={"input": json.dumps(SPEC.to_json())})
    safetensors.write(network, SPEC, folder / "student.safetensors", metadata={})
    write_config(
        folder / "config.json", model="cifar/resnet8", num_classes=10, spec=SPEC,
        class_names=tuple("0123456789"), extra={},
    )  # fmt: skip
    return folder


@pytest.fixture
def student(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run") / "student.onnx"


def kdcompress(*arguments):
    return CliRunner().invoke(main, ["bench", *(str(argument) for argument in arguments)])


def _once(*files, **options):
    return bench(
        BenchRequest(tuple(map(str, files)), threads=(1,), rounds=1, **options), Progress(quiet=True)
    )


def test_a_document_a_table_and_a_plot(student, tmp_path):
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"
    done = kdcompress(student, "--threads", 1, "--rounds", 1, "--out", out, "--plot", plot, "--json", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text())
    assert document["schema"] == "kdcompress.bench/1"
    assert document["not_met"] == []
    (result,) = document["results"]
    assert (result["artefact"], result["runtime"], result["precision"]) == ("student", "onnxruntime", "fp32")
    assert (result["input"], result["images"]) == ([1, 1, 8, 8], "noise")
    artefact = document["artefacts"]["student"]
    assert artefact["params"] > 70_000
    assert artefact["macs"] > 100_000
    assert document["aa"]["artefact"] == "student"
    assert plot.read_text().startswith("<svg")


def test_without_json_it_is_a_table(student):
    done = kdcompress(student, "--threads", 1, "--rounds", 1)
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("student fp32")]
    assert "onnxruntime" in line
    assert "A/A control" in done.stdout
    assert "timed on noise" in done.stdout


def test_both_formats_are_one_network_under_the_names_of_a_run(student):
    document = _once(student, student.with_suffix(".safetensors"), baseline=str(student))
    onnx_result, torch_result = document["results"]
    assert [r["artefact"] for r in document["results"]] == ["student", "student (PyTorch)"]
    assert torch_result["runtime"] == "torch"
    assert torch_result["parity"]["max_err_over_spread"] < 1e-4
    assert onnx_result["vs_baseline"] is None
    assert torch_result["vs_baseline"]["name"] == "student"
    described = document["artefacts"].values()
    assert len({entry["macs"] for entry in described}) == 1


def test_two_files_are_compared_without_being_asked(student, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(student.read_bytes())
    document = _once(student, other)
    assert [result["vs_baseline"] and result["vs_baseline"]["name"] for result in document["results"]] == [
        None, "student",
    ]  # fmt: skip
    done = kdcompress(student, other, "--threads", 1, "--rounds", 1)
    assert "vs baseline" in done.stdout
    third = tmp_path / "third.onnx"
    third.write_bytes(student.read_bytes())
    assert all(result["vs_baseline"] is None for result in _once(student, other, third)["results"])


@pytest.mark.exhaustive
def test_equal_classes_on_noise_are_no_figure(student):
    done = kdcompress(student, student.with_suffix(".safetensors"), "--threads", 1, "--rounds", 1)
    assert "timed on noise" in done.stdout
    assert "same class" not in done.stdout
    done = kdcompress(
        student, student.with_suffix(".safetensors"), "--threads", 1, "--rounds", 1,
        "--recipe", "quickstart",
    )  # fmt: skip
    assert "same class" in done.stdout


def test_a_baseline_that_is_not_among_the_files_is_timed_too(student, tmp_path):
    other = shutil.copy(student, tmp_path / "teacher.onnx")
    document = _once(student, baseline=str(other))
    assert [r["artefact"] for r in document["results"]] == ["teacher", "student"]
    assert document["results"][1]["vs_baseline"]["name"] == "teacher"
    assert document["aa"]["artefact"] == "teacher"


def test_names_can_be_given_and_a_file_be_timed_against_itself(student):
    document = _once(f"one={student}", f"two={student}", baseline="one")
    assert list(document["artefacts"]) == ["one", "two"]
    assert document["results"][1]["vs_baseline"]["name"] == "one"
    assert document["results"][1]["parity"]["max_err_over_spread"] == 0


def test_files_of_one_name_are_told_apart(student, tmp_path):
    (tmp_path / "other").mkdir()
    other = shutil.copy(student, tmp_path / "other" / "student.onnx")
    assert list(_once(student, other)["artefacts"]) == [str(student), str(other)]


def test_with_a_recipe_the_images_are_real_and_the_accuracy_is_told(student):
    document = _once(student, recipe="quickstart")
    (result,) = document["results"]
    assert result["images"] == "real"
    accuracy = document["artefacts"]["student"]["accuracy"]
    assert (accuracy["split"], accuracy["n"]) == ("test", 180)
    assert 0 <= accuracy["top1"] <= 0.5  # untrained
    scored = CliRunner().invoke(main, ["evaluate", str(student), "--recipe", "quickstart", "--json"])
    assert accuracy["top1"] == json.loads(scored.stdout)["top1"]


def test_a_condition_that_holds_ends_with_3_and_a_line_after_the_document(student, tmp_path):
    out = tmp_path / "out.json"
    options = (student, "--threads", 1, "--rounds", 1, "-q", "--out", out, "--json")
    done = kdcompress(*options, "--fail-if", "p50 > 1s", "--fail-if", "rss > 1MB")
    assert done.exit_code == 3
    assert done.stderr.startswith(
        "Error: --fail-if 'rss > 1MB': student (onnxruntime fp32, threads 1, batch 1): rss is "
    )
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["not_met"] == json.loads(out.read_text())["not_met"] != []
    done = kdcompress(*options, "--compare", out, "--fail-if", "p50 > 1000 * old")
    assert (done.exit_code, json.loads(done.stdout)["compare"]["file"]) == (0, "out.json")
    assert done.stderr == ""
    changed = json.loads(out.read_text())
    changed["env"]["cpu"] = "another"
    out.write_text(json.dumps(changed))
    done = kdcompress(*options[:-3], "--json", "--compare", out)
    assert f"Warning: {out} is not comparable: another processor: 'another', now " in done.stderr
    done = kdcompress(*options, "--compare", out, "--fail-if", "size >= old")
    assert done.exit_code == 3


def test_what_cannot_be_measured_ends_with_3_after_the_rest(student, tmp_path):
    broken = tmp_path / "fixed.onnx"
    graph = onnx.onnx.load(student)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.onnx.save(graph, broken)
    done = kdcompress(student, broken, "--threads", 1, "--rounds", 1, "--json")
    assert done.exit_code == 3
    assert [r["artefact"] for r in json.loads(done.stdout)["results"]] == ["student"]
    assert "Error: 1 of 2 results measured" in done.stderr
    assert "batch is fixed at 7, asked for 1" in done.stderr


def test_threads_and_batches_are_lists(student):
    done = kdcompress(student, "--threads", "1", "--batch", "1,2", "--rounds", 1, "--json")
    assert [(r["threads"], r["batch"]) for r in json.loads(done.stdout)["results"]] == [(1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "expected counts up to 1024 such as 1,all, got '0'"),
        (["--batch", "all"], "expected counts up to 1024 such as 1,8, got 'all'"),
        (["--target", "sssh://board"], "--target sssh://board: expected local, ssh://user@host[:port] or"),
        (["--target", "ssh://a:secret@board"], "passwords are not taken, keys and agents are"),
        (["--target", "ssh://-oProxyCommand=x"], "expected ssh://user@host or ssh://user@host:port"),
        (["--target", "pack:"], "expected pack:DIR"),
        (["--target", "ssh://board", "--runtime", "torch"], "'torch' needs more than a target must have"),
        (["--target", "ssh://board", "--ssh-config", "absent"], "--ssh-config absent: no such file"),
        (["--target", "ssh://board", "--remote-python", "python3; id"], "letters, digits and _ . / + -"),
        (["--target", "pack:there", "--out", "out.json"], "--out: belongs to `bench --merge`"),
        (["--merge", "absent.json"], "FILE: was said when the pack was made"),
        (["--runtime", "onnxruntim"], "unknown runtime 'onnxruntim'; did you mean 'onnxruntime'?"),
        (
            ["--runtime", "torch"],
            "'torch' takes .safetensors files, and none of the files is one",
        ),
        (["--fail-if", "p50 >"], "expected a number or a metric"),
        (["--fail-if", "studnt.p50 > 1"], "no artefact 'studnt'; did you mean 'student'?"),
        (["--fail-if", "p50 > old"], "'old' is of an earlier document; give it with --compare"),
        (["--fail-if", "ratio < 2"], "a ratio is to a baseline; give it with --baseline"),
        (["--fail-if", "top1 < 90%"], "top1 is known with the data of a --recipe"),
        (["--compare", "absent.json"], "absent.json: cannot be read"),
        (["--out", "absent/out.json"], "there is no folder absent"),
        (["--plot", "plot.pdf"], "expected a name that ends in .svg or .png"),
        (["--baseline", "absent.onnx"], "absent.onnx: no such file"),
        (["--recipe", "quickstrt"], "did you mean 'quickstart'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_and_nothing_is_measured(student, options, message, monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda *_, **__: pytest.fail("measured"))
    done = kdcompress(student, *options)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_files_that_are_none_are_refused(student, tmp_path):
    (tmp_path / "a.txt").touch()
    for file, message in (
        (tmp_path / "a.txt", "expected a file that ends in .onnx (ONNX), .safetensors (PyTorch)"),
        (student.parent, "is a folder; name a file in it"),
        (tmp_path / "b.onnx", "no such file"),
    ):
        done = kdcompress(file)
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    done = kdcompress(student, student)
    assert "give them names of their own: one=" in done.stderr


def test_an_open_image_size_is_asked_for_and_then_used(student):
    graph = onnx.onnx.load(student)
    for axis in graph.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "side"
    del graph.metadata_props[:], graph.graph.value_info[:]
    onnx.onnx.save(graph, student)
    assert "leaves its image size open; say it with --input-size" in kdcompress(student).stderr
    document = _once(student, input_size=16)
    assert document["results"][0]["input"] == [1, 1, 16, 16]


def test_a_class_of_the_users_times_any_file(tmp_path):
    runtime = tmp_path / "mine.py"
    runtime.write_text(
        "class Mine:\n"
        "    def load(self, path, threads, batch, shape):\n"
        "        return shape\n"
        "    def run(self, images):\n"
        "        return images.reshape(len(images), -1)\n"
        "    def info(self):\n"
        "        return {'provider': 'mine', 'version': '1'}\n"
    )
    (tmp_path / "net.mine").write_text("weights")
    document = _once(tmp_path / "net.mine", runtimes=(f"{runtime}:Mine",), input_size=4)
    (result,) = document["results"]
    assert (result["provider"], result["precision"], result["input"]) == ("mine", "unknown", [1, 3, 4, 4])
