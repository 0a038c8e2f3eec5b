"""What every method keeps to. A new method's file is met here without a line being added."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from small_training import ALONE, FOR_SELF, SIDES, Small, Watcher, assert_same
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdcompress import discovery
from kdcompress.config import Section
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import Interrupted
from kdcompress.methods.base import find_method
from kdcompress.networks.build import build
from kdcompress.train.minimiser import Minimiser

CASES = [
    pytest.param(method, student, marks=[] if student.startswith("cifar/") else pytest.mark.exhaustive)
    for method in discovery.names("method")
    for student in SIDES
    if student not in FOR_SELF or discovery.header("method", method).group == "self"
]
EXTREMES = {
    # Settings beside the defaults that make a method another one.
    "none": [{"classifier_first": 0.5}],
    "dml": [{"target": "mean_logits", "detach": False}, {"update": "sequential"}],
    "afd": [{"feature_lr": 1e-3, "hidden": 8}],
    "ffl": [{"form": "networks", "detach": False}],
    "mfef": [{"form": "networks", "groups": 2}],
    "kdcl": [{"target": "linear"}, {"target": "general", "peers": 2}],
    "okddip": [
        {"leader": False, "target": "mean_of_others", "stem_gradient": "mean"},
        {"form": "networks", "detach": True, "ramp_epochs": 3.0},
    ],
    "one": [{"branches": 2, "detach": False, "ramp_epochs": 3.0}],
    "pcl": [{"branches": 2, "detach": False, "over_peers": "sum", "ramp_epochs": 3.0}],
    "lmcl": [{"form": "memory", "negatives": 6, "blocks": 1, "exits": 2, "meta_every": 2}],
    "mcl": [{"form": "memory", "negatives": 6, "logit_weight": 1.0}, {"branches": 3, "logit_weight": 1.0}],
    "byot": [
        {"hint_weight": 0.03},
        {"head": "stages", "hint": "mean_squared", "hint_weight": 0.05, "hint_reads": "map", "hinted": "all"},
        {"head": "bottleneck", "hint": "active_sum", "hint_weight": 1e-6, "adapters": False, "soft": "kl"},
    ],
    "zipf": [{"votes": "logits", "power": 0.5, "only_correct": True}],
    "tfkd": [{"correct": 0.9, "multiplier": 2.0}, {"teacher": "self"}],
    "pskd": [{"memory": "cpu"}],
    "ddgsd": [{"divergence": "rows_and_classes", "features": "logits", "detach": False}],
    "sad": [{"energy": "sum", "enlarge": "map", "detach": False, "imitates": "deepest", "start_share": 0.0}],
    "spkd-self": [{"weight": 100.0, "imitates": "deepest", "start_share": 0.0}],
    "scd": [{"norm": "softmax", "start_share": 0.0}],
    "snapshot": [{"cycles": 2, "label_weight": 1.0}],
    "kd": [{"logit_standardization": True}],
    "dkd": [{"logit_standardization": True, "warmup_epochs": 0}],
    "ctkd": [{"loss": "dkd", "curriculum": "linear", "ramp_epochs": 2, "logit_standardization": True}],
    "dist": [{"ce_weight": 0.0, "temperature": 1.0, "squared_factor": False}],
    "mlkd": [
        {"ce_weight": 0.0, "sup_weight": 0.0, "kd_weight": 0.0},
        {"align": "squared", "align_weight": 0.1, "contrast": "across", "kd_weight": 1.0},
    ],
    "mixskd": [
        {"discriminator": "published", "mixup_ce": False, "mix_alpha": 1.0},
        {"discriminator_weight": 0.0, "map_weight": 0.0},
    ],
    "frskd": [{"width": 1, "depth": 1, "soft_weight": 0.0}, {"attention_weight": 0.0}],
    "fitnet": [{"pre_activation": True, "kd_weight": 0.0}],
    "at": [{"ce_weight": 0.0}, {"weight": 1000.0, "kd_weight": 0.0}],
    "ab": [{"initial_share": 0.5, "weight": 0.003, "kd_weight": 0.0}],
    "sp": [{"stages": "all", "kd_weight": 0.0}],
    "rkd": [{"sub_batch": 3, "kd_weight": 0.0}],
    "srrl": [{"kd_weight": 0.0}],
    "reviewkd": [{"warmup_epochs": 0, "student_maps": "pre", "kd_weight": 0.0}],
    "crd": [{"positive": "relax", "negatives": 6, "kd_weight": 0.0}],
    "simreg": [{"head_layers": 2, "ce_weight": 1.0, "kd_weight": 1.0}],
    "seed": [{"queue": 16, "teacher_temperature": 1e-4, "ce_weight": 1.0, "kd_weight": 1.0}],
    "moco": [{"queue": 16, "norm_groups": 2, "momentum": 0.5}],
    "hsakd": [{"kd_weight": 0.0, "joint_weight": 0.5, "temperature": 1.0}],
    "sskd": [{"tf_ratio": 0.5, "ss_ratio": 0.0, "kd_weight": 0.0}],
}
RESUMED = {
    # So that meta-steps lie before and behind each stop.
    "lmcl": {"meta_every": 2},
}
EVERYTHING = {
    "train": {"ema": 0.9, "accumulate": 2, "clip_norm": 1.0, "label_smoothing": 0.1},
    "optim": {"name": "adamw", "lr": 0.002, "schedule": "one_cycle", "warmup": 0.2},
}


def beside_its_teacher(config, student):
    """Arguments of a training with this config, whose teacher may have to be of the student's class."""
    return {"config": config, **({"teacher": student} if config.get("teacher") == "self" else {})}


