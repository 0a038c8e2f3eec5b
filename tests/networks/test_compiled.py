"""Compiled passes read what the network's own passes read; here without C++ (backend aot_eager)."""

from __future__ import annotations

import copy

import pytest
import torch
from functorch.compile import make_boxed_func
from small_training import Small, backbone, tapped
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from kdcompress import discovery
from kdcompress.errors import NetworkError, NonFiniteLoss
from kdcompress.methods.base import find_method
from kdcompress.networks import compiled
from kdcompress.networks.activations import LOGITS
from kdcompress.networks.compiled import compiler_problem, graphed_batch
from kdcompress.networks.tapped import ALL, Tapped
from kdcompress.train.processes import Processes


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()


def readings(read, images, want):
    given = read(images, want)
    outputs = {"logits": given.logits, "pooled": given.pooled}
    outputs |= {f"{kind}.{n}": t for kind in ("stages", "pre") for n, t in getattr(given, kind).items()}
    return {name: tensor for name, tensor in outputs.items() if tensor is not None}


@pytest.mark.parametrize("make", [tapped, backbone])
def test_maps_are_outputs_with_the_same_values_gradients_and_statistics(make):
    torch.manual_seed(0)
    plain = make("cifar/resnet8", 8)
    other = copy.deepcopy(plain, {id(plain.task): plain.task})
    other.compile()
    want = ALL if make is tapped else ALL - {"logits"}
    for mode in (True, False, True):
        images = torch.rand(4, 3, 8, 8)
        for read in (plain, other):
            read.train_mode(mode)
        expected, got = readings(plain, images, want), readings(other, images, want)
        assert expected.keys() == got.keys()
        assert len(got) > 6
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
        for given in (expected, got):
            sum(tensor.square().mean() for tensor in given.values()).backward()
    for (name, value), same in zip(
        plain.network.state_dict().items(), other.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(same, value, rtol=1e-5, atol=1e-5, msg=name)
    for p, q in zip(plain.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)


def test_the_network_carries_no_hook_and_later_weights_count():
    read = tapped("cifar/resnet8", 8)
    read.train_mode(False)
    read.compile()
    images = torch.rand(2, 3, 8, 8)
    before = read(images, ALL).stages["stage1"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in read.network.modules())
    read.network.load_state_dict({k: 2 * v for k, v in read.network.state_dict().items()})
    changed = read(images, ALL).stages["stage1"]
    assert not torch.allclose(before, changed)
    read.compile(on=False)
    torch.testing.assert_close(read(images, ALL).stages["stage1"], changed)


class InPlace(nn.Module):
    """Rewrites its map after the tap has read it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.relu(self.norm(self.conv(x))).mean((2, 3)))


class Moody(InPlace):
    """Leaves its activation out in training."""

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.fc((x if self.training else self.relu(x)).mean((2, 3)))


def own(network):
    return Tapped(network, "python:own", image_size=(16, 16), channels=3, mean=(0.4,), std=(0.2,))


def test_a_map_that_is_rewritten_in_place_is_read_before():
    read = own(InPlace())
    read.train_mode(False)
    images = torch.rand(2, 3, 16, 16)
    expected = read(images, ALL).pre["stage1"]
    read.compile()
    got = read(images, ALL).pre["stage1"]
    assert (got < 0).any()
    torch.testing.assert_close(got, expected)


def test_a_map_that_the_pass_does_not_come_by_is_named():
    read = own(Moody())
    read.train_mode(True)
    read.compile()
    with pytest.raises(NetworkError, match="'relu' is not called in this pass"):
        read(torch.rand(2, 3, 16, 16), ALL)


def test_a_missing_compiler_is_named_with_what_to_do(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert compiler_problem("cpu") == (
        "needs a C++ compiler; install one (apt install g++), set CXX to its path, or take "
        "train.compile: false"
    )
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert compiler_problem("cuda") == "needs Triton; pip install triton, or take train.compile: false"


FEW = ("at", "reviewkd", "dml", "lmcl", "afd")
REST = [name for name in discovery.names("method") if name not in FEW]
METHODS = [*FEW, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in REST)]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_compiled_what_it_learns_uncompiled(tmp_path, name):
    config = {"seed": {"queue": 64}}.get(name)
    labelled = find_method(name).needs(find_method(name).Config(**(config or {}))).labels
    results = []
    for on in (False, True):
        train = {"epochs": 2, "freeze_bn": True, "compile": on}
        small = Small(
            tmp_path / str(on), name, config=config, train=train, optim={"lr": 1e-3}, float64=True,
            labelled=labelled,
        )  # fmt: skip
        small.run()
        assert (small.student.compiled is not None) == on
        results.append(small.tensors())
    expected, got = results
    assert list(got) == list(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-8, atol=1e-8, msg=key)


class Graphs:
    """Stands for inductor's CUDA graphs on a CPU: what a graph has made is spoilt when the next batch begins.

    That holds for outputs, for what was kept for the backward pass, and for gradients of parameters.
    """

    def __init__(self, monkeypatch):
        self.made, self.batches, self.runs = [], 0, 0
        backend = aot_autograd(fw_compiler=self._compiler, bw_compiler=self._compiler)
        monkeypatch.setattr(compiled, "BACKEND", backend)
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", self._begin)

    def _compiler(self, graph, inputs):
        def run(*arguments):
            self.runs += 1
            results = [r.clone() if isinstance(r, torch.Tensor) else r for r in graph(*arguments)]
            # An alias: a second reference to the tensor itself would keep it from becoming a gradient.
            self.made += [r.detach() for r in results if isinstance(r, torch.Tensor)]
            return results

        return make_boxed_func(run)

    def _begin(self):
        self.batches += 1
        for tensor in self.made:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        self.made.clear()


GRAPHED = ["kd", "dlb", "crd", "dml", "at", "ddgsd"]


def learned(folder, name, **train):
    small = Small(folder, name, train={"compile": True, "epochs": 2, **train}, count=24)
    small.run()
    return small


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHED)
def test_what_a_graph_overwrites_is_not_read_any_more(tmp_path, monkeypatch, name):
    expected = learned(tmp_path / "plain", name).tensors()
    torch._dynamo.reset()
    graphs = Graphs(monkeypatch)
    small = learned(tmp_path / "graphs", name, cuda_graphs=True)
    assert graphs.batches == small.trainer.at.step == 6
    assert graphs.runs >= 2 * graphs.batches
    for key, tensor in small.tensors().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.slow
def test_accumulated_gradients_would_be_overwritten_so_they_are_refused(tmp_path, monkeypatch):
    Graphs(monkeypatch)
    with pytest.raises(NonFiniteLoss):
        learned(tmp_path, "none", cuda_graphs=True, accumulate=2)


def test_outside_of_a_batch_no_graph_is_replayed(monkeypatch):
    graphs, read = Graphs(monkeypatch), tapped("cifar/resnet8", 8)
    read.train_mode(False)
    read.compile(graphs=True)
    images = torch.rand(2, 3, 8, 8)
    for want in (LOGITS, ALL):
        before = graphs.runs
        outside = read(images, want).logits
        assert graphs.runs == before
        with graphed_batch(True):
            inside = read(images, want).logits
        assert graphs.runs > before
        with graphed_batch(True):
            read(images, want)
        torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-5)  # a copy: it is not spoilt


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["kd", "crd", "dlb", "dml", "at"])
def test_cuda_graphs_learn_what_the_same_passes_learn_without(tmp_path, monkeypatch, name):
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    alone = Processes(0, 1, torch.device("cuda"))
    trained = {}
    for graphs in (False, True):
        torch._dynamo.reset()
        train = {"compile": True, "cuda_graphs": graphs, "epochs": 2}
        small = Small(tmp_path / str(graphs), name, train=train, processes=alone)
        small.run()
        trained[graphs] = small.tensors()
    for key, tensor in trained[True].items():
        torch.testing.assert_close(tensor, trained[False][key], rtol=1e-3, atol=1e-4, msg=key)
