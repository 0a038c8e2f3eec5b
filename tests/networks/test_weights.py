from __future__ import annotations

import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcompress.data.cache import cache_folder
from kdcompress.data.input_spec import InputSpec
from kdcompress.errors import DownloadError, NonFiniteWeights, WeightsError
from kdcompress.networks.build import build
from kdcompress.networks.families._pretrained import fetch_weights
from kdcompress.networks.read_checkpoint import read_state_dict
from kdcompress.networks.weights import classifier_classes, default_weights, load_into, resolve

MODEL = "cifar/resnet8"
STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


def tiny(num_classes: int = 3) -> nn.Module:
    return build(MODEL, num_classes=num_classes, channels=1, image_size=(8, 8))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# ---------------------------------------------------------------- loading


def test_loading_is_strict_and_complete():
    state = {key: torch.full_like(value, 2) for key, value in tiny().state_dict().items()}
    network = tiny()
    result = load_into(network, state, source="w.pt", allow_other_head=False)
    assert (result.num_classes_in_weights, result.head_replaced) == (3, False)
    assert all((value == 2).all() for value in network.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64])
def test_weights_of_any_float_type_are_loaded(dtype):
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in tiny().state_dict().items()
    }
    network = tiny()
    load_into(network, state, source="w.pt", allow_other_head=False)
    assert torch.equal(network.fc.weight, state["fc.weight"].float())
    state["fc.weight"][0, 0] = torch.nan
    with pytest.raises(NonFiniteWeights, match=r"'fc.weight' holds values that are not finite"):
        load_into(network, state, source="w.pt", allow_other_head=False)


def test_another_class_count_keeps_the_networks_own_classifier_when_that_is_welcome():
    network, other = tiny(3), tiny(7)
    own_head = network.fc.weight.clone()
    result = load_into(network, other.state_dict(), source="w.pt", allow_other_head=True)
    assert (result.num_classes_in_weights, result.head_replaced) == (7, True)
    assert torch.equal(network.fc.weight, own_head)
    assert torch.equal(network.conv1.weight, other.conv1.weight)


def test_another_class_count_is_an_error_when_it_is_not_welcome_and_nothing_is_changed():
    network = tiny(3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"w.pt: these weights have 7 classes, the network has 3"):
        load_into(network, tiny(7).state_dict(), source="w.pt", allow_other_head=False)
    assert_same(network.state_dict(), before)


def test_a_bare_backbone_loads_where_another_head_is_welcome():
    backbone = {key: value for key, value in tiny().state_dict().items() if not key.startswith("fc.")}
    result = load_into(tiny(), backbone, source="w.pt", allow_other_head=True)
    assert (result.num_classes_in_weights, result.head_replaced) == (None, True)
    with pytest.raises(WeightsError, match="no classifier"):
        load_into(tiny(), backbone, source="w.pt", allow_other_head=False)


def test_weights_of_another_network_are_listed_key_by_key():
    other = build("cifar/resnet14", num_classes=3, channels=1, image_size=(8, 8)).state_dict()
    del other["bn1.weight"]
    other["conv1.weight"] = torch.zeros(8, 1, 3, 3)
    network = tiny()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_into(network, other, source="w.pt", allow_other_head=True)
    text = str(caught.value)
    assert "missing: bn1.weight" in text
    assert "unexpected: layer1.1.conv1.weight, " in text
    assert ", and 33 more" in text
    assert "of another shape: conv1.weight (8, 1, 3, 3) for (16, 1, 3, 3)" in text
    assert_same(network.state_dict(), before)


def test_a_classifier_of_another_width_is_another_network_not_another_head():
    state = dict(tiny().state_dict())
    state["fc.weight"] = torch.zeros(3, 99)
    with pytest.raises(WeightsError, match=r"of another shape: fc.weight \(3, 99\) for \(3, 64\)"):
        load_into(tiny(), state, source="w.pt", allow_other_head=True)