@pytest.mark.parametrize(("name", "student"), CASES)
def test_every_parameter_of_every_set_moves_and_the_teacher_does_not(name, student, tmp_path):
    shares = [phase.share for phase in Small(tmp_path, name, student=student).method.phases()]
    # So many epochs that no phase rounds to none of them and no ramp is still at 0, and without weight decay,
    # which would move what no gradient reaches.
    epochs = {"epochs": max(2, math.ceil(1 / min(shares)))}
    small = Small(tmp_path, name, student=student, train=epochs, optim={"weight_decay": 0.0})
    sets = small.method.parameter_sets()
    assert sets
    named = {id(p): key for key, p in parameters(small).items()}
    before = {key: [p.detach().clone() for p in held.parameters] for key, held in sets.items()}
    teacher = None if small.teacher is None else copy.deepcopy(small.teacher.network.state_dict())
    small.run()
    for key, held in sets.items():
        assert held.parameters
        still = [
            named[id(p)] for p, was in zip(held.parameters, before[key], strict=True) if torch.equal(p, was)
        ]
        assert not still, f"set {key}: {still} did not move"
    if teacher is not None:
        small.frozen.assert_unchanged()
        assert_same(teacher, small.teacher.network.state_dict())


@pytest.mark.parametrize(("name", "student"), CASES)
def test_every_trainable_parameter_belongs_to_exactly_one_set_and_every_set_to_a_phase(
    name, student, tmp_path
):
    for config in [{}, *EXTREMES.get(name, [])]:
        method = Small(tmp_path, name, student=student, **beside_its_teacher(config, student)).method
        sets, phases = method.parameter_sets(), method.phases()
        ids = [id(p) for held in sets.values() for p in held.parameters]
        assert len(ids) == len(set(ids))
        modules = [*method.networks.trained(), method]
        assert set(ids) == {id(p) for module in modules for p in module.parameters() if p.requires_grad}
        assert {s for phase in phases for s in phase.sets} == set(sets)
        assert sum(phase.share for phase in phases) == pytest.approx(1)


@pytest.mark.parametrize(("name", "student"), CASES)
def test_every_module_is_registered_and_no_network_is_part_of_the_method(name, student, tmp_path):
    method = Small(tmp_path, name, student=student).method
    registered = {id(module) for module in method.modules()}
    beside = [n.network for n in (method.networks.student, *method.networks.peers)]
    if method.networks.teacher is not None:
        beside += [method.networks.teacher.tapped.network, method.networks.teacher._frozen.network]
    theirs = {id(module) for network in beside for module in network.modules()}
    assert not registered & theirs
    known = {id(t) for module in (*beside, method) for t in _tensors(module)}
    for owner in method.modules():
        hidden = [
            module
            for module in _hidden(vars(owner))
            if id(module) not in registered | theirs and not _only_wraps(module, known)
        ]
        assert not hidden, f"{type(owner).__name__} holds modules that are not registered: {hidden}"


