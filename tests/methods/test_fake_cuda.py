"""Steps of every method on fake tensors of the device `cuda`, which need no GPU and hold no values.

A tensor left on the CPU and a read of a value (`.item()`, `if tensor`), which on a GPU waits for it, raise.
Backward passes cannot run without a GPU: gradients are put in their place, and all else of a step is checked:
the batch, `losses`, the finite check, clipping, the optimiser, `after_step` and the moving average.
A method with a `step` of its own that differentiates within it is checked without its `step`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import Small
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.cuda.amp import common

from kdcompress import discovery
from kdcompress.data.batch import Batch, View
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.source import MemorySource
from kdcompress.data.workers import Task
from kdcompress.methods.base import find_method
from kdcompress.methods.memory import SampleMemory
from kdcompress.methods.selfkd.none import Plain
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.train import minimiser, optimisers
from kdcompress.train.average import Average
from kdcompress.train.job import Job
from kdcompress.train.minimiser import Minimiser
from kdcompress.train.processes import Processes

SIDE = 16
BATCH = 8
SETTINGS = {
    # Settings beside the defaults whose steps take other branches.
    "byot": [
        {"hint_weight": 0.03},
        {"head": "stages", "hint": "active_sum", "hint_weight": 1e-6, "hint_reads": "map"},
    ],
    "zipf": [{"votes": "logits", "only_correct": True}],
    "ddgsd": [{"divergence": "rows_and_classes", "features": "logits"}, {"features": "mean_over_all"}],
    "sad": [{"energy": "sum", "enlarge": "map", "start_share": 0.0}],
    "spkd-self": [{"start_share": 0.0}],
    "scd": [{"norm": "softmax", "start_share": 0.0}],
    "ctkd": [{"loss": "dkd"}],
    "at": [{"weight": 1000.0}],
    "crd": [{"positive": "relax", "kd_weight": 0.0}],
    "dml": [{"target": "mean_logits"}, {"update": "sequential"}],
    "ffl": [{"form": "networks", "detach": False}],
    "mfef": [{"form": "networks", "groups": 2}],
    "kdcl": [
        {"target": "general", "peers": 2},
        {"target": "linear"},
        {"target": "linear", "linear_over": "image"},
        {"target": "naive", "views": "shared"},
    ],
    "lmcl": [{"form": "memory", "negatives": 6}],
    "mcl": [{"form": "memory", "negatives": 6, "logit_weight": 1.0}, {"branches": 3, "logit_weight": 1.0}],
    "mlkd": [{"align": "squared", "contrast": "across", "kd_weight": 0.0}],
    "mixskd": [{"discriminator": "published", "mixup_ce": False}],
    "pcl": [{"branches": 2, "detach": False}],
    # Copies between the devices wait for the GPU, but read no value.
    "pskd": [{"memory": "cpu"}],
    "reviewkd": [{"student_maps": "pre"}],
    "okddip": [{"form": "networks", "leader": False}, {"target": "mean_of_others", "stem_gradient": "mean"}],
    "one": [{"detach": False}],
    "rkd": [{"sub_batch": 3, "kd_weight": 0.0}],
    "seed": [{"ce_weight": 1.0, "kd_weight": 1.0}],
    "moco": [{"norm_groups": 2}],
    "sskd": [{"tf_ratio": 0.5}],
}
DEFAULTS = {"seed": {"queue": 64}}
CASES = [
    pytest.param(name, config, marks=pytest.mark.exhaustive if config else [])
    for name in discovery.names("method")
    for config in ({}, *SETTINGS.get(name, []))
]


@pytest.fixture(autouse=True)
def autocast_as_on_a_gpu(monkeypatch):
    """Keeps torch from switching the autocast of a device off that is not here."""
    monkeypatch.setattr(common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)


@pytest.mark.parametrize(
    "precision",
    [pytest.param(None, id="fp32", marks=pytest.mark.exhaustive), pytest.param(torch.bfloat16, id="bf16")],
)
@pytest.mark.parametrize(("name", "config"), CASES)
def test_steps_stay_on_the_device_and_read_no_value(name, config, precision, tmp_path):
    small = build(tmp_path, name, config, precision)
    run_steps(small)
    for preparation in small.method.preparations(small.method.config):
        small = build(tmp_path, name, config, precision)
        data, networks = small.method.data, small.method.networks
        small.method = preparation.method(preparation.config, networks, data)
        run_steps(small)


def test_a_tensor_on_another_device_is_caught(tmp_path, monkeypatch):
    def losses(self, batch):
        logits = self.networks.student(batch.images).logits
        return {"ce": (logits * torch.ones(logits.shape[1])).sum()}

    monkeypatch.setattr(Plain, "losses", losses)
    with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
        run_steps(build(tmp_path, "none"))


def test_a_tensor_kept_outside_the_buffers_is_caught(tmp_path, monkeypatch):
    small = build(tmp_path, "none")
    kept = torch.ones(4)
    monkeypatch.setattr(
        Plain, "losses", lambda self, batch: {"ce": (self.networks.student(batch.images).logits * kept).sum()}
    )
    with pytest.raises(Exception, match="convert all Tensors to FakeTensors"):
        run_steps(small)


@pytest.mark.parametrize("read", [lambda total: total.item(), lambda total: 1.0 if total > 0 else 0.0])
@pytest.mark.parametrize("place", ["losses", "after_step"])
def test_a_read_of_a_value_is_caught(read, place, tmp_path, monkeypatch):
    small = build(tmp_path, "none")

    def reads(self, batch):
        total = self.networks.student(batch.images).logits.sum()
        return {"ce": total * read(total)}

    monkeypatch.setattr(Plain, place, reads)
    with pytest.raises(DataDependentOutputException):
        run_steps(small)


def build(folder, name, config=None, precision=None):
    config = {**DEFAULTS.get(name, {}), **(config or {})}
    labels = find_method(name).needs(find_method(name).Config(**config)).labels
    data = {"class_weights": torch.tensor([0.5, 0.5, 1.0, 2.0]), "label_smoothing": 0.1} if labels else {}
    return Small(folder, name, config=config, precision=precision, side=SIDE, held_out=8, data=data)


def run_steps(small):
    """Runs two steps of each phase; what an epoch's start reads is read before, on real tensors."""
    method, views = small.method, type(small.method).needs(small.method.config).views
    phases = method.phases()
    OPTIMISERS.clear()
    FAKES.clear()
    method.on_epoch_start(0, 2)
    tapped = [small.student, *small.peers, *([small.frozen._frozen] if small.frozen else [])]
    average, sets = Average(small.student.network, 0.9), method.parameter_sets()
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    with mode:
        for network in tapped:
            fake(network.network)
            network.mean, network.std = fake_tensor(network.mean), fake_tensor(network.std)
            network._place(torch.device("cuda"))
        fake(method)
        fake(average.network)
        assert small.student.device.type == "cuda"
        with small.student.autocast():
            product = torch.empty(2, 2, device="cuda") @ torch.empty(2, 2, device="cuda")
        assert product.dtype == (small.student.precision or torch.float32)
        for phase in phases:
            method.on_phase_start(phase.name, resumed=False)
            minimise = minimiser_of(method, {name: sets[name] for name in phase.sets})
            for number in range(2):
                batch = fake_batch(views)
                terms = method.losses(batch)
                assert {term.device.type for term in terms.values()} == {"cuda"}
                minimise.begin(number, 0, 1)
                if type(method).__name__ in DIFFERENTIATE:
                    minimise(terms)
                else:
                    method.step(batch, minimise)
                method.after_step(batch)
        average.update(0)