def test_values_that_are_not_finite_are_refused():
    state = {key: value.clone() for key, value in tiny().state_dict().items()}
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteWeights, match=r"'layer1.0.conv1.weight' holds values that are not finite"):
        load_into(tiny(), state, source="w.pt", allow_other_head=False)


def test_checkpoints_from_before_batch_counters_load():
    state = {
        key: value for key, value in tiny().state_dict().items() if not key.endswith("num_batches_tracked")
    }
    network = tiny()
    assert not load_into(network, state, source="w.pt", allow_other_head=False).head_replaced
    assert torch.equal(network.conv1.weight, state["conv1.weight"])


def test_a_network_whose_only_child_is_called_model_gets_its_prefix_back(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 3)

    network, other = Wrapped(), Wrapped()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    state = read_state_dict(tmp_path / "w.pt")
    assert classifier_classes(state, other) == 3
    load_into(other, state, source="w.pt", allow_other_head=False)
    assert torch.equal(other.model.weight, network.model.weight)


def test_the_class_count_is_read_from_the_weights_not_from_the_network():
    assert classifier_classes(tiny(7).state_dict(), tiny(3)) == 7
    assert classifier_classes({}, tiny(3)) is None
    assert classifier_classes({}, nn.Identity()) is None


# ---------------------------------------------------------------- finding


