"""The card can be read by people and by model hubs, and its code runs."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
import torch
import yaml
from evaluated_run import write_evaluated
from PIL import Image
from run_folders import CLASSES, write_run

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.ship import Subject, ship
from kdcompress.networks.build import build
from kdcompress.report.card import as_code, card, escaped, write_card
from kdcompress.report.page import write_report
from kdcompress.report.record import read_run
from kdcompress.report.usage import snippets


def _front_matter(text):
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_head_is_yaml_that_hubs_read(tmp_path):
    head = _front_matter(write_card(write_run(tmp_path / "run")).read_text())
    assert head["pipeline_tag"] == "image-classification"
    assert head["license"] == "unknown"
    assert {"knowledge-distillation", "kd"} <= set(head["tags"])


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"teacher": False},
        {"bench": False, "baseline": False},
        {"labels": False},
        {"backbone": True},
        {"backbone": True, "labels": False},
    ],
    ids=str,
)
def test_the_card_is_whole_whatever_the_run_has(tmp_path, parts):
    text = card(read_run(write_run(tmp_path / "run", **parts)))
    assert not re.search(r"(?<!\[)\bNone\b", text)  # `[None]` is in the code
    assert ("Teacher:" in text) == parts.get("teacher", True)
    assert text.count("```") % 2 == 0
    assert "\n\n\n" not in text


def test_a_run_that_failed_its_gates_says_so(tmp_path):
    text = card(read_run(write_run(tmp_path / "run", gate_fails=True)))
    assert "**Not fit to ship:** 1 of 12 ship gates failed (top1_exported)" in text


def test_folders_of_the_machine_are_not_passed_on(tmp_path):
    folder = write_run(tmp_path / "run")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["teacher"]["weights"] = "/home/someone/private/teacher.pt"
    recipe["data"]["root"] = "/home/someone/images"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = card(read_run(folder))
    assert "someone" not in text
    assert "from teacher.pt" in text


def test_markup_in_names_is_shown_as_it_is():
    assert escaped("a|b *c*\n<d>") == r"a\|b \*c\* \<d\>"


def test_every_snippet_compiles_and_has_this_runs_sizes(tmp_path):
    record = read_run(write_run(tmp_path / "run"))
    found = snippets(record)
    assert [snippet.title.split(" ")[0] for snippet in found] == ["onnxruntime", "kdcompress", "plain"]
    for snippet in found:
        compile(snippet.code, snippet.title, "exec")
        assert "(32, 32)" in snippet.code
        assert max(map(len, snippet.code.splitlines())) <= 110


def test_the_card_of_a_backbone_promises_no_classes(tmp_path):
    text = card(read_run(write_run(tmp_path / "run", backbone=True)))
    head = _front_matter(text)
    assert head["pipeline_tag"] == "image-feature-extraction"
    assert "metrics" not in head
    assert "A backbone: it turns an image into 256 features and has no classifier.\n" in text
    assert "It names nothing" in text
    assert "classifier for" not in text
    assert "softmax" not in text
    assert '["embedding"]' in text


@pytest.mark.parametrize(
    "model", ["cifar/resnet8", pytest.param("torchvision/mobilenet_v3_small", marks=pytest.mark.exhaustive)]
)
def test_a_backbones_snippets_run(tmp_path, monkeypatch, capsys, model):
    folder = write_run(tmp_path / "run", backbone=True)
    for name in ("student.onnx", "student.safetensors", "config.json"):
        (folder / name).unlink()
    torch.manual_seed(0)
    network = build(model, num_classes=0, channels=3, image_size=(32, 32))
    images = torch.rand(12, 3, 32, 32)
    batches = [(images, torch.arange(12) % 3)]
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["student"]["model"] = model
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    spec = InputSpec(3, 32, 32, (0.5,) * 3, (0.2,) * 3)
    ship(Subject(network, model, spec, (), lambda: batches, {}), folder, formats=["onnx", "safetensors"])
    Image.fromarray(np.full((40, 30, 3), 99, np.uint8)).save(folder / "image.jpg")
    monkeypatch.chdir(folder)
    printed = []
    for snippet in snippets(read_run(folder)):
        values = {}
        exec(compile(snippet.code, snippet.title, "exec"), values)
        embedding = torch.as_tensor(values["embedding"])
        printed.append(torch.nn.functional.normalize(embedding))
        assert capsys.readouterr().out
    assert len(printed) == 3
    for other in printed[1:]:
        torch.testing.assert_close(other, printed[0], rtol=1e-3, atol=1e-4)


def test_no_snippet_names_a_file_that_was_not_shipped(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "student.onnx").unlink()
    assert all("student.onnx" not in snippet.code for snippet in snippets(read_run(folder)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", [None, 16])
def test_the_onnxruntime_snippet_runs_and_names_the_class(tmp_path, monkeypatch, capsys, channels, crop):
    folder = write_run(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["input"] |= {"channels": channels, "height": 16, "width": 16, "resize": crop and 18, "crop": crop}
    config["input"] |= {"mean": [0.5] * channels, "std": [0.2] * channels}
    (folder / "config.json").write_text(json.dumps(config))
    _onnx_that_always_says(folder / "student.onnx", 7, channels)
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(folder / "image.jpg")
    monkeypatch.chdir(folder)
    code = next(snippet.code for snippet in snippets(read_run(folder)) if "onnxruntime" in snippet.title)
    exec(compile(code, "snippet", "exec"), {})
    assert capsys.readouterr().out == f"{CLASSES[7]}\n"


def _onnx_that_always_says(path, number, channels):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    images = helper.make_tensor_value_info("images", kind, ["batch", channels, 16, 16])
    logits = helper.make_tensor_value_info("logits", kind, ["batch", 10])
    weight = onnx.numpy_helper.from_array(np.zeros((channels, 10), np.float32), "weight")
    bias = onnx.numpy_helper.from_array(np.eye(10, dtype=np.float32)[number], "bias")
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["map"]),
        helper.make_node("Flatten", ["map"], ["pooled"]),
        helper.make_node("Gemm", ["pooled", "weight", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "constant", [images], [logits], [weight, bias])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def test_an_ensemble_has_one_line_in_the_card_and_in_the_report(tmp_path):
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    line = "ensemble.onnx: top-1 93.20 %, 3.0 times the student's multiply-accumulates, 4.2 MB"
    (folder / "results.json").write_text(json.dumps({**results, "ensemble": {"sentence": line}}))
    (folder / "ensemble.onnx").write_bytes(b"graph")
    record = read_run(folder)
    assert f"\n{line}.\n" in card(record)
    assert "`ensemble.onnx`" in card(record)
    assert "top-1 93.20 %, 3.0 times" in write_report(folder).read_text(encoding="utf-8")


def test_a_reconstructed_method_is_called_so(tmp_path):
    folder = write_run(tmp_path / "run")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "method": {"name": "scd"}}))
    text = card(read_run(folder))
    assert "- about the method: Similarity and consistency" in text
    assert "our reconstruction from the abstract" in text


def test_text_from_outside_is_shown_as_text():
    shown = escaped("a~b~ & www.x.org https://x.org me@x.org\r\u2028\x1b[2J")
    assert shown == r"a\~b\~ \& www\.x.org https\://x.org me\@x.org  \\x1b\[2J"


def test_names_are_code_whatever_they_hold(tmp_path):
    assert as_code("cifar/resnet8") == "`cifar/resnet8`"
    assert as_code("x`|<img src=x>\n#") == "`` x`\\|<img src=x> # ``"
    folder = write_evaluated(tmp_path / "run", counts=(40, 10), names=["x`|<img src=x>\n# y", "b"])
    (row,) = [line for line in card(read_run(folder)).splitlines() if "always the largest class" in line]
    assert "`` x`\\|<img src=x> # y ``" in row


def test_no_control_character_reaches_a_page(tmp_path):
    folder = write_run(tmp_path / "run")
    for name, key in (("results.json", "gain"), ("manifest.json", "command")):
        document = json.loads((folder / name).read_text())
        if key == "gain":
            document["gain"]["cause"] = {"sentence": "\x1b[2J\u2028", "advice": "\x07"}
        else:
            document["command"] = "kdcompress \x1b]0;title\x07"
        (folder / name).write_text(json.dumps(document))
    record = read_run(folder)
    for text in (card(record), write_report(folder).read_text(encoding="utf-8")):
        assert not {"\x1b", "\x07", "\u2028"} & set(text)
