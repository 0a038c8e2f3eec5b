from __future__ import annotations

import hashlib
import json
import math
import types

import pytest
import torch
import torch.nn.functional as F
from small_training import Small
from torch import nn

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.exit_method import exit_stages
from kdcompress.methods.hypergradient import SGD, Stepped, hypergradient, sgd_trajectory
from kdcompress.train.minimiser import Minimiser

MEMORY = {"form": "memory", "negatives": 12}


def small(folder, **arguments):
    """A training whose networks drop out in front of their classifiers."""
    made = Small(folder, "lmcl", **arguments)
    for network in (made.student, *made.peers):
        network.network.fc.register_forward_pre_hook(lambda _, inputs: (F.dropout(inputs[0], 0.25),))
    made.trainer._train_mode(made.method.phases()[0])
    made.method.on_phase_start("main", resumed=False)
    made.method.on_epoch_start(0, 2)
    return made


def test_the_derivative_through_one_step_is_the_one_on_paper():
    theta, phi = (
        torch.tensor(2.0, dtype=torch.float64),
        torch.tensor(0.3, dtype=torch.float64).requires_grad_(),
    )
    result = hypergradient(
        [lambda t: phi * t[0].square() / 2], lambda t: t[0].square() / 2, (theta,), (phi,), SGD(0.1)
    )
    # θ' = θ (1 - lr φ), so d(θ'²/2)/dφ = θ' · (-lr θ).
    after = 2.0 * (1 - 0.1 * 0.3)
    assert result.loss.item() == pytest.approx(after**2 / 2)
    assert result.gradients[0].item() == pytest.approx(after * -0.1 * 2.0)
    assert phi.grad is None


def test_the_replayed_derivative_is_that_of_one_unrolled_graph():
    torch.manual_seed(0)
    start = (torch.randn(3, dtype=torch.float64), torch.randn((), dtype=torch.float64))
    phi = (torch.randn(3, dtype=torch.float64).requires_grad_(), torch.zeros(2).double().requires_grad_())
    sgd = SGD(0.1, 0.9, 0.05)

    def inner(t):  # the second parameter has no gradient: it decays
        return (phi[0] * t[0].sin()).sum() + (t[0].square() * phi[0].exp()).sum()

    def outer(t):
        return (t[0] * t[1]).sum().square()

    objectives = [inner, inner, outer, inner]
    theta, velocity = [t.clone().requires_grad_() for t in start], [torch.zeros_like(t) for t in start]
    points = [theta]
    for objective in objectives:
        found = torch.autograd.grad(
            objective(theta), theta, create_graph=True, allow_unused=True, materialize_grads=True
        )
        velocity = [0.9 * v + g + 0.05 * t for v, g, t in zip(velocity, found, theta, strict=True)]
        theta = [t - 0.1 * v for t, v in zip(theta, velocity, strict=True)]
        points.append(theta)
    expected = torch.autograd.grad(outer(theta), phi[0])[0]
    got = hypergradient(objectives, outer, start, phi, sgd)
    torch.testing.assert_close(got.gradients[0], expected, rtol=1e-12, atol=1e-14)
    assert not got.gradients[1].any()
    for point, values in zip(points, sgd_trajectory(objectives, start, sgd), strict=True):
        torch.testing.assert_close(tuple(t.detach() for t in point), values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "config", [{}, MEMORY, {"soft_vcl_weight": 0.0, "soft_icl_weight": 0.0}], ids=["batch", "memory", "hard"]
)
def test_the_methods_meta_gradient_agrees_with_finite_differences(config, tmp_path):
    made = small(tmp_path, config=config, float64=True)
    method, batch = made.method, next(made.loader.epoch(0))
    # Targets of the soft losses are constants, also in the second derivative: all runs have those of the
    # first. Without soft losses there are none.
    targets, again = [], None
    if config.get("soft_vcl_weight") != 0:
        imitate = method.imitate

        def with_first_targets(learner, target, weights):
            if again is None:
                targets.append(target.detach())
            return imitate(learner, targets[-1] if again is None else next(again), weights)

        method.imitate = with_first_targets
    torch.manual_seed(3)  # dropout masks
    result = method.meta_gradient(batch, 0.02)
    # So small that no ReLU switches: the simulated steps jump where one does.
    size = 1e-6
    for _ in range(2):
        direction = [torch.randn_like(p) for p in method.matchers.parameters()]
        slope = sum((g * d).sum().item() for g, d in zip(result.gradients, direction, strict=True))
        ends = []
        for sign in (1, -1):
            again = iter(targets)
            shift(method.matchers, direction, sign * size)
            torch.manual_seed(3)
            ends.append(method.meta_gradient(batch, 0.02).loss.item())
            shift(method.matchers, direction, -sign * size)
        assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(slope, rel=1e-5)


