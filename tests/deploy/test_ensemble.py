"""Several networks in one file: their mean prediction, proved, with the cost said."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, randomise, trained_student

import kdcompress
from kdcompress.atomic import staging_folder
from kdcompress.deploy.derived import failure, place
from kdcompress.deploy.ensemble import NAME, Ensemble, Member, with_timing, write_ensemble
from kdcompress.deploy.gate import document
from kdcompress.deploy.macs import count_macs
from kdcompress.errors import UserError
from kdcompress.networks.build import build

OTHER = "cifar/shufflenet-v2"
OTHER_SPEC = dataclasses.replace(SPEC, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
MACS = 1_000_000


def other_network(seed=3):
    torch.manual_seed(seed)
    return randomise(build(OTHER, num_classes=len(CLASSES), channels=3, image_size=(16, 16)), seed)


def members():
    return [
        Member("student", MODEL, trained_student(), SPEC),
        Member("peer1", OTHER, other_network(), OTHER_SPEC),
    ]


def normalised(x, spec):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (x - mean) / std


def written(folder, chosen, **options):
    settings = {"metadata": {"recipe": "tiny"}, "student_macs": MACS, "test_batches": batches, **options}
    with staging_folder(folder / ".staging") as staging:
        (made,) = place([write_ensemble(chosen, staging, class_names=CLASSES, **settings)], folder)
    return made


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    earlier = [{"gate": "strict_load", "passed": True, "figure": 0, "limit": 0, "detail": "x"}]
    earlier.append({**earlier[0], "gate": "ensemble_old", "passed": False})
    (folder / "gates.json").write_text(json.dumps({**document([]), "gates": earlier}))
    return folder, written(folder, members())


def test_its_softmax_is_the_mean_probability_of_its_members():
    chosen, x = members(), images(6)
    ensemble = Ensemble([(member.network.eval(), member.spec) for member in chosen])
    with torch.no_grad():
        got = ensemble.eval()(x).softmax(1)
        expected = sum(member.network(normalised(x, member.spec)).softmax(1) for member in chosen) / 2
    torch.testing.assert_close(got, expected)


def test_a_confident_member_with_large_logits_does_not_outvote_two_others():
    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.register_buffer("logits", torch.tensor([logits]))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    loud, quiet = Fixed([100.0, 0.0, 0.0]), [Fixed([0.0, 5.0, 0.0]) for _ in range(2)]
    ensemble = Ensemble([(network, SPEC) for network in (loud, *quiet)])
    assert ensemble(images(1)).argmax(1).item() == 1


def test_the_file_gives_the_mean_of_members_with_their_own_normalisations(shipped):
    folder, made = shipped
    assert made.path == folder / NAME
    assert made.passed, [str(gate) for gate in made.gates if not gate.passed]
    assert failure([made]) is None
    network, spec = kdcompress.load(folder / NAME)
    assert (spec.mean, spec.std) == ((0.0,) * 3, (1.0,) * 3)
    chosen, x = members(), images(5)
    with torch.no_grad():
        each = [member.network.eval()(normalised(x, member.spec)).softmax(1) for member in chosen]
    torch.testing.assert_close(network(x).softmax(1), sum(each) / 2, rtol=1e-4, atol=1e-5)


def test_its_gates_join_those_of_the_run(shipped):
    folder, made = shipped
    names = {gate["gate"] for gate in json.loads((folder / "gates.json").read_text())["gates"]}
    assert "strict_load" in names  # the student's
    assert "ensemble_old" not in names
    assert {f"ensemble_parity_batch_{size}" for size in (1, 2, 3)} <= names
    assert {"ensemble_top1_exported", "ensemble_batch_invariance", "ensemble_one_file_no_paths"} <= names
    for member in ("student", "peer1"):
        assert {f"ensemble_{member}_{gate}" for gate in ("strict_load", "equal_outputs", "macs")} <= names
    assert all(gate.gate.startswith("ensemble_") for gate in made.gates)


def test_its_cost_and_accuracy_are_those_of_the_file(shipped):
    facts = shipped[1].facts
    total = sum(count_macs(member.network, 3, 16, 16) for member in members())
    assert facts["macs"] == total
    assert facts["cost"] == pytest.approx(total / MACS)
    assert facts["bytes"] == (shipped[0] / NAME).stat().st_size
    assert [member["model"] for member in facts["members"]] == [MODEL, OTHER]
    network, _ = kdcompress.load(shipped[0] / NAME)
    right = sum(int((network(x).argmax(1) == labels).sum()) for x, labels in batches())
    assert facts["top1"] == right / 50
    assert facts["sentence"] == (
        f"ensemble.onnx: top-1 {100 * right / 50:.2f} %, {total / MACS:.1f} times the student's "
        f"multiply-accumulates, {facts['bytes'] / 1e6:.1f} MB; the mean probability of 2 networks "
        "(student, peer1)"
    )


def test_a_member_with_a_head_left_on_does_not_ship(tmp_path):
    chosen = members()
    chosen[1].network.auxiliary = torch.nn.Linear(2, 2)
    made = written(tmp_path, chosen)
    assert not made.passed
    assert not (tmp_path / NAME).exists()
    error = failure([made])
    assert "ensemble.onnx does not ship: 1 gate failed; it was not made" in str(error)
    assert "ensemble_peer1_strict_load" in str(error)
    assert made.facts == {}


def test_members_of_other_image_sizes_are_refused(tmp_path):
    chosen = [members()[0], dataclasses.replace(members()[1], spec=dataclasses.replace(SPEC, height=32))]
    with pytest.raises(UserError, match="peer1 takes images of 3×32×16, student of 3×16×16"):
        written(tmp_path, chosen)
    assert not list(tmp_path.iterdir())


def test_its_latency_stands_beside_the_students():
    def row(artefact, p50):
        return {"artefact": artefact, "latency_ms": {"p50": p50}}

    facts = {"sentence": "ensemble.onnx: 3.0 times"}
    timed = with_timing(
        facts, {"results": [row("student", 0.5), row("ensemble", 1.25), row("ensemble", 9.0)]}
    )
    assert timed == {
        "sentence": "ensemble.onnx: 3.0 times; 1.250 ms against the student's 0.500 ms", "latency_ms": 1.25
    }  # fmt: skip
    assert with_timing(facts, {"results": [row("student", 0.5)]}) == {**facts, "latency_ms": None}
