"""Networks contrast their embeddings by class: in a batch, and against banks."""

from __future__ import annotations

import itertools
import types

import torch
from torch import nn

from golden_checks.method import gradients, method
from kdcompress.methods import losses
from kdcompress.methods.base import ParameterSet, find_method
from kdcompress.methods.hypergradient import SGD, sgd_trajectory
from kdcompress.methods.losses import unit_rows
from kdcompress.methods.memory import SampleMemory
from kdcompress.networks.networks import Networks
from kdcompress.recipe import OptimSection
from kdcompress.train import optimisers

WEIGHTS = {"vcl": "alpha_vcl", "soft_vcl": "gamma_soft_vcl", "icl": "beta_icl", "soft_icl": "lam_soft_icl"}


def numbered(z, prefix):
    """The tensors PREFIX0, PREFIX1, ... of a file."""
    names = [f"{prefix}{i}" for i in range(len(z.names)) if f"{prefix}{i}" in z.names]
    return [z.tensor(name).requires_grad_() for name in names]


def contrasting(name, z, classes=2, **config):
    """The method with a file's temperatures, all four weights 1."""
    # A file without temperatures has those of the Config.
    named = {"contrast_temperature": "hp_tau", "soft_temperature": "hp_kd_T"}
    temperatures = {field: z.number(key) for field, key in named.items() if key in z.names}
    weights = {f"{term}_weight": 1.0 for term in WEIGHTS}
    return method(name, classes, **temperatures, **weights, **config)


def published_sum(z, terms):
    default = find_method("mcl").Config()
    weights = {
        term: z.number(f"hp_{key}") if f"hp_{key}" in z.names else getattr(default, f"{term}_weight")
        for term, key in WEIGHTS.items()
    }
    return sum(weight * terms[term] for term, weight in weights.items())


def mcl_inbatch(z, dtype, compare):
    raw = numbered(z, "in_z")
    made = contrasting("mcl", z)
    sets = [name.removeprefix("in_labels_") for name in z.names if name.startswith("in_labels_")]
    for labels, k in itertools.product(sets, range(2, len(raw) + 1)):
        prefix = f"{labels}_K{k}"
        terms = made.contrast([unit_rows(rows) for rows in raw[:k]], z.tensor(f"in_labels_{labels}"))
        terms |= {"total": published_sum(z, terms), "unweighted_sum": sum(terms.values())}
        for term, value in terms.items():
            # NaN in the file where a class stands in the batch once: the code that trains leaves it out.
            if z.tensor(f"out_{prefix}_{term}").isfinite():
                compare(f"out_{prefix}_{term}", value)
            else:
                assert labels == "single"
                assert value.isfinite()
            if f"grad_{prefix}_{term}_wrt_z0" in z.names:
                for i, grad in enumerate(gradients(value, raw[:k])):
                    compare(f"grad_{prefix}_{term}_wrt_z{i}", grad)


def mcl_heads_and_logit_kd(z, dtype, compare):
    features, logits = numbered(z, "in_rep"), numbered(z, "in_logits")
    made = contrasting("mcl", z, width=z.tensor("in_head0_b1").shape[0])
    without_autocast(made)
    weights, embeddings = {}, []
    for i, rows in enumerate(features):
        head = made.embedding_head(rows.shape[1])
        for layer, number in ((head[0], 1), (head[2], 2)):
            for kind in ("weight", "bias"):
                key = f"head{i}_{'W' if kind == 'weight' else 'b'}{number}"
                weights[key] = nn.Parameter(z.tensor(f"in_{key}"))
                setattr(layer, kind, weights[key])
        embeddings.append(made.embed(head, rows))
        compare(f"out_embed{i}", embeddings[-1])
    terms = made.contrast(embeddings, z.tensor("in_labels"))
    for term, value in (terms | {"total": published_sum(z, terms)}).items():
        compare(f"out_{term}", value)
    total = published_sum(z, terms)
    inputs = {f"rep{i}": rows for i, rows in enumerate(features)} | weights
    for name, grad in zip(inputs, gradients(total, list(inputs.values())), strict=True):
        compare(f"grad_total_wrt_{name}", grad)
    for k, imagenet in itertools.product(range(2, len(logits) + 1), (False, True)):
        learners = "last" if imagenet or k > 2 else "all"
        adds = method(
            "mcl", logits[0].shape[1], logit_weight=1.0, logit_learners=learners, logit_detach=not imagenet
        )  # fmt: skip
        key = f"logit_kd{'_imagenet' if imagenet else ''}_K{k}"
        loss = adds.logit_imitation(logits[:k])
        compare(f"out_{key}", loss)
        for i, grad in enumerate(gradients(loss, logits[:k])):
            compare(f"grad_{key}_wrt_logits{i}", grad)