def shift(module, direction, size):
    with torch.no_grad():
        for parameter, d in zip(module.parameters(), direction, strict=True):
            parameter.add_(d, alpha=size)


def fingerprint(tensors):
    """A hash of each tensor's bytes, by name."""
    return {
        name: hashlib.sha256(
            t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, t in tensors.items()
    }


def optimiser_tensors(minimise):
    return {
        f"{name}.{number}.{key}": value
        for name, optimiser in minimise.optimisers.items()
        for number, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


class MetaStepAlone:
    """Leaves the ordinary update out."""

    def __init__(self, minimise):
        self.minimise, self.rate, self.log = minimise, minimise.rate, minimise.log
        self.is_last_batch = minimise.is_last_batch

    def losses(self, batch):
        return {}

    def __call__(self, terms, *sets):
        if sets == ("meta",):
            self.minimise(terms, *sets)


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", [{}, MEMORY], ids=["batch", "memory"])
def test_a_meta_step_leaves_no_trace_but_in_the_meta_network_and_its_optimiser(config, precision, tmp_path):
    made = small(tmp_path, config=config, precision=precision)
    method, trainer = made.method, made.trainer
    minimise = Minimiser(method, method.parameter_sets(), trainer.job, trainer.processes)
    first, second = list(made.loader.epoch(0))[:2]
    minimise.begin(0, 0, 1)
    method.step(first, minimise)  # so that there is momentum, and there are gradients
    method.after_step(first)
    method.progress[1] = method.config.meta_every
    method.on_epoch_start(0, 2)
    assert method.meta_step_is_due

    def state():
        everything = made.tensors() | {
            f"grad.{name}.{key}": p.grad
            for name, module in trainer._modules().items()
            for key, p in module.named_parameters()
            if p.grad is not None
        }
        everything |= {f"optim.{k}": v for k, v in optimiser_tensors(minimise).items()}
        modes = {name: m.training for root in trainer._modules().values() for name, m in root.named_modules()}
        return fingerprint(everything | {"generator": torch.get_rng_state()}), modes, made.student.precision

    before = state()
    minimise.begin(1, 0, 1)
    method.step(second, MetaStepAlone(minimise))
    after = state()
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    changed = {name for name in before[0] if before[0][name] != after[0][name]}
    assert changed
    rest = {
        n for n in changed if not n.startswith(("method.matchers.", "grad.method.matchers.", "optim.meta."))
    }
    assert not rest
    own = {f"method.matchers.{name}" for name, _ in method.matchers.named_parameters()}
    assert own <= changed


def test_the_meta_gradient_is_computed_in_float32_under_bf16(tmp_path):
    results = []
    for name, precision in (("half", torch.bfloat16), ("full", None)):
        made = small(tmp_path / name, precision=precision)
        torch.manual_seed(5)
        results.append(made.method.meta_gradient(next(made.loader.epoch(0)), 0.02))
        assert made.student.precision == precision
    for half, full in zip(results[0].gradients, results[1].gradients, strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 3, 5, 8]), (8, [0, 5]), (50, [0])])
def test_meta_steps_come_every_so_many_steps_or_where_an_epoch_begins_at_the_runs_rate(
    every, steps, tmp_path
):
    made = Small(tmp_path, "lmcl", config={"meta_every": every}, train={"epochs": 2})  # 5 steps an epoch
    method, seen = made.method, []

    def record(batch, rate):
        seen.append((made.trainer.at.step, rate))
        zeros = tuple(torch.zeros_like(p) for p in method.matchers.parameters())
        return types.SimpleNamespace(loss=torch.zeros(()), gradients=zeros)

    method.meta_gradient = record
    made.run()
    assert [step for step, _ in seen] == steps
    for step, rate in seen:
        assert rate == pytest.approx(0.02 * (1 + math.cos(math.pi * step / 10)) / 2)


