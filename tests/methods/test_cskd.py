from __future__ import annotations

import torch
from small_training import Small

from kdcompress.methods.losses import next_of_class


def test_the_partner_is_the_next_image_of_the_class_and_a_single_image_is_its_own():
    labels = torch.tensor([3, 1, 3, 2, 1, 3])
    assert next_of_class(labels).tolist() == [2, 4, 5, 3, 1, 0]


def test_the_partner_is_a_constant_and_images_that_agree_cost_nothing(tmp_path):
    method = Small(tmp_path, "cskd").method
    row = torch.randn(1, 4, dtype=torch.float64)
    assert method.terms(row, row)["class_wise"].item() == 0
    small = Small(tmp_path / "run", "cskd", float64=True)
    terms = small.method.losses(next(small.loader.epoch(0)))
    assert terms["class_wise"].item() > 0
    assert small.method.needs(small.method.config).order == "class_paired"
