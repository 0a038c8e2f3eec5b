"""Every method that a teacher cache serves learns the same from it, hit or miss."""

from __future__ import annotations

import pytest
import torch
from small_training import Small, images

from kdcompress import discovery
from kdcompress.data.batch import Replay
from kdcompress.data.loader import TrainingLoader
from kdcompress.methods.base import find_method
from kdcompress.networks.activations import LOGITS, POOLED
from kdcompress.networks.output_cache.cached_teacher import CachedTeacher
from kdcompress.networks.output_cache.codec import PooledCodec
from kdcompress.networks.output_cache.facts import TeacherFacts
from kdcompress.networks.output_cache.rows import RowFiles
from kdcompress.networks.output_cache.stored_teacher import StoredTeacher, stored_classifier

CONFIGS = {"crd": {"negatives": 16}, "seed": {"queue": 16}}


def served():
    """Lists the methods whose every reading of the teacher a cache can give, with their settings."""
    for name in discovery.names("method"):
        cls = find_method(name)
        config = CONFIGS.get(name, {})
        needs = cls.needs(cls.Config(**config))
        if needs.teacher and needs.read_of_teacher <= LOGITS | POOLED:
            yield name, config


def losses(folder, name, config, cache):
    """Returns the terms of a first batch; `cache` makes the teacher that answers of the network."""
    small = Small(folder, name, config=config)
    teacher = cache(small.frozen)
    small.method.networks = small.method.networks.__class__(small.student, teacher, small.peers)
    needs = small.method.needs(small.method.config)
    loader = TrainingLoader(
        images(40, 8), batch_size=8, views=needs.views, seed=0, augment="crop", device="cpu",
        replay=Replay(8, 0),
    )  # fmt: skip
    small.method.on_phase_start(small.method.phases()[0].name, resumed=False)
    small.method.on_epoch_start(0, 2)
    torch.manual_seed(5)
    return small.method.losses(next(loader.epoch(0))), teacher


def stands_for(teacher):
    """Returns what is in memory of a teacher with `mode: read`."""
    return StoredTeacher(
        TeacherFacts.of(teacher), features=teacher.shapes().pooled.shape[1],
        classifier=stored_classifier(teacher), precision=teacher.precision, device=teacher.device,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config"), list(served()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_losses_are_those_of_the_teacher_itself(tmp_path, name, config):
    def cached(teacher):
        codec = PooledCodec(teacher.shapes().pooled.shape[1], teacher.classify)
        return CachedTeacher(teacher, codec, RowFiles(tmp_path / "rows", codec.width))

    live, _ = losses(tmp_path / "live", name, config, lambda teacher: teacher)
    missed, first = losses(tmp_path / "missed", name, config, cached)
    found, second = losses(tmp_path / "found", name, config, cached)
    assert first.computed > 0
    assert (second.computed, second.read) == (0, first.computed + first.read)
    alone, stored = losses(tmp_path / "alone", name, config, lambda teacher: cached(stands_for(teacher)))
    assert isinstance(stored.teacher, StoredTeacher)
    assert live.keys() == missed.keys() == found.keys() == alone.keys()
    for term, value in missed.items():
        assert torch.equal(value, found[term]), term
        assert torch.equal(value, alone[term]), term
        assert torch.allclose(value, live[term], rtol=0.01, atol=0.01), term


def test_the_methods_that_a_cache_serves_are_known():
    names = {name for name, _ in served()}
    assert {"kd", "dkd", "dist", "ctkd", "crd", "rkd", "srrl", "simreg", "seed", "sskd", "mlkd"} <= names
    assert not names & {"at", "sp", "fitnet", "reviewkd", "hsakd"}