def test_meta_gradients_of_all_batches_of_a_step_are_those_of_the_weights_after_the_update(tmp_path):
    made = Small(
        tmp_path, "lmcl", config={"meta_every": 1}, train={"accumulate": 2, "epochs": 1}, float64=True
    )  # fmt: skip
    method, compute, finish = made.method, made.method.meta_gradient, made.method.after_step
    results, batches_of_steps, mean_losses = [], [], []

    def record(batch, rate):
        results.append((compute(batch, rate), batch.indices, weights()))
        return results[-1][0]

    def weights():
        return torch.cat([p.detach().reshape(-1) for p in made.student.network.parameters()])

    def check(batch):
        for _, _, seen in results:
            assert torch.equal(seen, weights())
        assert not any(torch.equal(weights(), start) for start in starts)
        for number, parameter in enumerate(method.matchers.parameters()):
            mean = sum(result.gradients[number] for result, _, _ in results) / len(results)
            torch.testing.assert_close(parameter.grad, mean, rtol=1e-9, atol=1e-12)
        batches_of_steps.append([indices.tolist() for _, indices, _ in results])
        mean_losses.append(sum(result.loss.item() for result, _, _ in results) / len(results))
        results.clear()
        starts.append(weights())
        finish(batch)

    starts = [weights()]
    method.meta_gradient, method.after_step = record, check
    made.run()
    assert [len(batches) for batches in batches_of_steps] == [2, 2, 1]  # 5 batches an epoch
    expected = [batch.indices.tolist() for batch in made.loader.epoch(0)]
    assert [indices for batches in batches_of_steps for indices in batches] == expected
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["losses"]["meta"] == pytest.approx(sum(mean_losses) / 3, rel=1e-6)  # logged in float32


def test_a_resumed_run_knows_when_a_meta_step_is_due(tmp_path):
    made = small(tmp_path / "one")
    assert made.method.meta_step_is_due
    for _ in range(30):
        made.method.after_step(None)
    again = small(tmp_path / "two").method
    again.load_state_dict(made.method.state_dict())
    for epoch, due in ((0, False), (1, True)):  # 30 of 50 steps: only where an epoch begins
        again.on_epoch_start(epoch, 2)
        assert again.meta_step_is_due == due
    again.after_step(None)
    assert not again.meta_step_is_due


def test_only_the_meta_step_trains_the_projections(tmp_path):
    made = small(tmp_path)
    sets = made.method.parameter_sets()
    assert {id(p) for p in sets["meta"].parameters} == {id(p) for p in made.method.matchers.parameters()}
    sum(made.method.losses(next(made.loader.epoch(0))).values()).backward()
    assert all(p.grad is None for p in sets["meta"].parameters)
    assert all(p.grad is not None for p in sets["main"].parameters)


def test_the_log_has_the_seconds_of_meta_steps_and_their_share(tmp_path):
    Small(tmp_path, "lmcl", config={"meta_every": 2}).run()
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        line = json.loads(line)
        assert line["logged"]["meta_seconds"] > 0
        assert 0 < line["logged"]["meta_time_share"] < 1
        assert "meta" in line["losses"]


def test_exits_whose_projections_agree_match_best(tmp_path):
    method = small(tmp_path).method
    features = [[torch.randn(4, 64) for _ in range(3)] for _ in range(2)]
    features[1][2] = features[0][0]
    method.matchers[1][2].load_state_dict(method.matchers[0][0].state_dict())
    weights = method.match(features)
    assert set(weights) == {((0, k), (1, z)) for k in range(3) for z in range(3)}
    best = weights.pop(((0, 0), (1, 2)))
    torch.testing.assert_close(best, torch.full((4,), 1 / (1 + math.exp(-1))))
    for each in weights.values():
        assert (each > 1 / (1 + math.exp(1)) - 1e-6).all()
        assert (each < best).all()


