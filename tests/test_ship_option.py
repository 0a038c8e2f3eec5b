"""`train.ship` through the command line: the network that it names is the one in the files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.data.input_spec import InputSpec
from kdcompress.methods.base import Candidate, find_method
from kdcompress.networks.build import build
from kdcompress.networks.tapped import Tapped
from kdcompress.run import qat
from kdcompress.train import checkpoint

MODEL, CLASSES, SIDE = "cifar/resnet8", 10, 8
OWN = InputSpec(1, SIDE, SIDE, mean=(0.9,), std=(0.1,))
"""Input specification of the peer's weights; that of the digits has a mean of about 0.3."""
TINY = (
    "distill", "--recipe", "quickstart", "--method", "dml", "--set", "train.max_steps=2",
    "--set", "bench.rounds=1", "--set", "train.bn_statistics=off", "--threads", "1",
)  # fmt: skip


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def network(state=None):
    plain = build(MODEL, num_classes=CLASSES, channels=1, image_size=(SIDE, SIDE))
    if state is not None:
        plain.load_state_dict(state)
    return plain


def outputs(state, spec, images):
    read = Tapped(network(state), MODEL, input_spec=spec)
    read.train_mode(False)
    with torch.no_grad():
        return read(images).logits


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Weights of a finished run whose images had another normalisation."""
    folder = tmp_path_factory.mktemp("peer")
    torch.manual_seed(3)
    safetensors.torch.save_file(network().state_dict(), folder / "student.safetensors")
    config = {"schema": "kdcompress.config/1", "input": OWN.to_json()}
    (folder / "config.json").write_text(json.dumps(config))
    return f"peers=[{{model: {MODEL}, weights: {folder}}}]"


@pytest.fixture(scope="module")
def shipped_peer(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "run"
    more = ("--set", peer, "--set", "train.ship=peer1", "--set", "export.int8={max_drop: 100}")
    done = kdcompress(*TINY, *more, "--out", folder)
    assert done.exit_code == 0, done.output
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def trained(folder, name):
    return checkpoint.load(folder / "checkpoints" / "student.pt").state["modules"][name]


def test_a_named_peer_ships_with_its_own_weights_and_normalisation(shipped_peer):
    state = safetensors.torch.load_file(shipped_peer / "student.safetensors")
    last = trained(shipped_peer, "peer1")
    assert all(torch.equal(state[key], last[key]) for key in state)
    assert read(shipped_peer, "results.json")["training"]["candidate"] == "peer1"
    config = InputSpec.from_json(read(shipped_peer, "config.json")["input"])
    assert (config.mean, config.std) == (OWN.mean, OWN.std)


@pytest.mark.parametrize("file", ["student.onnx", "student.int8.onnx"])
def test_the_files_give_the_peers_outputs_on_raw_images(shipped_peer, file):
    images = torch.rand(16, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(shipped_peer / file, providers=["CPUExecutionProvider"])
    exported = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    state = trained(shipped_peer, "peer1")
    own = outputs(state, OWN, images).numpy()
    students = outputs(state, InputSpec(1, SIDE, SIDE, mean=(0.3,), std=(0.38,)), images).numpy()
    limit = 1e-5 if file == "student.onnx" else 0.1
    assert np.abs(exported - own).mean() < limit * np.abs(own).mean()
    assert np.abs(students - own).mean() > 3 * limit * np.abs(own).mean()


@pytest.mark.exhaustive
def test_last_ships_the_student_of_the_last_epoch(peer, tmp_path):
    done = kdcompress(*TINY, "--set", peer, "--set", "train.ship=last", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    state = safetensors.torch.load_file(tmp_path / "run" / "student.safetensors")
    last = trained(tmp_path / "run", "student")
    assert all(torch.equal(state[key], last[key]) for key in state)
    assert read(tmp_path / "run", "results.json")["training"]["candidate"] == "student"
    assert InputSpec.from_json(read(tmp_path / "run", "config.json")["input"]).mean != OWN.mean


def test_a_name_that_the_method_does_not_offer_is_exit_2_with_the_list_and_writes_nothing(tmp_path):
    done = kdcompress(*TINY, "--set", "train.ship=peer2", "--out", tmp_path / "run")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "Error: train.ship: the method does not offer 'peer2'; did you mean 'peer1'?; choices: "
        "best, last, student, peer1, ensemble"
    )
    assert not list(tmp_path.iterdir())


class Stopped(Exception):
    """Ends a run where its export would begin."""


def kd_with_a_peer(monkeypatch):
    """Gives kd a peer that learns labels and may ship: no shipped method has both a teacher and peers."""
    cls = find_method("kd")
    needs, losses = cls.needs, cls.losses

    def with_peer(self, batch):
        logits = self.networks.peers[0](batch.images).logits
        return {**losses(self, batch), "ce_peer": self.cross_entropy(logits, batch.labels)}

    def candidates(self):
        networks = {"student": self.networks.student, "peer1": self.networks.peers[0]}
        return {name: Candidate.of(network) for name, network in networks.items()}

    def needs_peer(cls, config):
        return dataclasses.replace(needs(config), peers=1)

    monkeypatch.setattr(cls, "needs", classmethod(needs_peer))
    monkeypatch.setattr(cls, "losses", with_peer)
    monkeypatch.setattr(cls, "candidates", candidates)


def test_training_for_int8_reads_images_as_the_chosen_network_does(peer, tmp_path, monkeypatch):
    kd_with_a_peer(monkeypatch)
    specs = []

    def record(run, training):
        student = training.method.networks.student
        specs.append((student.input_spec, student.mean.tolist()))
        return train(run, training)

    def stop(run, start, method, *rest):
        specs.append((method.networks.student.input_spec, method.networks.student.mean.tolist()))
        raise Stopped

    train = qat.run_training
    monkeypatch.setattr(qat, "run_training", record)
    monkeypatch.setattr(pipeline, "deliver", stop)
    more = ("teacher.epochs=1", "teacher.min_top1=0", "train.ship=peer1", "export.int8={qat_epochs: 1}", peer)
    done = kdcompress(
        "distill", "--recipe", "quickstart", "--threads", "1", "--set", "train.max_steps=2",
        *(word for setting in more for word in ("--set", setting)), "--out", tmp_path / "run",
    )  # fmt: skip
    assert isinstance(done.exception, Stopped), done.output
    (tuned, tuned_mean), (after, after_mean) = specs
    assert (tuned.mean, tuned.std) == (OWN.mean, OWN.std)
    assert tuned_mean == pytest.approx(list(OWN.mean))
    assert after.mean != OWN.mean
    assert after_mean == pytest.approx(list(after.mean))


def test_a_peer_that_starts_as_a_copy_of_the_student_is_refused(tmp_path):
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network().state_dict(), weights)
    done = kdcompress(
        *TINY, "--out", tmp_path / "run", "--set", f"student.weights={weights}",
        "--set", f"peers=[{{model: {MODEL}, weights: {weights}}}]",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "peers.0: starts with the student's weights, so the two would stay equal" in done.output
    assert not (tmp_path / "run").exists()


def test_an_ensemble_ships_beside_the_student_and_gives_the_mean_of_all_members(peer, tmp_path):
    more = ("--set", peer, "--set", "train.ship=ensemble")
    done = kdcompress(*TINY, *more, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    results = read(tmp_path / "run", "results.json")
    facts = results["ensemble"]
    assert [member["name"] for member in facts["members"]] == ["student", "peer1"]
    assert facts["latency_ms"] > 0
    assert facts["sentence"] in " ".join(done.stdout.split())
    gates = {gate["gate"]: gate["passed"] for gate in read(tmp_path / "run", "gates.json")["gates"]}
    assert gates["ensemble_parity_batch_1"]
    assert all(gates.values())
    # Two steps end before the first choice, so that the members are those of the last step.
    images = torch.rand(16, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    members = [
        outputs(trained(tmp_path / "run", "student"), _input_of_the_student(tmp_path / "run"), images),
        outputs(trained(tmp_path / "run", "peer1"), OWN, images),
    ]
    session = onnxruntime.InferenceSession(tmp_path / "run" / "ensemble.onnx")
    exported = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    mean = torch.stack([member.softmax(1) for member in members]).mean(0)
    assert torch.allclose(exported.softmax(1), mean, atol=1e-5)
    assert not torch.allclose(exported.softmax(1), members[0].softmax(1), atol=1e-3)


def _input_of_the_student(run):
    return InputSpec.from_json(read(run, "config.json")["input"])
