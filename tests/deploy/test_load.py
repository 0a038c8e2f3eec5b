from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors
import safetensors.torch
import torch
from small_student import CLASSES, MODEL, SPEC, images, randomise

import kdcompress
from kdcompress.atomic import sha256_of
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy import image_graph
from kdcompress.deploy.config import read_config, timm_name, write_config
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.formats import safetensors as safetensors_format
from kdcompress.errors import UserError, WeightsError
from kdcompress.networks.build import build


def normalised(x, spec):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return (x - mean) / std


@pytest.mark.parametrize("name", ["", "student.safetensors", "student.onnx"])
def test_a_run_its_weights_and_its_graph_load_to_the_same_classifier(run, student, name):
    module, spec = kdcompress.load(run[0] / name)
    assert not module.training
    x = images(5)
    expected = copy.deepcopy(student).eval()(normalised(x, SPEC))
    torch.testing.assert_close(module(normalised(x, spec)), expected, rtol=1e-3, atol=1e-4)
    assert (spec.channels, spec.height, spec.width, spec.resize, spec.crop) == (3, 16, 16, 18, 16)


def test_weights_load_as_the_plain_network_without_its_normalisation(run, student):
    module, spec = kdcompress.load(run[0])
    assert type(module) is type(student)
    assert spec == SPEC


def test_a_graph_is_a_module_whose_normalisation_is_inside(run):
    module, spec = kdcompress.load(str(run[0] / "student.onnx"), threads=1)
    assert (spec.mean, spec.std) == ((0.0,) * 3, (1.0,) * 3)
    assert module(images(2).requires_grad_()).requires_grad is False


def test_a_run_without_weights_loads_its_graph(run, tmp_path):
    shutil.copy(run[0] / "student.onnx", tmp_path)
    assert kdcompress.load(tmp_path)[1].height == 16


