"""Networks that learn without labels, and figures of clusters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from golden_checks.method import gradients, method
from kdcompress.methods import losses
from kdcompress.metrics.clustering import cluster_figures, contingency
from kdcompress.metrics.neighbours import votes
from kdcompress.probe.features import Features
from kdcompress.probe.knn import knn


def moco_infonce(z, dtype, compare):
    student, copy = (nn.Linear(*reversed(z.tensor("wq").shape), dtype=dtype) for _ in range(2))
    for layer, names in ((student, ("wq", "bq")), (copy, ("wk_before", "bk_before"))):
        layer.weight.data, layer.bias.data = (z.tensor(name) for name in names)
    made = method("moco", 0, temperature=z.number("T"), momentum=z.number("m"))
    made._unqueued = []
    made.queue, made.pointer = z.tensor("queue_before"), torch.zeros((), dtype=torch.int64)
    # The file's step begins with what ends a step of a training.
    made.follow(copy.parameters(), student.parameters())
    compare("wk_after", copy.weight)
    compare("bk_after", copy.bias)
    queries, keys = student(z.tensor("xq")), copy(z.tensor("xk")).detach()
    rows = losses.unit_rows(queries), losses.unit_rows(keys)
    compare("logits", losses.queue_logits(*rows, made.queue, z.number("T")))
    loss = made.contrast(queries, keys)
    compare("loss", loss)
    for name, gradient in zip(("wq", "bq"), gradients(loss, list(student.parameters())), strict=True):
        compare(f"grad_{name}", gradient)
    made.enqueue()
    compare("queue_after", made.queue)
    compare("queue_ptr_after", made.pointer.to(dtype).reshape(1))


def cluster_metrics(z, dtype, compare):
    labels = z.tensor("labels")
    for name in (name.removesuffix("_clusters") for name in z.names if name.endswith("_clusters")):
        figures = cluster_figures(z.tensor(f"{name}_clusters"), labels)
        for ours, theirs in (("nmi", "nmi"), ("ari", "ari"), ("accuracy", "acc")):
            compare(f"{name}_{theirs}", torch.tensor(figures[ours], dtype=dtype))
        assigned = z.tensor(f"{name}_clusters")
        compare(f"{name}_nmi_geometric", geometric_nmi(figures["nmi"], assigned, labels, dtype))
    bank = Features(z.tensor("knn_train"), z.tensor("knn_train_labels"))
    queries, truth, k = z.tensor("knn_test"), z.tensor("knn_test_labels"), z.number("knn_k")
    tau = z.number("knn_tau")
    classes = z.tensor("knn_scores").shape[1]
    predicted = knn(bank, queries, classes, k=k, temperature=tau)
    compare("knn_pred", predicted.to(dtype))
    compare("knn_acc", (predicted == truth).to(dtype).mean())
    cosines, neighbours = (F.normalize(queries, dim=1) @ F.normalize(bank.values, dim=1).T).topk(k)
    compare("knn_neighbours", neighbours.to(dtype))
    scores = votes(cosines, bank.labels[neighbours], classes, tau) * (cosines[:, :1] / tau).exp()
    compare("knn_scores", scores)
    # Classes without a vote are in any order there.
    ranked = scores.gather(1, z.tensor("knn_ranking"))
    assert (ranked[:, :-1] >= ranked[:, 1:]).all()


def geometric_nmi(nmi, assigned, labels, dtype):
    """The product's mutual information over the geometric mean of both entropies.

    The product divides by the arithmetic mean; both entropies come from its table of counts.
    """
    table = contingency(assigned, labels).double()
    shares = [table.sum(dim) / table.sum() for dim in (0, 1)]
    entropies = [torch.special.entr(share).sum() for share in shares]
    product = entropies[0] * entropies[1]
    if product == 0:  # one cluster of all images tells nothing
        return torch.zeros((), dtype=dtype)
    return (nmi * sum(entropies) / 2 / product.sqrt()).to(dtype)


CHECKS = {"moco_infonce": moco_infonce, "cluster_metrics": cluster_metrics}
