from __future__ import annotations

import hashlib

import pytest
import torch
from several_families import images_for, tapped

from kdcompress.networks.undisturbed import frozen_state, undisturbed


def hashes(network, optimiser):
    """Of everything that a step can change."""
    tensors = {f"state {key}": value for key, value in network.state_dict().items()}
    tensors |= {f"grad {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"momentum {number} {key}": value for key, value in state.items()}
    found = {key: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for key, t in tensors.items()}
    found["rng"] = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    found["modes"] = str([module.training for module in network.modules()])
    found["rates"] = str([group["lr"] for group in optimiser.param_groups])
    return found


def step(read, optimiser, images):
    read.network.train()
    loss = read(images).logits.square().mean() + torch.rand(())
    loss.backward()
    optimiser.step()
    optimiser.param_groups[0]["lr"] = 7.0


@pytest.fixture
def trained():
    read = tapped("cifar/resnet8x4")
    read.train_mode(True, freeze_bn=True)
    optimiser = torch.optim.SGD(read.network.parameters(), lr=0.1, momentum=0.9)
    read(images_for(read)).logits.square().mean().backward()
    optimiser.step()
    return read, optimiser


def test_a_step_in_a_frozen_state_leaves_no_trace(trained):
    read, optimiser = trained
    before = hashes(read.network, optimiser)
    with frozen_state([read.network], [optimiser]):
        step(read, optimiser, images_for(read))
        inside = hashes(read.network, optimiser)
    assert hashes(read.network, optimiser) == before
    kinds = {"state conv1.weight", "state bn1.running_mean", "grad fc.bias", "momentum 0 momentum_buffer"}
    assert all(inside[kind] != before[kind] for kind in {*kinds, "rng", "modes", "rates"})


def test_an_exception_leaves_no_trace_either(trained):
    read, optimiser = trained
    before = hashes(read.network, optimiser)

    def broken():
        with frozen_state([read.network], [optimiser]):
            step(read, optimiser, images_for(read))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert hashes(read.network, optimiser) == before


def test_a_graph_from_before_is_still_differentiated_after_a_pass_that_moved_statistics(trained):
    read, optimiser = trained
    images = images_for(read)
    read.network.zero_grad()
    read(images).logits.sum().backward()
    expected = read.network.fc.weight.grad.clone()
    read.network.zero_grad()
    loss = read(images).logits.sum()
    with frozen_state([read.network], [optimiser]), torch.no_grad():
        read.train_mode(True)  # moves the statistics of batch norm, which the graph has saved
        read(images)
    loss.backward()
    assert torch.equal(read.network.fc.weight.grad, expected)


def test_a_fresh_optimiser_is_fresh_again(trained):
    read, _ = trained
    optimiser = torch.optim.SGD(read.network.parameters(), lr=0.1, momentum=0.9)
    with frozen_state([read.network], [optimiser]):
        step(read, optimiser, images_for(read))
        assert optimiser.state_dict()["state"]
    assert not optimiser.state_dict()["state"]


def test_without_copies_of_the_parameters_the_rest_is_restored(trained):
    read, optimiser = trained
    before = hashes(read.network, optimiser)
    with frozen_state([read.network], parameters=False), torch.no_grad():
        read.network.train()
        read(images_for(read))
    assert hashes(read.network, optimiser) == before


def test_a_buffer_that_is_replaced_comes_back(trained):
    read, _ = trained
    buffer = read.network.bn1.running_mean
    with undisturbed(read.network):
        assert not read.network.training
        assert not torch.is_grad_enabled()
        read.network.bn1.running_mean = torch.ones(32)
    assert read.network.bn1.running_mean is buffer
    assert read.network.training


def test_a_second_order_meta_step_through_functional_in_train_mode_leaves_no_trace(trained):
    read, optimiser = trained
    read.train_mode(True)  # a pass moves the statistics that it is given
    images = images_for(read)
    before = hashes(read.network, optimiser)
    scale = torch.tensor(0.5, requires_grad=True)
    with frozen_state([read.network], [optimiser], parameters=False):
        own = dict(read.network.named_parameters())
        loss = scale * read.functional(own, images).logits.square().mean() + torch.rand(())
        gradients = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        moved = {name: p - 0.1 * g for (name, p), g in zip(own.items(), gradients, strict=True)}
        outer = read.functional(moved, images).logits.square().mean()
        (slope,) = torch.autograd.grad(outer, scale)
    assert slope.abs() > 1e-6
    assert hashes(read.network, optimiser) == before
    with frozen_state([read.network], [optimiser]), torch.no_grad():
        read.functional({}, images, update_buffers=True)
        inside = hashes(read.network, optimiser)
    assert inside["state bn1.running_mean"] != before["state bn1.running_mean"]
    assert hashes(read.network, optimiser) == before
