"""Targets made of labels, ranks and earlier predictions of the same network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from golden_checks.method import batch_of, gradients, method, student_of
from kdcompress.data.batch import DataInfo
from kdcompress.methods import losses
from kdcompress.methods.memory import SampleMemory
from kdcompress.methods.selfkd.pskd import PSKD
from kdcompress.networks.networks import Networks
from kdcompress.recipe import OptimSection
from kdcompress.train.optimisers import factor


def zipf_rank(z, dtype, compare):
    labels, logits = z.tensor("labels"), z.tensor("logits").requires_grad_()
    classes = logits.shape[1]
    for suffix, config in {
        "": {},
        "_mask_correct_only": {"only_correct": True},
        "_power05": {"power": 0.5},
    }.items():
        zipf = method("zipf", classes, weight=1.0, votes="logits", **config)
        loss = zipf.terms(logits, logits.detach(), labels)["zipf"]
        compare(f"loss{suffix}", loss)
        compare(f"grad_logits{suffix}", gradients(loss, [logits])[0])
    compare("pdf", losses.zipf_targets(logits.detach(), labels))
    compare("pdf_power05", losses.zipf_targets(logits.detach(), labels, 0.5))
    # Power 0 gives all other classes the same target, the ablation that the authors call constant.
    constant = method("zipf", classes, weight=1.0, votes="logits", power=0.0)
    compare("loss_constant", constant.terms(logits, logits.detach(), labels)["zipf"])


# `grad_logits_l4` of the dense files holds two backward passes, that of kd alone and that of the total.


def zipf_dense(z, dtype, compare, upsample=2):
    z.read.add("min_vote_gap")
    labels, fmap = z.tensor("labels"), z.tensor("fmap4").requires_grad_()
    classifier = nn.Linear(*reversed(z.tensor("fc4_w").shape), dtype=dtype)
    classifier.weight.data, classifier.bias.data = z.tensor("fc4_w"), z.tensor("fc4_b")
    logits = classifier(fmap.mean((2, 3)))
    compare("logits_l4", logits)
    counts = losses.dense_votes(fmap, classifier.weight, classifier.bias, upsample)
    compare("counts", counts)
    votes = z.tensor("votes")
    assert torch.equal(F.one_hot(votes, counts.shape[1]).sum(1).to(dtype), counts)
    zipf = method("zipf", logits.shape[1], weight=z.number("lam"), upsample=upsample)
    zipf.dense, zipf.stage = True, "last"  # the constructor reads them from a network
    student = student_of(lambda images: {"logits": logits, "stages": {"last": images}})
    student.classifier = classifier
    zipf.networks = Networks(student)
    terms = zipf.losses(batch_of([fmap], labels))
    compare("pdf", losses.zipf_targets(counts, labels))
    compare("xent_l4", terms["ce"])
    compare("kd", terms["zipf"] / z.number("lam"))
    compare("total", sum(terms.values()))
    compare("grad_kd_logits", gradients(terms["zipf"] / z.number("lam"), [logits])[0])
    of_logits, of_map = gradients(sum(terms.values()), [logits, fmap])
    compare("grad_fmap4", of_map)
    compare("grad_logits_l4", of_logits + gradients(terms["zipf"] / z.number("lam"), [logits])[0])


def zipf_dense_noup(z, dtype, compare):
    zipf_dense(z, dtype, compare, upsample=1)


def zipf_dense_multi(z, dtype, compare):
    # Votes of three levels are those of each added up. The classifiers of the shallower levels are trained by
    # cross-entropies of their own, which the authors' default leaves out and the product does not have.
    z.read.update({"min_vote_gap", "alpha"})
    labels = z.tensor("labels")
    counts = 0
    for level in (4, 3, 2):
        counts = counts + losses.dense_votes(
            z.tensor(f"fmap{level}"), z.tensor(f"fc{level}_w"), z.tensor(f"fc{level}_b"), 2
        )
    compare("counts", counts)
    votes = F.one_hot(z.tensor("votes"), counts.shape[1]).sum(1).to(dtype)
    assert torch.equal(votes, counts)
    compare("pdf", losses.zipf_targets(counts, labels))
    maps = {level: z.tensor(f"fmap{level}").requires_grad_() for level in (4, 3, 2)}
    logits = {
        level: F.linear(maps[level].mean((2, 3)), z.tensor(f"fc{level}_w"), z.tensor(f"fc{level}_b"))
        for level in maps
    }
    zipf = method("zipf", counts.shape[1], weight=z.number("lam"))
    terms = zipf.terms(logits[4], counts, labels)
    compare("kd", terms["zipf"] / z.number("lam"))
    compare("grad_kd_logits", gradients(terms["zipf"] / z.number("lam"), [logits[4]])[0])
    compare("xent_l4", terms["ce"])
    shallow = {level: zipf.cross_entropy(logits[level], labels) for level in (3, 2)}
    total = sum(terms.values()) + z.number("alpha") * sum(shallow.values())
    compare("total", total)
    for level in maps:
        compare(f"logits_l{level}", logits[level])
        if level != 4:
            compare(f"xent_l{level}", shallow[level])
        got = gradients(total, [logits[level]])[0]
        if level == 4:
            got = got + gradients(terms["zipf"] / z.number("lam"), [logits[4]])[0]
        compare(f"grad_logits_l{level}", got)
        compare(f"grad_fmap{level}", gradients(total, [maps[level]])[0])


def tfkd(z, dtype, compare):
    labels, logits = z.tensor("labels"), z.tensor("logits").requires_grad_()
    teacher, classes = z.tensor("teacher_logits"), logits.shape[1]
    for name in ("reg_r18", "reg_mbv2", "reg_googlenet", "self_r18", "self_mbv2"):
        virtual = name.startswith("reg")
        made = method(
            "tfkd", classes, teacher="virtual" if virtual else "self", alpha=z.number(f"{name}_alpha"),
            temperature=z.number(f"{name}_T"), multiplier=z.number(f"{name}_multiplier"),
        )  # fmt: skip
        loss = sum(made.terms(logits, labels, None if virtual else teacher).values())
        compare(f"{name}_loss", loss)
        compare(f"{name}_grad", gradients(loss, [logits])[0])
    # Label smoothing that spreads its share over the other classes only, beside which they compare.
    loss = smoothed_cross_entropy(logits, labels, z.number("ls_eps"))
    compare("ls_loss", loss)
    compare("ls_grad", gradients(loss, [logits])[0])


def smoothed_cross_entropy(logits, labels, share):
    """The loss of plain training with `share` of each label spread evenly over the other classes."""
    classes = logits.shape[1]
    # The recipe's label smoothing gives the label's own class its part, so a little more is spread.
    plain = method("none", classes, label_smoothing=share * classes / (classes - 1))
    plain.networks = Networks(student_of(lambda images: {"logits": images}))
    return plain.losses(batch_of([logits], labels))["ce"]


def tfkd_selfkdlib(z, dtype, compare):
    # Another reading by a library: its term's gradient is nearly nothing beside the cross-entropy, and tfkd
    # does not offer it. Both parts are losses of plain training.
    labels, logits = z.tensor("labels"), z.tensor("logits").requires_grad_()
    temperature = z.number("T")
    reg = smoothed_cross_entropy(logits / temperature, labels, z.number("eps")) / temperature
    ce = smoothed_cross_entropy(logits, labels, 0.0)
    for name, value in {"reg": reg, "ce": ce, "total": ce + reg}.items():
        compare(name, value)
    compare("grad_logits", gradients(ce + reg, [logits])[0])


def pskd(z, dtype, compare):
    labels, classes = z.tensor("labels"), z.tensor("e0_logits_by_sample").shape[1]
    student = student_of(lambda images: {"logits": images})  # an image here is its logits
    config = PSKD.Config(alpha=z.number("alpha_T"), full_weight_epochs=0)
    made = PSKD(config, Networks(student), DataInfo(classes, labels, (8, 8), 1))
    # The product stores float16, which would hide an error below 0.0003.
    wide = SampleMemory(len(labels), classes, dtype=dtype, device="method")
    wide.load_state_dict(made.memory.state_dict())
    made.memory = wide
    for epoch in range(sum(name.endswith("_alpha") for name in z.names)):
        made.on_epoch_start(epoch, z.number("total_epochs"))
        compare(f"e{epoch}_alpha", torch.tensor(made.share(), dtype=dtype))
        logits, order = z.tensor(f"e{epoch}_logits_by_sample"), z.tensor(f"e{epoch}_order")
        targets, totals, slopes = [], [], []
        for rows in order.chunk(len(z.tensor(f"e{epoch}_losses"))):
            own = logits[rows].requires_grad_()
            batch = batch_of([own], labels[rows], rows)
            loss = made.losses(batch)["soft_labels"]
            (slope,) = gradients(loss, [own])
            made.after_step(batch)
            totals.append(loss)
            slopes.append(slope)
            # The gradient of a cross-entropy with a soft target is (softmax - target) / rows.
            targets.append(own.detach().softmax(1) - len(rows) * slope)
        compare(f"e{epoch}_losses", torch.stack(totals))
        compare(f"e{epoch}_soft_targets", torch.stack(targets))
        compare(f"e{epoch}_grad_logits", torch.stack(slopes))
        compare(f"e{epoch}_memory_after", made.memory.rows)


def snapshot_transcription(z, dtype, compare):
    labels, logits = z.tensor("labels"), z.tensor("logits").requires_grad_()
    teacher = z.tensor("teacher_logits")
    for temperature in (2, 3):
        prefix = f"T{temperature}_"
        made = method(
            "snapshot", logits.shape[1], temperature=temperature, weight=z.number(prefix + "lambda_t")
        )
        terms = made.terms(logits, teacher, labels)
        compare(prefix + "ce", terms["ce"] / z.number(prefix + "lambda_s"))
        compare(prefix + "softce", terms["snapshot"])
        target = losses.probabilities(teacher / temperature)
        entropy = -(target * target.log()).sum(1).mean()
        compare(prefix + "kl", terms["snapshot"] - entropy)
        compare(prefix + "total", sum(terms.values()))
        compare(prefix + "grad_logits", gradients(sum(terms.values()), [logits])[0])
    # Each phase has a half cosine of its own, step by step.
    per_cycle, rate = z.number("lr_iters_per_cycle"), z.number("lr_init")
    phases = made_phases(z, per_cycle)
    optim = OptimSection(lr=rate, schedule="cosine")
    steps = (z.tensor("lr_iters") - 1) % per_cycle
    got = [rate * factor(optim, int(step), per_cycle, per_cycle) for step in steps]
    compare("lr", torch.tensor(got, dtype=dtype))
    last = torch.tensor([step == per_cycle - 1 for step in steps])
    z.equal("snapshot_after_iter", last)
    assert all(phase.schedule == "cosine" for phase in phases)


def made_phases(z, per_cycle):
    made = method("snapshot", 10, cycles=len(z.tensor("lr_iters")) // per_cycle)
    made.parameter_sets = lambda: {"main": None}
    return made.phases()


CHECKS = {
    "zipf_rank": zipf_rank,
    "zipf_dense": zipf_dense,
    "zipf_dense_noup": zipf_dense_noup,
    "zipf_dense_multi": zipf_dense_multi,
    "tfkd": tfkd,
    "tfkd_selfkdlib": tfkd_selfkdlib,
    "pskd": pskd,
    "snapshot_transcription": snapshot_transcription,
}
