"""Networks of different families train together by every method that takes whole networks."""

from __future__ import annotations

import pytest
import torch
from small_training import Small
from test_contract import assert_resumes

from kdcompress.networks.build import build

STUDENT = "cifar/resnet8"
FAMILIES = ["cifar/mobilenet-v2", "torchvision/shufflenet_v2_x0_5", "cifar/vgg8"]
METHODS = {
    # Name -> settings under which it takes whole networks, and the number of peers.
    "dml": ({}, 2),
    "dml-sequential": ({"update": "sequential"}, 1),
    "kdcl": ({"target": "linear", "peers": 2}, 2),
    "kdcl-general": ({"target": "general", "peers": 2}, 2),
    "okddip": ({"form": "networks", "target": "mean_of_others"}, 2),
    "ffl": ({"form": "networks"}, 2),
    "afd": ({}, 1),
    "mcl": ({"logit_weight": 1.0}, 1),
    "mcl-memory": ({"form": "memory", "negatives": 6}, 1),
    "lmcl": ({"exits": 2, "meta_every": 4}, 1),  # meta-steps before and behind the stop
    "mfef": ({"form": "networks", "groups": 2}, 2),
}
PEERS = [
    pytest.param(FAMILIES[k:] + FAMILIES[:k], id=FAMILIES[k], marks=pytest.mark.exhaustive if k else [])
    for k in range(len(FAMILIES))
]


def beside(case, families):
    config, peers = METHODS[case]
    # 32 pixels: at 8 the deepest map of a mobilenet would be one pixel from its second stage on.
    return {"student": STUDENT, "config": config, "peers": families[:peers], "side": 32, "batch_size": 8}


@pytest.mark.parametrize("families", PEERS)
@pytest.mark.parametrize("case", METHODS)
def test_every_network_learns_and_a_network_of_the_students_class_ships(case, families, tmp_path):
    small = Small(tmp_path, case.split("-")[0], **beside(case, families))
    before = {name: tensor.clone() for name, tensor in small.tensors().items()}
    outcome = small.run()
    after = small.tensors()
    networks = {"student": small.student, **{f"peer{k}": peer for k, peer in enumerate(small.peers, 1)}}
    for name, network in networks.items():
        weights = [f"{name}.{key}" for key, _ in network.network.named_parameters()]
        assert not [key for key in weights if torch.equal(before[key], after[key])]
    (candidate,) = small.method.candidates()  # "leader" in okddip
    assert outcome.candidate == candidate
    assert outcome.model == STUDENT
    plain = build(STUDENT, num_classes=small.student.num_classes, channels=3, image_size=(32, 32))
    plain.load_state_dict(outcome.state, strict=True)


@pytest.mark.parametrize("case", METHODS)
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(case, tmp_path):
    assert_resumes(tmp_path, (7,), case.split("-")[0], **beside(case, FAMILIES))
