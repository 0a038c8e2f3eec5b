"""Teacher to student, on pooled vectors and through trained modules: methods built from shapes alone."""

from __future__ import annotations

import types

import torch
from torch import nn

from golden_checks.method import fill, gradients, method
from kdcompress.data.batch import DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import find_method
from kdcompress.networks.activations import Activations


def built(name, dtype, student, teacher, labels, num_classes, **config):
    """A method beside networks that have shapes and are never run."""
    cls = find_method(name)

    def network(shapes):
        return types.SimpleNamespace(model="given", shapes=lambda: shapes)

    networks = types.SimpleNamespace(student=network(student), teacher=network(teacher), peers=())
    info = DataInfo(num_classes, labels, (8, 8), 1)
    return cls(cls.Config(**{"kd_weight": 0.0, **config}), networks, info).to(dtype)


def shapes(pooled=None, maps=()):
    named = {f"stage{i + 1}": m.detach().to("meta") for i, m in enumerate(maps)}
    return Activations(pooled=None if pooled is None else pooled.detach().to("meta"), stages=named)


def relations(only=None):
    """A check of RKD's distances, its angles, or both with their weights."""

    def check(z, dtype, compare):
        student, teacher = z.tensor("feat_s").requires_grad_(), z.tensor("feat_t")
        weights = {"distance_weight": float(only == "distance"), "angle_weight": float(only == "angle")}
        if only is None:
            weights = {"distance_weight": z.number("hp_w_d"), "angle_weight": z.number("hp_w_a")}
        loss = sum(method("rkd", 10, **weights).relations(student, teacher).values())
        compare("loss", loss)
        compare("grad_feat_s", gradients(loss, [student])[0])

    return check


def srrl(z, dtype, compare):
    student, teacher = z.tensor("feat_s").requires_grad_(), z.tensor("feat_t")
    logits, labels = z.tensor("logits_s").requires_grad_(), z.tensor("target")
    classifier = nn.Linear(1, 1)
    classifier.weight = nn.Parameter(z.tensor("param_teacher_fc_weight"), requires_grad=False)
    classifier.bias = nn.Parameter(z.tensor("param_teacher_fc_bias"), requires_grad=False)
    pooled = teacher.mean((2, 3))
    made = built(
        "srrl", dtype, shapes(maps=[student]), shapes(pooled), labels, logits.shape[1],
        classifier_weight=z.number("hp_weight"),
    )  # fmt: skip
    made.networks.teacher.classify = classifier
    conv, norm, _ = made.connector
    conv.weight.data = z.tensor("param_conv_weight")
    norm.weight.data, norm.bias.data = z.tensor("param_bn_weight"), z.tensor("param_bn_bias")
    assert norm.eps == z.number("hp_bn_eps")
    connected = made.connector(student)
    compare("out_connected", connected)
    compare("out_logits_t", classifier(pooled))
    compare("out_logits_sc", classifier(connected.mean((2, 3))))
    terms = made.regressions(connected.mean((2, 3)), pooled, classifier(pooled))
    compare("loss_fm", terms["features"])
    compare("loss_sr", terms["classifier"])
    loss = sum(terms.values())
    compare("loss", loss)
    ce = made.cross_entropy(logits, labels)
    compare("loss_ce", ce)
    compare("loss_total", loss + ce)
    for name, tensor in (("feat_s", student), ("logits_s", logits), ("conv_weight", conv.weight)):
        compare(f"grad_{name}", gradients(loss + ce, [tensor])[0])
    assert z.number("note_script_bug")  # about the authors' script; nothing to compare


