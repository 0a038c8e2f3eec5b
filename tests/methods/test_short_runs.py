"""Weights of imitation are smaller in short trainings, by one rule for every method that has it."""

from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress import discovery
from kdcompress.methods.base import find_method
from kdcompress.methods.short_runs import ShortRuns, short_run_factor

METHODS = [name for name in discovery.names("method") if issubclass(find_method(name).Config, ShortRuns)]


def test_a_short_training_has_its_share_of_the_weights():
    assert [short_run_factor(epochs, 60) for epochs in (6, 12, 60, 300)] == [0.1, 0.2, 1, 1]
    assert short_run_factor(1, 0) == 1


def made(folder, name, epochs):
    """The method in the first of ten epochs, with whole weights from so many epochs on."""
    options = find_method(name).Config.model_fields
    at_once = {"start_share": 0.0} if "start_share" in options else {}
    small = Small(folder, name, config={**at_once, "full_weight_epochs": epochs}, float64=True)
    small.method.on_phase_start("main", resumed=False)
    small.method.on_epoch_start(0, 10)
    return small


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("dlb", "pskd")])
def test_its_own_terms_are_smaller_and_no_cross_entropy(name, tmp_path):
    whole, short = {}, {}
    for terms, epochs in ((whole, 0), (short, 100)):
        small = made(tmp_path / str(epochs), name, epochs)
        terms.update(small.method.losses(next(small.loader.epoch(0))))
    scaled = [term for term in whole if short[term].item() != pytest.approx(whole[term].item(), rel=1e-6)]
    assert scaled
    assert all(not term.startswith("ce") for term in scaled)
    ratios = {term: short[term].item() / whole[term].item() for term in scaled}
    assert ratios == {term: pytest.approx(0.1, rel=1e-6) for term in scaled}


def test_the_term_of_the_batch_before_and_the_share_of_predictions_are_smaller(tmp_path):
    logits = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    whole, short = (made(tmp_path / f"dlb{epochs}", "dlb", epochs).method for epochs in (0, 100))
    terms = [m.terms(logits[0], labels, (logits[1], labels, logits[2]))["last_batch"] for m in (whole, short)]
    assert terms[1].item() == pytest.approx(0.1 * terms[0].item())
    shares = [made(tmp_path / f"pskd{epochs}", "pskd", epochs).method.share() for epochs in (0, 100)]
    assert shares == [pytest.approx(0.08), pytest.approx(0.008)]


def test_published_settings_have_whole_weights():
    for name in METHODS:
        whole = find_method(name).Config().full_weight_epochs
        for key, preset in find_method(name).PRESETS.items():
            if preset.train["epochs"] < whole:
                assert preset.method["full_weight_epochs"] == 0, (name, key)