def test_within_a_network_an_exit_is_compared_with_its_own_networks_bank(tmp_path):
    ones = {f"{term}_weight": 1.0 for term in ("vcl", "soft_vcl", "icl", "soft_icl")}
    sizes = {"negatives": 3, "exits": 2, "width": 5}
    config = {"form": "memory", "full_weight_epochs": 0, **sizes, **ones}
    method = small(tmp_path, config=config, float64=True).method
    columns = method.draws(torch.tensor([1, 2, 6]))
    rows = {
        (i, k): F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=1) for i in (0, 1) for k in (0, 1)
    }
    weights = {((0, k), (1, z)): torch.rand(3, dtype=torch.float64) for k in (0, 1) for z in (0, 1)}
    terms = method.bank_contrast([[rows[i, k] for k in (0, 1)] for i in (0, 1)], weights, columns)

    def shares(end, network, b, temperature=1.0):
        """Of one image: the softmax over the rows of a network's bank, the image's own row first."""
        bank = method.banks[network].rows
        first = 1 if end[0] == network else 0  # within a network its own row is left out
        each = [math.exp((bank[c] @ rows[end][b]).item() / 0.1 / temperature) for c in columns[b, first:]]
        return [e / sum(each) for e in each]

    def divergence(target, learner):
        return 9 * sum(p * math.log(p / q) for p, q in zip(target, learner, strict=True))

    expected = dict.fromkeys(terms, 0.0)
    for (one, other), w in weights.items():
        for a, b in ((one, other), (other, one)):
            for r in range(3):
                # Each pair of networks counts in both orders.
                weight = 2 * w[r].item() / 3
                own = shares(a, a[0], r)
                expected["vcl"] -= weight * math.log(own[0])
                expected["soft_vcl"] += weight * divergence(shares(b, b[0], r, 3.0), shares(a, a[0], r, 3.0))
                across = shares(a, b[0], r)
                expected["icl"] -= weight * (math.log(across[0]) + math.log(across[1])) / 2
                expected["soft_icl"] += weight * divergence(
                    shares(b, a[0], r, 3.0), shares(a, b[0], r, 3.0)
                )  # fmt: skip
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-9)


def test_logits_are_mixed_with_weights_of_each_image():
    scores = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    logits = torch.tensor([[[2.0, 0], [0, 4]], [[2.0, 0], [0, 4]]])
    torch.testing.assert_close(losses.mixed_logits(scores, logits), torch.tensor([[1.0, 2], [1.5, 1]]))


def test_a_network_has_exits_behind_its_last_stages(tmp_path):
    three = small(tmp_path / "three").method
    assert three.stages == [["stage1", "stage2"]] * 2
    assert [len(heads) for heads in three.heads] == [3, 3]
    made = Small(tmp_path / "two", "lmcl", config={"exits": 2})
    two, images = made.method, torch.rand(4, 3, 8, 8)
    assert two.stages == [["stage2"]] * 2
    features, logits = two.read_exits(images)
    for network, exits in zip((made.student, *made.peers), logits, strict=True):
        assert torch.equal(exits[-1], network(images).logits)
    assert [[rows.shape for rows in exits] for exits in features] == [[(4, 64)] * 2] * 2
    assert [[rows.shape for rows in exits] for exits in logits] == [[(4, 4)] * 2] * 2
    one_stage = types.SimpleNamespace(
        model="own/net", shapes=lambda: types.SimpleNamespace(stages={"stage1": None})
    )
    with pytest.raises(NetworkError, match="own/net has 1; name them in taps"):
        exit_stages("lmcl", one_stage, 3)


def test_hard_sigmoids_are_differentiated_twice_and_keep_their_values():
    x = torch.linspace(-4, 4, 17, dtype=torch.float64, requires_grad=True)
    module = nn.Hardsigmoid()
    stepped = Stepped([nn.Linear(1, 1)])
    value = stepped.objective(lambda: (module(x) * x).sum())(stepped.start())
    assert value.item() == pytest.approx((module(x) * x).sum().item())
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    inside = (x > -3) & (x < 3)
    torch.testing.assert_close(second[inside], torch.full_like(second[inside], 1 / 3))


def test_a_network_without_second_derivatives_is_refused_by_name(tmp_path):
    made = small(tmp_path)
    gate = torch.ops.aten.hardsigmoid.default
    made.student.network.fc.register_forward_pre_hook(lambda _, inputs: (gate(inputs[0]),))
    with pytest.raises(NetworkError, match=r"cannot do so for one of cifar/resnet8 .*hardsigmoid_backward"):
        made.method.meta_gradient(next(made.loader.epoch(0)), 0.02)
