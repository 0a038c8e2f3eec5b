"""Every offline method on pairs of several families: it trains, or it says beforehand why it cannot.

A new method is met here without a line being added, unless there is a pair that it refuses.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from several_pairs import OFFLINE, PAIRS, frozen, phases, refusals, table, training
from small_training import CLASSES, Watcher, assert_same

from kdcompress.methods.base import find_method
from kdcompress.networks.build import build

TRANSFORMER = "timm/test_resnet → timm/test_vit@64"
TWO_CLASSIFIERS = "timm/test_resnet → timm/levit_128s@64"
OTHER_SIZE = "timm/test_resnet@48 → cifar/resnet8@32"
REFUSED = {
    # What a method must say of a pair; on every other pair it must run.
    (
        "hsakd",
        TRANSFORMER,
    ): r"a VisionTransformer is not a network that can be cut into stages; choose .* timm/",
    ("hsakd", TWO_CLASSIFIERS): r"a LevitDistilled is not a network that can be cut into stages; choose",
    ("crd", TWO_CLASSIFIERS): r"student timm/levit_128s has none.*student.taps: \{classifier:",
    (
        "mlkd",
        TWO_CLASSIFIERS,
    ): r"student timm/levit_128s has none, since no linear layer.*student.taps: \{classifier:",
    (
        "reviewkd",
        TWO_CLASSIFIERS,
    ): r"student timm/levit_128s \(.*\) without a linear classifier.*student.taps",
    ("rkd", TWO_CLASSIFIERS): r"student timm/levit_128s has none.*student.taps: \{classifier:",
    ("sskd", TWO_CLASSIFIERS): r"student timm/levit_128s has none.*student.taps: \{classifier:",
    (
        "ab",
        OTHER_SIZE,
    ): r"no stage of the student .* is exactly as large as one of the teacher .*student.taps",
}
CASES = [(method, pair) for pair in PAIRS for method in OFFLINE]
RUN = [(method, pair) for method, pair in CASES if (method, str(pair)) not in REFUSED]
SMALL = {str(PAIRS[0]), OTHER_SIZE}


def marked(value, pair):
    """The value as a parameter of a test; with any but the small pairs, of one of `make test-all` alone."""
    return pytest.param(value, marks=[] if str(pair) in SMALL else pytest.mark.exhaustive)


@pytest.fixture(
    scope="module", params=[marked(case, case[1]) for case in RUN], ids=lambda case: f"{case[0]}: {case[1]}"
)
def trained(request, tmp_path_factory):
    """A method that was trained on a pair, and a copy of its folder as a kill in the last step left it."""
    method, pair = request.param
    folder = tmp_path_factory.mktemp(method)
    unbroken, killed = folder / "unbroken", folder / "killed"
    # What lies there at the end of the last step, before it is saved, is of the step before.
    watcher = Watcher(2 * phases(method), lambda: shutil.copytree(unbroken, killed))
    small = training(unbroken, method, pair, watcher=watcher)
    before = {key: tensor.clone() for key, tensor in small.student.network.state_dict().items()}
    outcome = small.run()
    yield SimpleNamespace(
        method=method, pair=pair, folder=folder, before=before, small=small, outcome=outcome
    )
    shutil.rmtree(folder)  # some heads take hundreds of megabytes


def test_it_trains_the_student_with_finite_losses(trained):
    lines = log(trained.folder / "unbroken")
    assert len(lines) == len(trained.small.method.phases())
    assert all(line["losses"] and all(map(math.isfinite, line["losses"].values())) for line in lines)
    assert all(tensor.isfinite().all() for tensor in trained.outcome.state.values())
    still = [k for k, tensor in trained.outcome.state.items() if torch.equal(tensor, trained.before[k])]
    assert len(still) < len(trained.before) / 2, still


def test_it_resumes_to_the_same_bits(trained):
    resumed = training(trained.folder / "killed", trained.method, trained.pair)
    torch.rand(7)  # whatever a new process draws before it goes on
    steps = resumed.trainer.progress
    outcome = resumed.run()
    assert steps.seen == resumed.trainer.total_steps
    assert_same(trained.small.tensors(), resumed.tensors())
    assert_same(trained.outcome.state, outcome.state)
    assert log(trained.folder / "killed") == log(trained.folder / "unbroken")


def test_it_trains_in_bf16(trained):
    small = training(trained.folder / "bf16", trained.method, trained.pair, precision=torch.bfloat16)
    outcome = small.run()
    lines = log(trained.folder / "bf16")
    assert all(line["losses"] and all(map(math.isfinite, line["losses"].values())) for line in lines)
    assert all(tensor.isfinite().all() for tensor in outcome.state.values())
    assert {tensor.dtype for tensor in outcome.state.values()} <= {torch.float32, torch.int64}


def test_it_ships_the_plain_class(trained):
    cls, side = find_method(trained.method), trained.pair.side
    classes = CLASSES if cls.needs(cls.Config()).task.has_classes else 0
    fresh = build(trained.pair.student, num_classes=classes, channels=3, image_size=(side, side))
    assert trained.outcome.model == trained.pair.student
    assert list(trained.outcome.state) == list(fresh.state_dict())
    fresh.load_state_dict(trained.outcome.state, strict=True)
    network = trained.small.student.network
    # In the memory layout of training: in another, a convolution may add up in another order.
    fresh = fresh.to(memory_format=torch.channels_last)
    pixels = trained.small.student.normalise(torch.rand(2, 3, side, side))
    with torch.no_grad():
        assert torch.equal(fresh.eval()(pixels), network.eval()(pixels))


def test_what_cannot_run_is_refused_before_training_with_the_reason(capsys):
    said = refusals(case for case in CASES if case not in RUN)
    with capsys.disabled():
        print(f"\n\n{table(said)}\n")  # noqa: T201
    assert {(method, str(pair)) for method, pair in said} == REFUSED.keys()
    for (method, pair), message in said.items():
        assert message.startswith(f"method {method}: ")
        assert re.search(REFUSED[method, str(pair)], message), message


@pytest.mark.parametrize("pair", [marked(pair, pair) for pair in PAIRS], ids=str)
def test_the_teachers_are_as_they_were(pair):
    frozen(pair).assert_unchanged()
    frozen(pair, torch.bfloat16).assert_unchanged()


def log(folder):
    """The lines of the log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s")} for line in lines]
