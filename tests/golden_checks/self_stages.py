"""Shallower stages of a network beside its deeper ones."""

from __future__ import annotations

import itertools

import torch

from golden_checks.method import gradients, method
from kdcompress.methods import losses
from kdcompress.methods.losses import energy, maps


def sad_selfkdlib(z, dtype, compare):
    features = [z.tensor(f"feat_{i}").requires_grad_() for i in range(4)]
    made = method("sad", 10, weight=z.number("weight"), enlarge="map")
    parts = [made.compare(a, b) for a, b in itertools.pairwise(features)]
    for i, part in enumerate(parts):
        compare(f"pair_{i}{i + 1}", part / z.number("weight"))
    total = sum(parts)
    compare("loss_weighted", total)
    compare("loss_unweighted", total / z.number("weight"))
    for i, feature in enumerate(features):
        compare(f"grad_feat_{i}", gradients(total, [feature])[0])
        rows, _, height, width = feature.shape
        attention = energy._spatial_softmax(energy._energy(feature, "mean"))
        compare(f"att_{i}", attention.view(rows, height, width))
        if i:
            larger = energy._enlarged(feature, (2 * height, 2 * width))
            attention = energy._spatial_softmax(energy._energy(larger, "mean"))
            compare(f"att_up_{i}", attention.view(rows, 2 * height, 2 * width))


def sad_enet_atgen(z, dtype, compare):
    maps_ = {i: z.tensor(f"x{i}").requires_grad_() for i in (1, 2, 3)}
    made = method("sad", 10, weight=1.0, energy="sum", detach=False)
    for i, j in ((1, 2), (2, 3)):
        loss = made.compare(maps_[i], maps_[j])
        compare(f"loss_{i}{j}", loss)
        for k, got in zip((i, j), gradients(loss, [maps_[i], maps_[j]]), strict=True):
            compare(f"grad{i}{j}_x{k}", got)


def spkd_pair(z, dtype, compare):
    shallow, deep = z.tensor("shallow").requires_grad_(), z.tensor("deep")
    loss = method("spkd_self", 10, weight=1.0).compare(shallow, deep)
    compare("loss", loss)
    compare("grad_shallow", gradients(loss, [shallow])[0])
    compare("G_shallow", maps._similarities(shallow))
    compare("G_deep", maps._similarities(deep))


def at_pair(z, dtype, compare):
    # The attention term of frskd, on maps of two sizes.
    shallow, deep = z.tensor("shallow").requires_grad_(), z.tensor("deep")
    loss = losses.attention_transfer(shallow, deep)
    compare("loss", loss)
    compare("grad_shallow", gradients(loss, [shallow])[0])
    compare("att_shallow_pooled", maps._attention(shallow, tuple(deep.shape[2:]), 2.0))
    compare("att_deep", maps._attention(deep, tuple(deep.shape[2:]), 2.0))


def scd_reconstruction(z, dtype, compare):
    features = [z.tensor(f"feat_{i}").requires_grad_() for i in range(4)]
    pairs = {"adjacent": [(0, 1), (1, 2), (2, 3)], "deepest": [(0, 3), (1, 3), (2, 3)]}
    for norm in ("l2", "softmax"):
        made = method("scd", 10, weight=1.0, norm=norm)
        for name, chosen in pairs.items():
            parts = torch.stack([made.compare(features[i], features[j]) for i, j in chosen])
            compare(f"{norm}_{name}_parts", parts)
            compare(f"{norm}_{name}_loss", parts.sum())
            for i, got in enumerate(gradients(parts.sum(), features)):
                compare(f"{norm}_{name}_grad_feat_{i}", got)
        for i, feature in enumerate(features):
            compare(f"{norm}_att_{i}", energy.attention_rows(feature, norm))
            compare(f"{norm}_G_{i}", maps._similarities(energy.attention_rows(feature, norm)))


CHECKS = {
    "sad_selfkdlib": sad_selfkdlib,
    "sad_enet_atgen": sad_enet_atgen,
    "spkd_pair": spkd_pair,
    "at_pair": at_pair,
    "scd_reconstruction": scd_reconstruction,
}