def _only_wraps(module, known):
    """Tells if a module runs parts of a network (the student's own branch) and has no tensor of its own."""
    own = {id(t) for t in _tensors(module)} if isinstance(module, nn.Module) else set()
    return bool(own) and own <= known


def _tensors(module):
    return [*module.parameters(), *module.buffers()]


def _hidden(value):
    """The modules and parameters in plain attributes, in whatever container."""
    if isinstance(value, dict):
        children = [v for k, v in value.items() if k not in ("_modules", "_parameters", "_buffers")]
    elif isinstance(value, list | tuple | set):
        children = list(value)
    else:
        children = []
        if isinstance(value, nn.Module | nn.Parameter):
            yield value
    for child in children:
        yield from _hidden(child)


@pytest.mark.parametrize(("name", "student"), CASES)
def test_terms_are_finite_float32_scalars(name, student, tmp_path):
    terms = first_terms(Small(tmp_path, name, student=student))
    for key, term in terms.items():
        assert term.shape == (), key
        assert term.dtype == torch.float32, key
        assert term.isfinite(), key
    assert any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize(("name", "student"), CASES)
def test_the_sum_of_the_terms_is_minimised_and_each_is_logged(name, student, tmp_path):
    if Small(tmp_path / "plain", name, student=student).method.has_own_step:
        pytest.skip("its own step may minimise more than `losses`")
    one_step = {"train": {"max_steps": 1, "epochs": 2}, "held_out": 0, "float64": True}
    small = Small(tmp_path / "by_hand", name, student=student, **one_step)
    terms = first_terms(small)
    sum(terms.values()).backward()
    trained = Small(tmp_path / "trained", name, student=student, **one_step)
    trained.run()
    line = json.loads((tmp_path / "trained" / "log.jsonl").read_text())
    assert line["losses"] == pytest.approx(
        {key: term.item() for key, term in terms.items()},
        rel=1e-6,
        abs=1e-12,  # logged in float32
    )
    expected = parameters(small)
    for key, parameter in parameters(trained).items():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-9, atol=1e-12, msg=key)


def first_terms(small):
    """The terms of the first batch, in the mode of the first phase."""
    phase = small.method.phases()[0]
    small.trainer._train_mode(phase)
    small.method.on_phase_start(phase.name, resumed=False)
    small.method.on_epoch_start(0, 2)
    return small.method.losses(next(small.loader.epoch(0)))


def parameters(small):
    """Everything that has parameters of its own, by name."""
    modules = small.trainer._modules()
    return {f"{name}.{key}": p for name, m in modules.items() for key, p in m.named_parameters()}


class LossOperations(TorchDispatchMode):
    """Notes the softmaxes, logarithms, norms and cross-entropies that are given half precision."""

    WATCHED = ("softmax", "log", "exp", "norm", "nll_loss", "mse_loss", "smooth_l1", "div.Tensor", "kl_div")

    def __init__(self):
        super().__init__()
        self.seen, self.halved = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").removeprefix("_")
        if name.startswith(self.WATCHED) and "batch_norm" not in name:
            self.seen += 1
            if any(isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 for a in args):
                self.halved.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", discovery.names("method"))
def test_losses_are_computed_in_float32_under_bf16_autocast(name, tmp_path):
    small = Small(tmp_path, name, precision=torch.bfloat16)
    small.method.on_phase_start(small.method.phases()[0].name, resumed=False)
    small.method.on_epoch_start(0, 2)
    batch = next(small.loader.epoch(0))
    with LossOperations() as operations:
        terms = small.method.losses(batch)
    assert operations.seen
    assert not operations.halved
    assert {term.dtype for term in terms.values()} == {torch.float32}
    # Even a caller that is itself under autocast gets no other losses.
    with torch.autocast("cpu", torch.bfloat16), LossOperations() as operations:
        terms = small.method.losses(batch)
    assert not operations.halved
    assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.mark.parametrize("name", discovery.names("method"))