def reviewkd(z, dtype, compare):
    count = len(z.tensor("hp_in_channels"))
    ours = [z.tensor(f"feat_s_{i}").requires_grad_() for i in range(count)]
    theirs = [z.tensor(f"feat_t_{i}") for i in range(count)]
    # The deepest level is the pooled vector.
    given = [(maps[-1].mean((2, 3)), maps[:-1]) for maps in (ours, theirs)]
    made = built(
        "reviewkd", dtype, shapes(*given[0]), shapes(*given[1]), torch.zeros(0, dtype=torch.int64), 10,
        weight=1.0, warmup_epochs=0,
    )  # fmt: skip
    for i, fusion in enumerate(made.fusions):
        parts = {"conv1": fusion.reduce, "conv2": fusion.expand}
        if fusion.gates is not None:
            parts["att_conv"] = fusion.gates[:1]
        for part, layers in parts.items():
            for k, layer in enumerate(layers):
                fill(z, layer, f"param_abf{i}_{part}_{k}")
                assert getattr(layer, "eps", z.number("hp_bn_eps")) == z.number("hp_bn_eps")
    named = [{f"stage{i + 1}": m for i, m in enumerate(maps[:-1])} for maps in (ours, theirs)]
    seen = Activations(pooled=given[0][0], stages=named[0])
    maps, targets = made.levels(seen, Activations(pooled=given[1][0], pre=named[1]))
    if maps[0].shape != ours[-1].shape:  # a file may end in a larger map than training does
        maps[0], targets[0] = ours[-1], theirs[-1]
    fused = made.fuse(maps, targets)
    for i, got in enumerate(reversed(fused)):
        compare(f"out_fused_{i}", got)
    loss = made.review(fused, targets)
    compare("loss", loss)
    for i, gradient in enumerate(gradients(loss, ours)):
        compare(f"grad_feat_s_{i}", gradient)
    single = z.tensor("hcl_feat_s").requires_grad_()
    loss = losses.hierarchical_context(single, z.tensor("hcl_feat_t"))
    compare("loss_hcl_single", loss)
    compare("grad_hcl_feat_s", gradients(loss, [single])[0])


def crd(z, dtype, compare):
    student, teacher = z.tensor("feat_s").requires_grad_(), z.tensor("feat_t").requires_grad_()
    index, columns, labels = z.tensor("index"), z.tensor("contrast_index"), z.tensor("labels_of_dataset")
    width = z.tensor("memory_v1").shape[1]
    made = built(
        "crd", dtype, shapes(student), shapes(teacher), labels, int(labels.max()) + 1,
        weight=1.0, negatives=z.number("hp_nce_k"), contrast_temperature=z.number("hp_nce_t"),
        momentum=z.number("hp_nce_m"), width=width,
    )  # fmt: skip
    linears = {"s": made.embed_student, "t": made.embed_teacher}
    for side, linear in linears.items():
        linear.weight.data = z.tensor(f"param_embed_{side}_weight")
        linear.bias.data = z.tensor(f"param_embed_{side}_bias")
    banks = {"v1": made.bank_student, "v2": made.bank_teacher}
    for side, bank in banks.items():
        bank.copy_(z.tensor(f"memory_{side}"))
    # What it would draw itself has the form of what the file holds.
    drawn = made.columns(index)
    assert drawn.shape == columns.shape
    assert torch.equal(drawn[:, 0], columns[:, 0])
    for negatives in (drawn[:, 1:], columns[:, 1:]):
        assert (labels[negatives] != labels[index].unsqueeze(1)).all()

    loss = made.contrast(student, teacher, index, columns)
    compare("loss", loss)
    compare("out_Z_v1", made.normalisation[0])
    compare("out_Z_v2", made.normalisation[1])
    scores = made.scores(*made.embeddings(student, teacher), columns)
    for i, side in enumerate(linears):
        compare(f"out_scores_v{i + 1}", scores[i].unsqueeze(2))
        compare(f"loss_{side}", losses.noise_contrastive(scores[i], len(labels)))
        compare(f"grad_embed_{side}_weight", gradients(loss, [linears[side].weight])[0])
    compare("grad_feat_s", gradients(loss, [student])[0])
    compare("grad_feat_t", gradients(loss, [teacher])[0])
    made.after_step(None)
    for side, bank in banks.items():
        compare(f"out_memory_{side}", bank)
    loss = made.contrast(student, teacher, index, columns)
    compare("loss_step2", loss)
    compare("grad_feat_s_step2", gradients(loss, [student])[0])
    made.after_step(None)
    for side, bank in banks.items():
        compare(f"out_memory_{side}_step2", bank)


CHECKS = {
    "rkd_d": relations("distance"),
    "rkd_a": relations("angle"),
    "rkd_total": relations(),
    "rkd_d_duplicate_rows": relations("distance"),
    "srrl": srrl,
    "reviewkd": reviewkd,
    "crd": crd,
}