def banks_of(z, made, count):
    made.banks = nn.ModuleList()
    for i in range(count):
        rows = z.tensor(f"in_memory{i}")
        made.banks.append(SampleMemory(*rows.shape, dtype=rows.dtype, device="method"))
        made.banks[i].rows.copy_(rows)


def mcl_memory(z, dtype, compare):
    raw = numbered(z, "in_z")
    columns = torch.cat([z.tensor("in_pos_idx"), z.tensor("in_neg_idx")], 1)
    for k in range(2, len(raw) + 1):
        made = contrasting("mcl", z, form="memory", bank_momentum=z.number("hp_memory_momentum"))
        banks_of(z, made, k)
        embeddings = [unit_rows(rows) for rows in raw[:k]]
        terms = made.bank_contrast(embeddings, columns)
        terms["total"] = published_sum(z, terms)
        for term, value in terms.items():
            compare(f"out_K{k}_{term}", value)
            for i, grad in enumerate(gradients(value, raw[:k])):
                compare(f"grad_K{k}_{term}_wrt_z{i}", grad)
        made.keep(columns[:, 0], embeddings)
        made.update_banks()
        for i, bank in enumerate(made.banks):
            compare(f"out_K{k}_memory{i}_after", bank.rows)


def layered(z, parts, shape):
    """`parts` by network and exit: [[in_z0_0, in_z0_1, ...], ...] of the pattern "in_z{}_{}"."""
    networks, exits = shape
    return [[z.tensor(parts.format(i, s)).requires_grad_() for s in range(exits)] for i in range(networks)]


def shape_of(z, pattern):
    """Number of networks and of exits in a file."""
    networks = next(i for i in range(99) if pattern.format(i, 0) not in z.names)
    return networks, next(s for s in range(99) if pattern.format(0, s) not in z.names)


def without_autocast(made):
    student = torch.autocast("cpu", enabled=False)
    made.networks.student = type("Student", (), {"autocast": lambda self: student})()


def stand_in_for_networks(made, modules):
    """Gives a method stand-ins for its networks, which have parameters and are never run."""
    stubs = [
        types.SimpleNamespace(
            network=module, model="toy", precision=None, compiled=None, device=torch.device("cpu"),
            autocast=lambda: torch.autocast("cpu", enabled=False),
        )
        for module in modules
    ]  # fmt: skip
    made.networks = Networks(stubs[0], None, tuple(stubs[1:]))


def linear(z, prefix):
    weight = z.tensor(f"{prefix}_weight")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(z.tensor(f"{prefix}_bias"))
    return layer


def perceptron(z, prefix):
    return nn.Sequential(linear(z, f"{prefix}_0"), nn.ReLU(), linear(z, f"{prefix}_2"))


def by_exit(shape, build):
    networks, exits = shape
    return nn.ModuleList(nn.ModuleList(build(i, s) for s in range(exits)) for i in range(networks))


def order_of(z):
    """The file's ordered pairs of exits."""
    return [((i, k), (j, s)) for i, k, j, s in z.tensor("out_weight_order").tolist()]


