from __future__ import annotations

import torch
from small_training import Small, assert_same


def test_each_cycle_but_the_first_is_taught_by_the_network_at_its_start(tmp_path):
    small = Small(tmp_path, "snapshot", config={"cycles": 2})
    method = small.method
    first = {key: value.clone() for key, value in small.student.network.state_dict().items()}
    with torch.no_grad():
        small.student.network.fc.weight.add_(1.0)
    method.on_phase_start("cycle1", resumed=False)
    assert_same(method.snapshot.state_dict(), first)
    assert set(method.losses(next(small.loader.epoch(0)))) == {"ce"}
    method.on_phase_start("cycle2", resumed=False)
    assert torch.equal(method.snapshot.state_dict()["fc.weight"], small.student.network.fc.weight)
    assert set(method.losses(next(small.loader.epoch(0)))) == {"ce", "snapshot"}


def test_a_resume_keeps_the_snapshot_that_the_cycle_began_with(tmp_path):
    small = Small(tmp_path, "snapshot", config={"cycles": 2})
    kept = {key: value.clone() for key, value in small.method.snapshot.state_dict().items()}
    with torch.no_grad():
        small.student.network.fc.weight.add_(1.0)
    small.method.on_phase_start("cycle2", resumed=True)
    assert_same(small.method.snapshot.state_dict(), kept)


def test_the_rate_falls_to_nearly_zero_in_every_cycle(tmp_path):
    small = Small(tmp_path, "snapshot", config={"cycles": 2}, optim={"schedule": "multistep"})
    rates = []
    step = small.method.step

    def noted(batch, minimise):
        rates.append(minimise.rate("main"))
        step(batch, minimise)

    small.method.step = noted
    small.run()
    assert len(rates) == 10
    for cycle in (rates[:5], rates[5:]):
        assert cycle == sorted(cycle, reverse=True)
        assert cycle[0] == 0.02
        assert cycle[-1] < 0.002
