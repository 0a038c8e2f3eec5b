"""Run folders whose quality was evaluated, from made-up logits: good, useless, of two classes, of many."""

from __future__ import annotations

import json

import torch
from run_folders import write_run

from kdcompress.report.evaluation import SplitOutputs, evaluate_classifier, intervals, temperature_of
from kdcompress.report.thumbnails import thumbnail
from kdcompress.tasks.classification import accuracy


def logits_of(labels, num_classes, skill, seed):
    """Noise, and `skill` more for the true class."""
    noise = torch.randn(len(labels), num_classes, generator=torch.Generator().manual_seed(seed))
    return noise + skill * torch.nn.functional.one_hot(labels, num_classes)


def labels_of(counts):
    return torch.cat([torch.full((n,), number) for number, n in enumerate(counts)])


def write_evaluated(
    folder, *, counts=(30,) * 10, skill=4.0, held_out=True, names=None, baseline=True, **parts
):
    """Writes a run with `counts[k]` test images of class k; gives the folder."""
    write_run(folder, **parts)
    count, labels = len(counts), labels_of(counts)
    test = SplitOutputs(logits_of(labels, count, skill, 0), labels)
    teacher = logits_of(labels, count, skill + 1, 1)
    held = SplitOutputs(logits_of(labels, count, skill, 2), labels) if held_out else None
    made = evaluate_classifier(
        test,
        held,
        temperature=temperature_of(held),
        train_counts=[4 * n for n in counts],
        teacher_logits=teacher,
        pictures=lambda rows: [thumbnail(torch.full((3, 16, 16), int(row) % 256).byte()) for row in rows],
    )
    (folder / "details.json").write_text(json.dumps(made.details))
    results = json.loads((folder / "results.json").read_text())
    outputs = {"student": test.logits, "teacher": teacher, "baseline": logits_of(labels, count, skill, 3)}
    for role, logits in outputs.items():
        if results[role]:
            scores = {**results[role], **accuracy(logits, labels, count)}
            results[role] = {**scores, **intervals(scores, counts)}
    results["student"] |= made.student
    results["largest_class"] = made.largest_class
    (folder / "results.json").write_text(json.dumps(results))
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_classes": count, "label_names": list(names or [f"kind {k}" for k in range(count)])}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