def lmcl_inbatch(z, dtype, compare):
    shape = shape_of(z, "in_feat{}_{}")
    features, logits = (layered(z, f"in_{kind}{{}}_{{}}", shape) for kind in ("feat", "logits"))
    labels = z.tensor("in_labels")
    made = contrasting("lmcl", z, logits[0][0].shape[1], peers=shape[0] - 1)
    without_autocast(made)
    made.heads = by_exit(shape, lambda i, s: perceptron(z, f"in_head{i}_{s}_proj_head"))
    made.matchers = by_exit(shape, lambda i, s: linear(z, f"in_meta_proj_{i}_{s}"))
    made.aggregators = nn.ModuleList(perceptron(z, f"in_agg_proj_head_{i}") for i in range(shape[0]))

    embeddings, weights = made.embeddings(features), made.match(features)
    aggregated = made.aggregate(features, logits)
    compare("out_weights", torch.stack([weights[min(pair, pair[::-1])] for pair in order_of(z)]))
    for i, exits in enumerate(embeddings):
        compare(f"out_agg_logits{i}", aggregated[i])
        for s, rows in enumerate(exits):
            compare(f"out_embed{i}_{s}", rows)
    constant = {pair: rows.detach() for pair, rows in weights.items()}
    terms = made.contrast(embeddings, constant, labels)
    of_logits = made.logit_terms(logits, aggregated, labels)
    compare(
        "out_ce_stages",
        sum(v for name, v in of_logits.items() if name.startswith("ce_") and name != "ce_aggregated"),
    )
    compare("out_ce_agg", of_logits["ce_aggregated"])
    compare("out_logit_kd", of_logits["logits"])
    single = made.contrast(
        [embeddings[0][:1], embeddings[1][2:3]], {((0, 0), (1, 0)): constant[(0, 0), (1, 2)]}, labels
    )
    contrast = published_sum(z, terms)
    sums = terms | {"mcl_total": contrast, "total": contrast + sum(of_logits.values())}
    sums["inner"] = published_sum(z, made.contrast(embeddings, weights, labels))
    for term in terms:
        # A pair stands for both orders of its networks.
        compare(f"out_pair_0_0_1_2_{term}", single[term] / 2)
    inputs = {
        f"{kind}{i}_{s}": rows
        for kind, all_rows in (("feat", features), ("logits", logits))
        for i, exits in enumerate(all_rows)
        for s, rows in enumerate(exits)
    }
    for name, module in (("meta_proj", made.matchers), ("agg_proj_head", made.aggregators)):
        inputs |= {f"{name}_{key.replace('.', '_')}": p for key, p in module.named_parameters()}
    for term, value in sums.items():
        compare(f"out_{'inner_objective' if term == 'inner' else term}", value)
        for name, grad in zip(inputs, gradients(value, list(inputs.values())), strict=True):
            if f"grad_{term}_wrt_{name}" in z.names:
                compare(f"grad_{term}_wrt_{name}", grad)


def lmcl_memory(z, dtype, compare):
    shape = shape_of(z, "in_z{}_{}")
    raw = layered(z, "in_z{}_{}", shape)
    inputs = {f"z{i}_{s}": rows for i, exits in enumerate(raw) for s, rows in enumerate(exits)}
    columns = torch.cat([z.tensor("in_pos_idx"), z.tensor("in_neg_idx")], 1)
    made = contrasting(
        "lmcl", z, peers=shape[0] - 1, form="memory", bank_momentum=z.number("hp_memory_momentum")
    )
    banks_of(z, made, shape[0])
    embeddings = [[unit_rows(rows) for rows in exits] for exits in raw]
    given = dict(zip(order_of(z), z.tensor("in_weights"), strict=True))
    # The file's weights differ between the two orders of a pair; those of training do not.
    weights = {pair: (w + given[pair[::-1]]) / 2 for pair, w in given.items() if pair[0] < pair[1]}
    # What crosses the networks is as published.
    terms = made.bank_contrast(embeddings, weights, columns)
    for term in ("icl", "soft_icl"):
        compare(f"out_{term}", terms[term])
    # Within the second network of a pair the authors read the first one's bank. The code that trains reads
    # its own: those values are put together here from its losses, with the authors' bank.
    rows, count = columns.shape
    positives = losses.bank_columns(rows, count - 1, 1, embeddings[0][0])
    published = {"vcl": 0.0, "soft_vcl": 0.0}
    for number, ((i, k), (j, s)) in enumerate(given):
        weight = given[(i, k), (j, s)]
        own = made.compare_with_bank([embeddings[i][k], embeddings[j][s]], made.banks[i], columns[:, 1:])
        both = {
            "vcl": sum(losses.class_contrast(each, positives, weight) for each in own),
            "soft_vcl": made.imitate(own[0], own[1], weight) + made.imitate(own[1], own[0], weight),
        }
        published = {term: published[term] + value for term, value in both.items()}
        if f"out_pair{number}_icl" in z.names:
            pair = ((0, k), (1, s)) if i < j else ((0, s), (1, k))
            alone = [embeddings[0][pair[0][1]], embeddings[1][pair[1][1]]]
            crossing = made.bank_contrast([[each] for each in alone], {((0, 0), (1, 0)): weight}, columns)
            for term, value in (both | {t: crossing[t] / 2 for t in ("icl", "soft_icl")}).items():
                compare(f"out_pair{number}_{term}", value)
    for term, value in published.items():
        compare(f"out_{term}", value)
    total = published_sum(z, terms | published)
    compare("out_total", total)
    for name, grad in zip(inputs, gradients(total, list(inputs.values())), strict=True):
        compare(f"grad_total_wrt_{name}", grad)
    made.keep(columns[:, 0], [exits[-1] for exits in embeddings])
    made.update_banks()
    for i, bank in enumerate(made.banks):
        compare(f"out_memory{i}_after", bank.rows)