def test_a_foreign_graph_tells_its_size_by_its_shape(run, tmp_path):
    model = onnx.load(run[0] / "student.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "a.onnx")
    assert kdcompress.load(tmp_path / "a.onnx")[1] == InputSpec(3, 16, 16, (0.0,) * 3, (1.0,) * 3)


def test_loading_draws_no_random_numbers(run):
    before = torch.get_rng_state()
    kdcompress.load(run[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_deployed_weights_file_gives_logits_of_images_in_0_to_1_and_gives_the_threads_back(run, student):
    before = torch.get_num_threads()
    file = safetensors_format.open_(run[0] / "student.safetensors", threads=2)
    x = images(3)
    expected = copy.deepcopy(student).eval()(normalised(x, SPEC)).detach().numpy()
    np.testing.assert_allclose(file(x.numpy()), expected, rtol=1e-4, atol=1e-5)
    assert torch.get_num_threads() == before


def test_weights_load_strictly_into_the_familys_own_class(run, student):
    tensors = safetensors.torch.load_file(run[0] / "student.safetensors")
    fresh = build(MODEL, num_classes=len(CLASSES), channels=3, image_size=(16, 16))
    fresh.load_state_dict(tensors, strict=True)
    assert tensors["bn1.num_batches_tracked"].dtype == torch.int64
    with safetensors.safe_open(run[0] / "student.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_weights_have_one_hash_whatever_precision_layout_or_sharing_they_had(student, tmp_path):
    hashes = set()
    twins = [
        student,
        copy.deepcopy(student).double(),
        copy.deepcopy(student).to(memory_format=torch.channels_last),
    ]
    for number, network in enumerate(twins):
        path = tmp_path / f"{number}.safetensors"
        safetensors_format.write(network, SPEC, path, metadata={"recipe": "x", "teacher": "y"})
        hashes.add(sha256_of(path))
    assert len(hashes) == 1


def test_the_config_says_builder_classes_and_input(run):
    document = json.loads((run[0] / "config.json").read_text())
    assert document["schema"] == "kdcompress.config/1"
    assert document["kdcompress"]["builder"] == MODEL
    assert document["num_classes"] == 5
    assert document["label_names"] == list(CLASSES)
    assert document["input"] == SPEC.to_json()
    assert document["num_features"] == 64
    assert "architecture" not in document  # timm has no such network
    assert json.loads((run[0] / "labels.json").read_text()) == list(CLASSES)
    config = read_config(run[0] / "config.json")
    assert (config.model, config.num_classes, config.class_names, config.spec) == (MODEL, 5, CLASSES, SPEC)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("torchvision/resnet18", "resnet18"),
        ("timm/mobilenetv3_small_050", "mobilenetv3_small_050"),
        ("torchvision/mobilenet_v3_small", None),
        ("cifar/resnet18", None),
        ("python:a.b:resnet18", None),
    ],
)
def test_only_a_network_that_timm_can_load_names_an_architecture(model, name):
    assert timm_name(model) == name


def test_timm_loads_a_torchvision_resnet_from_the_folder(tmp_path):
    timm = pytest.importorskip("timm")
    network = randomise(build("torchvision/resnet18", num_classes=5, channels=3, image_size=(32, 32))).eval()
    spec = InputSpec(3, 32, 32, (0.4,) * 3, (0.2,) * 3, resize=36, crop=32)
    write_config(
        tmp_path / "config.json",
        model="torchvision/resnet18",
        num_classes=5,
        spec=spec,
        class_names=CLASSES,
        extra={"num_features": 512},
    )
    safetensors_format.write(network, spec, tmp_path / "student.safetensors", metadata={})
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(theirs(x), network(x))
    assert theirs.pretrained_cfg["mean"] == pytest.approx(spec.mean)
    assert theirs.pretrained_cfg["crop_pct"] == pytest.approx(32 / 36)


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of a run's weights and config, to be spoilt."""
    for name in ("student.safetensors", "config.json"):
        shutil.copy(run[0] / name, tmp_path)
    return tmp_path


def without(key):
    def change(document):
        del document[key]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="kdcompress.config/2"), "schema 'kdcompress.config/2'"),
        (without("input"), "lacks the key 'input'"),
        (lambda d: d["input"].update(surprise=1), "input.surprise: "),
        (lambda d: d.update(num_classes="many"), "num_classes: input should be a valid integer"),
        (lambda d: d.update(num_classes=6), "of another shape"),
        (lambda d: d["kdcompress"].update(builder="cifar/resnet9"), "resnet9"),
        (lambda d: d["kdcompress"].update(builder="python:os:system"), "--allow-code"),
    ],
)
def test_a_spoilt_config_is_one_line(damaged, change, words):
    path = damaged / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        kdcompress.load(damaged)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
def test_a_config_that_is_none_is_one_line(damaged, content):
    (damaged / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        kdcompress.load(damaged)


def test_weights_without_their_config_say_so(damaged):
    (damaged / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        kdcompress.load(damaged / "student.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 200])
def test_truncated_weights_are_one_line(damaged, keep):
    path = damaged / "student.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        kdcompress.load(path)


def test_a_folder_that_is_no_run_says_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        kdcompress.load(tmp_path)


@pytest.mark.parametrize(("name", "words"), [("a.onnx", "no such file"), ("a.pt", "expected a run folder")])
def test_a_path_that_is_nothing_to_load_says_so(tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        kdcompress.load(tmp_path / name)


@pytest.mark.parametrize("sides", [[65536, 65536], [8192, 8193], [0, 1], [1]])
def test_images_of_more_pixels_than_memory_are_refused(sides):
    metadata = {image_graph.KEY: json.dumps({"typical": sides})}
    with pytest.raises(UserError, match="typical"):
        image_graph.contract_of(metadata, Path("a.onnx"))


def test_a_spoilt_description_in_a_graph_is_one_line(run, tmp_path):
    model = onnx.load(run[0] / "student.onnx")
    onnx.helper.set_model_props(model, {"kdcompress.input": "{"})
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"kdcompress\.input"):
        kdcompress.load(tmp_path / "a.onnx")
    assert onnx_format.open_(tmp_path / "a.onnx").metadata == {"kdcompress.input": "{"}
