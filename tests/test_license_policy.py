"""`--license-policy permissive`: what it lets pass, what it stops, and what a user can state."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from torchvision.models import get_model_weights

from kdcompress.cli import main
from kdcompress.networks import weights
from kdcompress.networks.families import torchvision
from kdcompress.networks.from_recipe import LoadedNetwork
from kdcompress.report import documents
from kdcompress.run.licences import LicenceRefused, Licensed, check_licences


def run(licence, extra=None):
    data = SimpleNamespace(name="pictures", license=licence)
    return SimpleNamespace(data=data, recipe=SimpleNamespace(data=SimpleNamespace(extra=extra)))


def test_weights_that_a_builder_loads_have_the_licence_that_is_stated():
    own = {"teacher": LoadedNetwork(None, None, False, 2, own_weights=True)}
    started = run("MIT")
    for licence in (None, "own"):
        started.recipe.teacher = SimpleNamespace(model="python:mine:net", license=licence)
        if licence is None:
            with pytest.raises(
                LicenceRefused, match="the weights that python:mine:net loads: the licence is not"
            ):
                check_licences(started, own, "permissive")
    check_licences(started, own, "permissive")


def test_the_manifest_records_what_a_builder_loads_and_the_stated_licence():
    recipe = SimpleNamespace(teacher=SimpleNamespace(model="python:mine:net", license="own"))
    start = LoadedNetwork(None, None, False, 2, own_weights=True)
    assert documents.teacher_entry(recipe, start, "ab" * 32) == {
        "model": "python:mine:net", "weights": documents.OWN_WEIGHTS, "sha256": "ab" * 32, "license": "own",
    }  # fmt: skip


def test_the_manifest_records_the_licences_of_peers_that_start_from_weights():
    peers = [SimpleNamespace(model=f"cifar/resnet{n}", weights=w) for n, w in ((8, "random"), (14, "NAMED"))]
    loaded = {"peer1": LoadedNetwork(None, None, False, 2), "peer2": network("MIT")}
    assert documents.peer_entries(SimpleNamespace(peers=peers), loaded) == [
        {"model": "cifar/resnet14", "weights": "NAMED", "sha256": "0", "license": "MIT"}
    ]


def network(licence):
    return LoadedNetwork(None, weights.ResolvedWeights({}, "0", "NAMED", license=licence), False, 2)


@pytest.mark.parametrize(
    ("licence", "use"),
    [
        ("MIT", "allowed"),
        ("CC BY 4.0", "allowed"),
        ("cc-by-sa-4.0", "allowed"),
        ("apache-2.0", "allowed"),
        ("BSD-3-Clause", "allowed"),
        ("own", "allowed"),
        ("images: MIT; teacher's weights: apache-2.0", "allowed"),
        ("images: MIT; teacher's weights: apple-amlr", "not known"),
        ("cc-by-nc-4.0", "forbidden"),
        ("CC BY-NC-SA 4.0", "forbidden"),
        ("images: MIT; teacher's weights: cc-by-nc-4.0", "forbidden"),
        ("for non-commercial research", "forbidden"),
        ("CC BY, non commercial", "forbidden"),
        ("MIT, not for commercial use", "forbidden"),
        ("cc-by-nd-4.0", "not known"),
        ("CC BY, no derivatives", "not known"),
        ("apple-amlr", "not known"),
        ("unknown", "not known"),
        ("", "not known"),
        (None, "not known"),
    ],
)
def test_a_licence_allows_commercial_use_forbids_it_or_is_not_known(licence, use):
    assert Licensed("x", "data.license", licence).commercial_use == use


def test_the_policy_names_everything_that_stands_against_it_and_what_to_state():
    networks = {"student": LoadedNetwork(None, None, False, 2), "teacher": network("cc-by-nc-4.0")}
    networks["peer2"] = network(None)
    extra = SimpleNamespace(license="odd")
    with pytest.raises(LicenceRefused) as refused:
        check_licences(run(None, extra), networks, "permissive")
    lines = str(refused.value).splitlines()
    assert lines[1:] == [
        "  the images of pictures: the licence is not known; if you know it, state it with --set "
        "data.license=NAME",
        "  the generated images: 'odd' is not known to kdcompress; if you know it, state it with --set "
        "data.extra.license=NAME",
        "  the weights NAMED: commercial use is not allowed (cc-by-nc-4.0)",
        "  the weights NAMED: the licence is not known; if you know it, state it with --set "
        "peers.1.license=NAME",
    ]
    assert refused.value.exit_code == 3
    check_licences(run(None, extra), networks, "any")
    check_licences(run("MIT"), {"student": network("own")}, "permissive")


def test_every_weights_of_torchvision_says_on_what_it_was_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision, "fetch_weights", lambda *_, **__: tmp_path / "w")
    monkeypatch.setattr(torchvision, "read_state_dict", lambda path: {})
    monkeypatch.setattr(torchvision, "sha256_of", lambda path: "0")
    published = [(name, enum) for name in torchvision.NAMES for enum in get_model_weights(name).__members__]
    assert len(published) > 80
    for name, enum in published:
        note = torchvision.pretrained(name, enum, False, None).license_note
        assert Licensed("x", "teacher.license", note).commercial_use == "forbidden"


def test_a_student_of_another_run_has_the_licences_of_what_it_was_trained_from(tmp_path):
    def known(document):
        whole = {"schema": "kdcompress.manifest/1", **document}
        (tmp_path / "manifest.json").write_text(json.dumps(whole))
        return weights._licence_of_run(tmp_path / "manifest.json")

    images = {"name": "pictures", "license": "MIT"}
    drawn = {"model": "cifar/resnet8", "weights": "random", "license": None}
    teacher = {"model": "torchvision/resnet18", "weights": "IMAGENET1K_V2", "license": "cc-by-nc-4.0"}
    assert known({"data": images, "teacher": None, "student": drawn}) == "images: MIT"
    assert known({"data": images, "teacher": {**teacher, "weights": None, "license": None}}) == "images: MIT"
    told = "images: MIT; teacher's weights: cc-by-nc-4.0"
    assert known({"data": images, "teacher": teacher, "student": drawn}) == told
    assert known({"data": {**images, "license": None}, "teacher": teacher}) is None
    assert known({"data": images, "teacher": {**teacher, "license": None}}) is None
    own = {**teacher, "weights": "those that its builder loads", "license": None}
    assert known({"data": images, "teacher": own}) is None
    more = {"name": "more", "sha256": "0", "license": "apple-amlr"}
    assert known({"data": {**images, "extra": more}}) == "images: MIT; generated images: apple-amlr"
    assert known({"data": {**images, "extra": {**more, "license": None}}}) is None
    peers = {"data": images, "peers": [{**drawn, "weights": "IMAGENET1K_V1", "license": "cc-by-nc-4.0"}]}
    assert known(peers) == "images: MIT; weights of peer 1: cc-by-nc-4.0"
    assert known({"data": None}) is None
    assert weights._licence_of_run(tmp_path / "no") is None


def test_a_run_on_ones_own_images_stops_before_the_training_until_their_licence_is_stated(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (16, 16), (number * 40, 0, 200)).save(folder / f"{number}.png")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "data: {dataset: imagefolder, image_size: 16, batch_size: 4, workers: 0}\n"
        "student: {model: cifar/resnet8, weights: random}\nmethod: {name: none}\n"
        "train: {epochs: 1, max_steps: 1}\noptim: {lr: 0.1}\nbench: {rounds: 1}\n"
    )
    words = ["distill", "--recipe", recipe, "--data", tmp_path / "images", "--out", tmp_path / "run"]
    words = [*map(str, words), "--license-policy", "permissive"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 3, refused.output
    assert "state it with --set data.license=NAME" in refused.stderr
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(main, [*words, "--set", "data.license=own"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["license"] == "own"
    assert "own" in (tmp_path / "run" / "README.md").read_text()
