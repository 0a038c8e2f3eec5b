from __future__ import annotations

import torch
from small_training import Small


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