def minimiser_of(method, sets):
    """Makes a Minimiser of the fake forms of parameters, with clipping; gradients come from `no_backward`."""
    sets = {
        name: replace(each, parameters=tuple(FAKES[id(p)][1] for p in each.parameters))
        for name, each in sets.items()
    }
    train, optim = TrainSection(epochs=1, clip_norm=1.0), OptimSection(lr=0.1)
    job = Job("student", Path(), train, optim, 1, False, "")
    processes = Processes(0, 1, torch.device("cuda", 0))
    return Minimiser(method, sets, job, processes)


@pytest.fixture(autouse=True)
def no_backward(monkeypatch):
    """Gives every parameter a gradient where a backward pass would."""

    def backward(tensor, inputs=None):
        assert tensor.device.type == "cuda"
        for weak in list(OPTIMISERS):
            for group in weak.param_groups:
                for parameter in group["params"]:
                    if inputs is None or any(parameter is each for each in inputs):
                        parameter.grad = torch.empty_like(parameter)

    def fused_sgd(parameters, gradients, buffers, *, found_inf, **settings):
        # torch has no fake form of its kernel. What surrounds it is torch's own.
        assert found_inf is not None
        for tensor in (*parameters, *gradients, *buffers, found_inf):
            assert tensor.device.type == "cuda"

    build_optimiser = optimisers.build
    monkeypatch.setattr(torch, "_fused_sgd_", fused_sgd)
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(
        optimisers, "build", lambda *a: OPTIMISERS.append(build_optimiser(*a)) or OPTIMISERS[-1]
    )


OPTIMISERS = []
FAKES = {}
DIFFERENTIATE = ("LMCL",)


def test_a_read_of_the_loss_in_the_step_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(minimiser, "reads_late", lambda device: False)
    with pytest.raises(DataDependentOutputException):
        run_steps(build(tmp_path, "none"))


@pytest.mark.parametrize("preset", ["none", "crop", "crop_flip"])
def test_batches_of_a_set_on_the_device_read_no_value(monkeypatch, preset):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    source = MemorySource(torch.zeros(16, 3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(16), preset=preset)
    loader = TrainingLoader(source, batch_size=BATCH, seed=0, augment=preset, device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda", 0)
        near = replace(source, images=fake_tensor(source.images))
        loader.device, loader.source, loader._views = device, near, (near,)
        tasks = [Task(torch.empty(BATCH, dtype=torch.int64), (0,), 0) for _ in range(2)]
        loader._kept_tasks = {0: tasks}
        batches = list(loader._batches(0, 0))
    assert len(batches) == 2
    for batch in batches:
        tensors = (batch.images, batch.labels, batch.indices, batch.views[0].indices)
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
    # What comes from the CPU comes through pinned memory: labels and positions.
    assert len(pinned) >= 4


def fake(module):
    """Replaces parameters and buffers by fake ones on cuda; those of a memory on the CPU stay there."""
    for owner in module.modules():
        device = "cpu" if isinstance(owner, SampleMemory) and owner.on_cpu else "cuda"
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                made = torch.nn.Parameter(fake_tensor(parameter), requires_grad=parameter.requires_grad)
                owner._parameters[key] = made
                FAKES[id(parameter)] = (parameter, made)  # held, so that no other gets its id
        for key, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[key] = fake_tensor(buffer, device)


def fake_tensor(tensor, device="cuda"):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def fake_batch(views):
    indices = torch.empty(BATCH, dtype=torch.int64, device="cuda")
    images = [torch.empty(BATCH, 3, SIDE, SIDE, device="cuda") for _ in range(views)]
    labels = torch.empty(BATCH, dtype=torch.int64, device="cuda")
    return Batch(tuple(View(view, indices, number) for number, view in enumerate(images)), labels, indices)