class Toy(nn.Module):
    """The file's students with two exits each, and the heads, which are stepped together."""

    def __init__(self, z, networks):
        super().__init__()
        self.students = nn.ModuleList(
            nn.ModuleDict({part: linear(z, f"in_net_n_{i}_{part}") for part in ("l1", "l2", "c1", "c2")})
            for i in range(networks)
        )
        self.heads = by_exit(
            (networks, 2), lambda i, s: perceptron(z, f"in_crit_embed_list_{i}_{s}_proj_head")
        )

    def names(self):
        """The file's names of the parameters."""
        replaced = (("students.", "net_n_"), ("heads.", "crit_embed_list_"))
        for name, _ in self.named_parameters():
            for ours, theirs in replaced:
                name = name.replace(ours, theirs)
            if name.startswith("crit"):
                *exit_, layer, kind = name.split(".")
                name = "_".join([*exit_, "proj_head", layer, kind])
            yield name.replace(".", "_")

    def read(self, x):
        features, logits = [], []
        for student in self.students:
            first = student["l1"](x).tanh()
            second = student["l2"](first).tanh()
            features.append([first, second])
            logits.append([student["c1"](first), student["c2"](second)])
        return features, logits


def lmcl_meta_step(z, dtype, compare):
    networks = next(i for i in range(99) if f"in_net_n_{i}_l1_weight" not in z.names)
    sgd = SGD(z.number("hp_lr"), z.number("hp_momentum"), z.number("hp_weight_decay"))
    made = method(
        "lmcl", z.tensor("in_net_n_0_c1_bias").shape[0], peers=networks - 1,
        contrast_temperature=z.number("hp_tau"), soft_temperature=z.number("hp_kd_T"),
        meta_times=z.number("hp_times"), meta_momentum=sgd.momentum, meta_weight_decay=sgd.weight_decay,
        **{f"{term}_weight": z.number(f"hp_{key}") for term, key in WEIGHTS.items()},
    )  # fmt: skip
    made.matchers = by_exit((networks, 2), lambda i, s: linear(z, f"in_meta_proj_{i}_{s}"))
    toy = Toy(z, networks)
    made.heads, made.exits = toy.heads, nn.ModuleList()  # the toy's exits are in its students
    made.read_exits = toy.read
    stand_in_for_networks(made, toy.students)
    batch = types.SimpleNamespace(images=z.tensor("in_x"), labels=z.tensor("in_labels"))

    steps, final, start = made.simulated_steps(batch)
    compare("out_inner_loss_start", steps[0](start))
    compare("out_outer_loss_start", final(start))
    for number, point in enumerate(sgd_trajectory(steps, start, sgd)[1:], start=1):
        for name, values in zip(toy.names(), point, strict=True):
            compare(f"out_step{number}_{name}", values)
    meta = tuple(made.matchers.parameters())
    before = [p.clone() for p in start]
    names = [f"proj_{name.replace('.', '_')}" for name, _ in made.matchers.named_parameters()]
    compare("out_outer_loss_after_steps", made.meta_gradient(batch, sgd.lr).loss)
    for decay, kind in ((sgd.weight_decay, "exact"), (0.0, "exact_wd0")):
        made.config = made.config.model_copy(update={"meta_weight_decay": decay})
        result = made.meta_gradient(batch, sgd.lr)
        for name, grad in zip(names, result.gradients, strict=True):
            compare(f"out_hypergrad_{kind}_{name}", grad)
    assert all(torch.equal(p, was) for p, was in zip(start, before, strict=True))
    # `out_hypergrad_authors_*` lacks a factor (see the class's docstring) and is not reproduced. The authors'
    # step with it is the step of a run's optimiser.
    settings = OptimSection(lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    optimiser = optimisers.build(settings, ParameterSet(meta))
    for parameter, name in zip(meta, names, strict=True):
        parameter.grad = z.tensor(f"out_hypergrad_authors_{name}")
    optimiser.step()
    for parameter, name in zip(meta, names, strict=True):
        compare(f"out_meta_after_sgd_authors_{name}", parameter)


CHECKS = {
    "mcl_inbatch": mcl_inbatch,
    "mcl_heads_and_logit_kd": mcl_heads_and_logit_kd,
    "mcl_memory": mcl_memory,
    "lmcl_inbatch_K2": lmcl_inbatch,
    "lmcl_inbatch_K3": lmcl_inbatch,
    "lmcl_memory": lmcl_memory,
    "lmcl_meta_step": lmcl_meta_step,
}