def test_a_step_of_each_phase_under_bf16_autocast_has_finite_gradients_for_every_set(name, tmp_path):
    small = Small(tmp_path, name, precision=torch.bfloat16)
    method, trainer, sets = small.method, small.trainer, small.method.parameter_sets()
    batch, phases = next(small.loader.epoch(0)), method.phases()
    for number, phase in enumerate(phases):
        trainer._train_mode(phase)
        method.on_phase_start(phase.name, resumed=False)
        for key, held in sets.items():
            for parameter in held.parameters:
                parameter.requires_grad_(key in phase.sets)
        minimise = Minimiser(method, {key: sets[key] for key in phase.sets}, trainer.job, ALONE)
        minimise.set_rate(0, 2, 2)
        minimise.begin(number, 0, 1)
        method.on_epoch_start(len(phases) + number, 2 * len(phases))  # where no ramp is at 0 any more
        method.step(batch, minimise)  # raises if a term is not finite
        method.after_step(batch)
        for key in phase.sets:
            slopes = [p.grad for p in sets[key].parameters if p.grad is not None]
            assert all(slope.isfinite().all() for slope in slopes), (phase.name, key)
            assert any(slope.any() for slope in slopes), (phase.name, key)
            assert all(p.isfinite().all() for p in sets[key].parameters), (phase.name, key)


@pytest.mark.parametrize("name", discovery.names("method"))
def test_a_run_stopped_and_resumed_in_each_epoch_equals_an_unbroken_one_bit_for_bit(name, tmp_path):
    assert_resumes(tmp_path, (3, 7), name, config=RESUMED.get(name))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(name, config, marks=pytest.mark.exhaustive if number else [])
        for name in discovery.names("method")
        for number, config in enumerate(EXTREMES.get(name, []))
    ],
)
def test_so_it_does_with_settings_beside_the_defaults(name, config, tmp_path):
    # Where the second epoch has begun.
    assert_resumes(tmp_path, (7,), name, **beside_its_teacher(config, "cifar/resnet8"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "kd" else pytest.mark.exhaustive)
        for name in discovery.names("method")
    ],
)
def test_so_it_does_with_every_setting_and_a_network_that_drops_out(name, tmp_path):
    student = "torchvision/mobilenet_v3_small"
    config = EXTREMES.get(name, [{}])[-1]
    # Three steps an epoch, the last of them a batch short; step 5 lies within the second epoch and phase.
    assert_resumes(tmp_path, (5,), name, student=student, **beside_its_teacher(config, student), **EVERYTHING)


def assert_resumes(folder, stops, name, **arguments):
    """Checks that a run that is stopped at each of these steps in turn ends as one that is never stopped."""
    unbroken = Small(folder / "unbroken", name, **arguments)
    expected = unbroken.run()
    for number, stop in enumerate(stops):
        stopped = Small(folder / "stopped", name, **arguments, watcher=Watcher(stop))
        torch.rand(7 * number)  # whatever a new process draws before it goes on
        message = rf"step {stop} of \d+; go on with: kdcompress distill --resume"
        with pytest.raises(Interrupted, match=message):
            stopped.run()
    resumed = Small(folder / "stopped", name, **arguments)
    torch.rand(7)
    got = resumed.run()
    assert_same(unbroken.tensors(), resumed.tensors())
    assert_same(expected.state, got.state)
    assert (got.candidate, got.epoch, got.best, got.last) == (
        expected.candidate, expected.epoch, expected.best, expected.last,
    )  # fmt: skip
    lines = [log(folder / which) for which in ("unbroken", "stopped")]
    assert lines[0] == lines[1]


