from __future__ import annotations

import torch
from click.testing import CliRunner
from small_training import Small

from kdcompress.cli import main
from kdcompress.data.datasets import digits
from kdcompress.data.raw import Raw
from kdcompress.data.source import MemorySource
from kdcompress.methods.selfkd.pskd import PSKD

RECIPE = """
data: {dataset: digits, held_out: 0}
student: {model: cifar/resnet8}
method: {name: pskd, memory: cpu}
train: {epochs: 1, threads: 1}
optim: {lr: 0.05}
"""


def test_the_memory_starts_as_the_labels_and_the_share_grows_to_alpha(tmp_path):
    method = Small(tmp_path, "pskd", config={"alpha": 0.6, "full_weight_epochs": 0}).method
    assert torch.equal(method.memory.rows.float().argmax(1), method.data.labels)
    assert (method.memory.rows.sum(1) == 1).all()
    shares = []
    for epoch in range(3):
        method.on_epoch_start(epoch, 3)
        shares.append(round(method.share(), 6))
    assert shares == [0.2, 0.4, 0.6]


def test_an_epoch_learns_from_what_the_one_before_predicted(tmp_path):
    small = Small(tmp_path, "pskd", float64=True)
    batch = next(small.loader.epoch(0))
    small.method.on_epoch_start(0, 2)
    first = small.method.losses(batch)["soft_labels"]
    small.method.after_step(batch)
    rows = small.method.memory.read(batch.indices).double()
    logits = small.student(batch.images).logits
    torch.testing.assert_close(rows, logits.softmax(1).detach(), rtol=0, atol=1e-3)
    # With the labels in the memory the target is the label.
    torch.testing.assert_close(
        first, torch.nn.functional.cross_entropy(logits, batch.labels), rtol=1e-9, atol=0
    )
    other = set(range(len(small.method.data.labels))) - set(batch.indices.tolist())
    untouched = small.method.memory.rows[sorted(other)]
    assert set(untouched.unique().tolist()) == {0.0, 1.0}


def test_a_run_announces_the_size_of_the_memory_before_its_first_step(tmp_path, monkeypatch):
    # 28,800 training images (a tenth of 32,000 is the test split) of 200 classes, two bytes a number.
    labels = torch.arange(32_000) % 200
    source = MemorySource(torch.randint(0, 256, (32_000, 1, 8, 8), dtype=torch.uint8), labels)
    many = Raw(train=source, class_names=tuple(map(str, range(200))), listing_sha256="0", augment="none")
    monkeypatch.setattr(digits, "read", lambda section, progress: many)
    monkeypatch.setattr(PSKD, "losses", stop)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["distill", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, FirstStepError)
    notice = "Note: the method stores 12 MB of numbers for the training images, on the CPU, and in every"
    assert f"{notice} checkpoint" in result.stderr


class FirstStepError(Exception):
    """Ends a run at its first step."""


def stop(method, batch):
    raise FirstStepError
