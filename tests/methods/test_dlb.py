from __future__ import annotations

import torch
from small_training import Small

from kdcompress.methods.losses import kl


def test_a_step_repeats_the_second_view_of_the_batch_before(tmp_path):
    small = Small(tmp_path, "dlb", config={"full_weight_epochs": 0}, float64=True)
    method = small.method
    batches = list(small.loader.epoch(0))[:2]
    method.on_epoch_start(0, 2)
    assert set(method.losses(batches[0])) == {"ce"}
    before = small.student(batches[0].images).logits.detach()
    # Batch norm in training mode: equal batches give equal logits.
    torch.testing.assert_close(method.last_logits, before)
    terms = method.losses(batches[1])
    again = small.student(batches[0].views[1].images).logits
    torch.testing.assert_close(terms["last_batch"], kl(again, before, 3.0))
    logits = torch.cat([again, small.student(batches[1].images).logits])
    labels = torch.cat([batches[0].labels, batches[1].labels])
    torch.testing.assert_close(terms["ce"], torch.nn.functional.cross_entropy(logits, labels))