def run_folder(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    save_file(tiny().state_dict(), folder / "student.safetensors")
    spec = InputSpec(channels=1, height=8, width=10, mean=(0.3,), std=(0.2,))
    document = {
        "schema": "kdcompress.config/1",
        "label_names": ["a", "b", "c"],
        "input": spec.to_json(),
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def test_a_run_folder_brings_its_weights_and_what_they_expect(tmp_path):
    folder = run_folder(tmp_path / "run")
    for spec in (folder, folder / "student.safetensors"):
        found = resolve(str(spec), MODEL)
        assert (found.mean, found.std, found.size, found.class_names) == (
            (0.3,),
            (0.2,),
            (8, 10),
            ("a", "b", "c"),
        )
        assert found.sha256 == hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()
        load_into(tiny(), found.state_dict, source=found.source, allow_other_head=False)


def test_a_file_brings_its_weights_alone(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    found = resolve(str(tmp_path / "w.pt"), MODEL)
    assert_same(found.state_dict, STATE)
    assert (found.mean, found.std, found.size, found.class_names, found.license) == (None,) * 5


@pytest.mark.parametrize(("changes", "message"), [
    ({"schema": "kdcompress.config/2"}, "is newer than this kdcompress"),
    ({"schema": "other"}, "it is no file of kdcompress"),
    ({"input": {"mean": [0.5]}}, "is damaged: input: lacks the key"),
])  # fmt: skip
def test_run_folders_that_cannot_be_read_are_said(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        resolve(str(run_folder(tmp_path / "run", **changes)), MODEL)


@pytest.mark.parametrize(("spec", "model", "message"), [
    ("nowhere.pt", MODEL, "no weights file 'nowhere.pt'"),
    ("some/where", MODEL, "no weights file 'some/where'"),
    ("IMAGENET1K_V1", MODEL, "no published weights 'IMAGENET1K_V1'; pass a .safetensors, .pt or .pth file"),
    ("IMAGENET1K_V3", "torchvision/resnet50", "no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V"),
    ("IMAGENET1K_V1", "python:a:b", "is not a file"),
])  # fmt: skip
def test_weights_that_do_not_exist_are_said(spec, model, message):
    with pytest.raises(WeightsError, match=message):
        resolve(spec, model)


def test_an_empty_folder_is_no_run_folder(tmp_path):
    with pytest.raises(
        WeightsError, match=r"is no finished run folder \(no student.safetensors and no config.json\)"
    ):
        resolve(str(tmp_path), MODEL)


class Served:
    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.requests = 0


@pytest.fixture
def served(downloads):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests += 1
            body = found.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (50 if "short" in self.path else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found = Served(f"http://127.0.0.1:{server.server_port}")
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_torchvisions_weights_bring_names_normalisation_and_terms(tmp_path, monkeypatch, served):
    """With a small file in the place of the published one."""
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    network = build("torchvision/mobilenet_v3_small", num_classes=1000, channels=3, image_size=(32, 32))
    file = tmp_path / "mobilenet.pth"
    torch.save(network.state_dict(), file)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    served.files[f"/mobilenet-{digits}.pth"] = file.read_bytes()
    weights = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(weights), "url", f"{served.url}/mobilenet-{digits}.pth", raising=False)
    found = resolve("IMAGENET1K_V1", "torchvision/mobilenet_v3_small")
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.size == (224, 224)
    assert found.class_names is not None
    assert len(found.class_names) == 1000
    assert "ImageNet" in (found.license or "")
    assert (cache_folder() / "weights" / f"mobilenet-{digits}.pth").is_file()
    load_into(network, found.state_dict, source=found.source, allow_other_head=False)


def test_every_torchvision_network_has_weights_by_default():
    from torchvision import models

    from kdcompress.networks.families.torchvision import NAMES

    for name in NAMES:
        assert default_weights(f"torchvision/{name}") in models.get_model_weights(name).__members__
    assert default_weights("torchvision/mobilenet_v2") == "IMAGENET1K_V2"


@pytest.mark.parametrize("model", [MODEL, "python:package.module:function"])
def test_other_families_have_none(model):
    assert default_weights(model) is None


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("mobilenetv3_small_050", "lamb_in1k"),
        ("vit_tiny_patch16_224", None),  # for images of one size
        ("convnextv2_atto", None),  # not for commercial use
    ],
)
def test_timms_default_weights_suit_any_size_and_use(name, tag):
    pytest.importorskip("timm")
    assert default_weights(f"timm/{name}") == tag


def test_densenets_published_keys_become_the_networks():
    from kdcompress.networks.families.torchvision import _DENSENET_KEY

    old = "features.denseblock1.denselayer2.norm.1.running_mean"
    assert _DENSENET_KEY.sub(r"\1\2", old) == "features.denseblock1.denselayer2.norm1.running_mean"
    assert _DENSENET_KEY.sub(r"\1\2", "features.norm5.weight") == "features.norm5.weight"


def test_timms_weights_are_found_by_tag(monkeypatch, served):
    pytest.importorskip("timm")
    network = build("timm/mobilenetv3_small_050", num_classes=1000, channels=3, image_size=(32, 32))
    folder = cache_folder() / "made"
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    path = "/timm/mobilenetv3_small_050.lamb_in1k/resolve/main/model.safetensors"
    served.files[path] = (folder / "model.safetensors").read_bytes()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    found = resolve("lamb_in1k", "timm/mobilenetv3_small_050")
    assert found.size == (224, 224)
    load_into(network, found.state_dict, source=found.source, allow_other_head=False)
    with pytest.raises(WeightsError, match="timm/mobilenetv3_small_050: no weights 'nope'"):
        resolve("nope", "timm/mobilenetv3_small_050")


@pytest.mark.usefixtures("downloads")
def test_published_weights_are_kept_in_the_cache_and_a_failure_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    with pytest.raises(DownloadError, match=r"cannot be reached .*; .*--set teacher\.weights=FILE$"):
        fetch_weights("http://127.0.0.1:1/main/a%20b.pth", progress=False)
    (tmp_path / "weights" / "a b.pth").write_bytes(b"x")
    (tmp_path / "weights" / "c.pth").write_bytes(b"x")
    assert fetch_weights("http://127.0.0.1:1/a%20b.pth", progress=False) == tmp_path / "weights" / "a b.pth"
    assert fetch_weights("http://127.0.0.1:1/x", progress=True, file_name="c.pth").name == "c.pth"