def log(folder):
    """The lines of the log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        logged = line.pop("logged", {})
        line["logged"] = {k: v for k, v in logged.items() if not k.endswith(("_seconds", "_time_share"))}
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s")} for line in lines]


@pytest.mark.parametrize(("name", "student"), CASES)
def test_what_ships_is_the_plain_class_and_nothing_else(name, student, tmp_path):
    small = Small(tmp_path, name, student=student, train={"epochs": 2, "ema": 0.5})
    outcome = small.run()
    assert outcome.model == student
    side = SIDES[student]
    # A backbone's class is that of its classifier, built for no classes.
    kind = {"num_classes": small.student.num_classes, "channels": 3, "image_size": (side, side)}
    plain = build(student, **kind)
    assert list(outcome.state) == list(plain.state_dict())
    images = next(small.loader.epoch(1)).images
    for key, candidate in small.method.candidates().items():
        fresh = build(candidate.model, **kind)
        fresh.load_state_dict(candidate.state(), strict=True)
        if candidate.module is not None:
            assert count_parameters(candidate.module) == count_parameters(fresh)
            assert count_macs(candidate.module, 3, side, side) == count_macs(fresh, 3, side, side)
        with torch.no_grad():
            # In the memory format of the training, which decides how a convolution rounds.
            own = fresh.eval().to(memory_format=torch.channels_last)(small.student.normalise(images))
            assert torch.equal(own, trained_outputs(small, key, candidate, images))
    plain.load_state_dict(outcome.state, strict=True)


def trained_outputs(small, key, candidate, images):
    """Outputs of a candidate from the modules that were trained: of a branch, those of its cohort."""
    small.student.network.eval()
    small.method.eval()
    if candidate.module is not None:
        return candidate.module.eval()(small.student.normalise(images))
    cohort = small.method.averaged if key.startswith("ema_") else small.method.cohort
    _, readings = cohort(images)
    return readings[small.method.names().index(key.removeprefix("ema_"))].logits


def without_labels(name):
    cls = find_method(name)
    return not cls.needs(cls.Config()).labels


def by_its_teacher(name):
    cls = find_method(name)
    return cls.needs(cls.Config()).teacher


@pytest.mark.parametrize(
    "name", [name for name in discovery.names("method") if without_labels(name) and by_its_teacher(name)]
)
def test_a_method_that_needs_no_labels_learns_without_and_is_chosen_by_its_teacher(name, tmp_path):
    small = Small(tmp_path, name, labelled=False)
    outcome = small.run()
    assert 0 <= outcome.best["agreement"] <= 1
    assert not {"top1", "knn_top1", "loss"} & outcome.best.keys()


def trains_a_backbone(name):
    cls = find_method(name)
    return not cls.needs(cls.Config()).task.has_classes


@pytest.mark.parametrize(
    "name",
    [name for name in discovery.names("method") if without_labels(name) and not by_its_teacher(name)],
)
def test_without_labels_and_teacher_the_last_epoch_ships_and_labels_choose_where_there_are_some(
    name, tmp_path
):
    outcome = Small(tmp_path / "none", name, labelled=False).run()
    assert (outcome.best, outcome.epoch) == (None, 2)
    labelled = Small(tmp_path / "some", name).run()
    assert 0 <= labelled.best["knn_top1"] <= 1
    assert "agreement" not in labelled.best


@pytest.mark.parametrize(
    "name", [name for name in discovery.names("method") if trains_a_backbone(name) and by_its_teacher(name)]
)
def test_what_trains_a_backbone_learns_from_a_teacher_that_is_one(name, tmp_path):
    small = Small(tmp_path, name, headless=True)
    assert not small.student.task.has_classes
    assert not small.frozen.task.has_classes
    before = copy.deepcopy(small.student.network.state_dict())
    outcome = small.run()
    assert {"knn_top1", "agreement"} <= outcome.best.keys()
    assert not torch.equal(outcome.state["conv1.weight"], before["conv1.weight"])
    small.frozen.assert_unchanged()


@pytest.mark.parametrize("name", discovery.names("method"))
def test_a_config_is_a_section_of_the_recipe_with_defaults_and_documented_weights(name):
    cls = find_method(name)
    assert issubclass(cls.Config, Section)
    assert cls.Config() == cls.Config.model_validate(cls.Config().model_dump(mode="json"))
    assert cls.__doc__
