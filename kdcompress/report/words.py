"""Describes a run in words: its headline, what was asked, where everything is from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcompress import discovery
from kdcompress.data.split_name import TEST
from kdcompress.errors import UserError
from kdcompress.recipe import RANDOM
from kdcompress.report import numbers
from kdcompress.report.record import Record
from kdcompress.tasks.figures import FIGURES, selection_metric

_OF_NEIGHBOURS = (
    "kNN top-1: the 20 nearest other images (cosine) vote on an image's class. Agreement: the share of the "
    "10 nearest images that are also the teacher's. Of more than 5,000 images, 5,000 are compared."
)


def sentence(record: Record) -> str:
    """Describes student, method and teacher in one sentence."""
    method, data = record.recipe["method"]["name"], record.recipe["data"]["dataset"]
    if record.recipe.get("pseudo_labels"):
        return (
            f"{record.student} trained on {data} without labels, on clusters of its features, with {method}."
        )
    if record.teacher is None:
        return f"{record.student} trained on {data} with {method}."
    return f"{record.student} learned from {record.teacher} on {data} with {method}."


def other_files(record: Record) -> list[str]:
    """Describes the ensemble, the exits, and the int8 and fp16 files with their verdicts."""
    sentences = [*filter(None, [ensemble_sentence(record)]), *exit_sentences(record)]
    for entry in (record.results.get("variants") or {}).values():
        sentences.append(f"{entry['verdict']['sentence']}.")
        if entry.get("qat"):
            sentences.append(f"{entry['file']}: {entry['qat']['sentence']}.")
        if entry["verdict"].get("told"):
            sentences.append(f"{entry['file']}: {entry['verdict']['told']}.")
    return sentences


def ensemble_sentence(record: Record) -> str:
    """Describes the ensemble's file in one sentence; empty if the run shipped none."""
    ensemble = record.results.get("ensemble")
    return f"{ensemble['sentence']}." if ensemble else ""


def exit_sentences(record: Record) -> list[str]:
    """Describes the early exits of `exits.onnx`, one sentence each; empty if the run shipped none."""
    exits = record.results.get("exits") or {}
    return [f"{exits['file']}, {entry['sentence']}." for entry in exits.get("exits", [])]


def bench_notes(bench: dict[str, Any]) -> list[str]:
    """Describes the machine of the timings, and what went wrong, in sentences.

    Args:
        bench: `bench.json`.
    """
    env, control = bench["env"], bench["aa"]
    versions = ", ".join(f"{name} {version}" for name, version in env["runtimes"].items())
    rounds = bench["protocol"]["rounds"]
    notes = [
        f"Measured on {env['cpu']}, {env['granted_cores']} of {env['logical_cores']} cores, with {versions}; "
        f"{rounds} shuffled rounds."
    ]
    if control is not None:
        ends = numbers.interval(control["ci95"])
        apart = f"{numbers.times(control['ratio'])} apart (95 % interval {ends})"
        notes.append(
            f"Control: two copies of {control['artefact']} came out {apart}. Quality: {bench['quality']}."
        )
    notes += [f"Warning: {warning}." for warning in bench["warnings"]]
    for result in bench["results"]:
        where = f"{result['artefact']}, {threads(result['threads'])}, batch {result['batch']}"
        notes += [f"Warning ({where}): {warning}." for warning in result["warnings"]]
    for failure in bench["failures"]:
        where = f"{failure['artefact']} in {failure['runtime']}"
        notes.append(f"Failed: {where}, at {failure['stage']}: {failure['type']}: {failure['message']}.")
    return notes


def gain_sentence(record: Record) -> str:
    """Describes the comparison with the baseline; empty without one."""
    gain = record.results.get("gain")
    if gain is None:
        return ""
    real = ", on the real images alone and for as many steps" if record.recipe["data"].get("extra") else ""
    return (
        "The baseline is the same network, trained by the same recipe without distillation"
        f"{real}. On the same test "
        f"images the student differs from it by {numbers.points(gain['points'])} points of "
        f"{FIGURES[gain.get('figure', 'top1')].title} "
        f"(95 % interval {numbers.points_interval(gain)}): {gain['verdict']}. "
        "That holds for this seed only: the interval covers the choice of test images, not that of the seed."
    )


def no_gain(record: Record) -> tuple[str, str]:
    """Says in a few words and in a sentence why no gain by distillation is known."""
    if record.recipe["method"]["name"] == "none":
        return "no distillation", "the student was trained on the labels alone"
    student = record.results["student"]
    if record.results.get("baseline") is not None and student.get("top1") is None:
        return "not known", "without labels or classes the two trainings cannot be compared"
    return "not measured", "--baseline also trains the student without distillation, and compares"


def target(record: Record) -> str:
    """Names the machine of the timings; empty if nothing was timed."""
    return "" if record.bench is None else str(record.bench["env"]["cpu"])


def cautions(results: dict[str, Any], class_names: Sequence[str]) -> list[str]:
    """Lists what speaks against using the student, in sentences: one class for all, or no gain and why.

    Args:
        results: `results.json`.
        class_names: By class number; empty: not known.
    """
    return [*use_cautions(results, class_names), *filter(None, [gain_caution(results)])]


def use_cautions(results: dict[str, Any], class_names: Sequence[str]) -> list[str]:
    """Lists the sentences about a student that gives all images one class; arguments as of `cautions`."""
    student, sentences = results["student"], []
    number, constant = student.get("single_class"), student.get("constant")
    if number is not None:
        balanced = numbers.percent(student.get("balanced_top1"))
        sentences.append(
            f"The student gives nearly all test images the class {_name(number, class_names)!r}; the mean "
            f"accuracy over the classes is {balanced}. It is of no use as it is."
        )
    elif constant is not None and selection_metric(student) == "agreement":
        sentences.append(
            f"The student is nearly constant: it gives {numbers.percent(constant['share'])} of the test "
            f"images the class {_name(constant['class'], class_names)!r}. Its agreement of "
            f"{numbers.percent(student['agreement'])} with the teacher therefore says little: always that "
            f"class would agree on {numbers.percent(constant['teacher_share'])}."
        )
    return sentences


def gain_caution(results: dict[str, Any]) -> str:
    """Says why distillation shows no gain and what to try; empty if it helped or was not compared."""
    gain = results.get("gain") or {}
    cause = gain.get("cause")
    if cause is None:
        return ""
    result = "Distillation made it worse" if gain["verdict"] == "worse" else "No gain is shown"
    return f"{result}. Most likely: {cause['sentence']}. Next: {cause['advice']}."


def _name(number: int, class_names: Sequence[str]) -> str:
    return class_names[number] if class_names else f"class {number}"


def candidates_sentence(results: dict[str, Any]) -> str:
    """Describes which of several networks ships and what each reached; empty if there was one."""
    training = results.get("training") or {}
    reached, shipped = training.get("candidates") or {}, training.get("candidate", "student")
    key = selection_metric(next(iter(reached.values()))) if reached else None
    if key is None or len(reached) < 2:
        return "" if shipped == "student" else f"The student is the network {shipped}."
    listed = [
        f"{name} {numbers.percent(figures.get(key))}{' (ships)' if name == shipped else ''}"
        for name, figures in sorted(reached.items(), key=lambda item: -item[1][key])
    ]
    title = FIGURES[key].title
    told = f"Best {title} on held-out images: {', '.join(listed)}."
    # Runs of older versions hold candidates alone.
    others = [name for name, figures in reached.items() if not figures.get("may_ship", True)]
    if others:
        told += f" Trained with it, and not offered as the student: {', '.join(others)}."
    best = max(figures[key] for name, figures in reached.items() if name not in others or name == shipped)
    if shipped in reached and reached[shipped][key] < best:
        told += (
            " A lead within twice its standard error does not decide: the later epoch and the lower loss do."
        )
    return told


def pretraining_sentence(results: dict[str, Any]) -> str:
    """Compares the clusters of the student with those that it was trained on; empty if there were none."""
    before, student = results.get("pretraining"), results["student"]
    if before is None:
        return ""
    clusters, images = len(before["sizes"]), sum(before["sizes"])
    made = f"No label was read: {clusters} clusters of {numbers.figure(images)} training images were learned."
    if before.get("nmi") is None:
        return f"{made} The test images have no labels to score them by."
    return (
        f"{made} On the test split the best matching of clusters with classes is right for "
        f"{numbers.percent(student['cluster_accuracy'])} (before this training "
        f"{numbers.percent(before['cluster_accuracy'])}), with a normalised mutual information of "
        f"{student['nmi']:.3f} ({before['nmi']:.3f})."
    )


def split_sentence(record: Record) -> str:
    """Describes the images that the figures were measured on."""
    counts = (record.manifest.get("data") or {}).get("counts", {})
    count = counts.get("test") or record.results["student"].get("n")
    on = f"{numbers.figure(count)} images of the test split" if count else "the test split"
    measured = f"Measured on {on}; the student's and the baseline's on their exported files."
    return measured + ("" if record.task.has_classes else f" {_OF_NEIGHBOURS}")


def recipe_rows(record: Record) -> list[tuple[str, str]]:
    """Returns the main recipe values as (term, words)."""
    recipe, rows = record.recipe, []
    method = {key: value for key, value in recipe["method"].items() if key != "name"}
    rows.append(("student", _network(recipe["student"])))
    if recipe.get("teacher"):
        rows.append(("teacher", _network(recipe["teacher"])))
    if recipe.get("peers"):
        rows.append(("peers", ", ".join(_network(peer) for peer in recipe["peers"])))
    rows.append(("method", f"{recipe['method']['name']}{_settings(method)}"))
    if summary := _summary(recipe["method"]["name"]):
        rows.append(("about the method", summary))
    if pseudo := recipe.get("pseudo_labels"):
        own = {key: value for key, value in pseudo["method"].items() if key != "name"}
        rows.append(("pre-training", f"{pseudo['method']['name']}{_settings(own)}"))
        kept = {key: pseudo[key] for key in ("clusters", "epochs", "whiten", "starts", "student")}
        rows.append(("pseudo labels", _settings(kept).strip(" ()")))
    data = {key: recipe["data"].get(key) for key in ("image_size", "batch_size", "held_out", "augment")}
    labels = recipe["data"].get("labels", "all")
    if labels != "all":  # a run of before this key had them all
        data["labels"] = labels
        if labels != "none":
            data["labelled_share"] = recipe["data"].get("labelled_share")
    rows.append(("data", f"{recipe['data']['dataset']}{_settings(data)}"))
    if extra := recipe["data"].get("extra"):
        settings = {key: extra.get(key) for key in ("share", "keep", "relabel")}
        rows.append(("generated images", f"{Path(extra['root']).name}{_settings(settings)}"))
    train = {
        key: recipe["train"].get(key)
        for key in ("epochs", "max_steps", "precision", "ema", "label_smoothing")
    }
    rows.append(("training", _settings({key: value for key, value in train.items() if value}).strip(" ()")))
    optim = {key: value for key, value in recipe["optim"].items() if key not in {"name", "milestones"}}
    rows.append(("optimiser", f"{recipe['optim']['name']}{_settings(optim)}"))
    return rows


def _summary(method: str) -> str:
    """Returns the first line of a method's description; empty for one that this version does not have."""
    try:
        return discovery.header("method", method).summary
    except UserError:
        return ""


def provenance(record: Record) -> list[tuple[str, str]]:
    """Lists what the result was made from and with: (term, words)."""
    manifest, rows = record.manifest, []
    if manifest.get("command"):
        rows.append(("command", str(manifest["command"])))
    for term in ("seed", "threads", "device", "precision"):
        if manifest.get(term) is not None:
            rows.append((term, str(manifest[term])))
    data, teacher = manifest.get("data") or {}, manifest.get("teacher")
    if data:
        rows.append(("data", f"{data['name']}: {_counts(data, record.test_name)}"))
        rows.append(("data listing", f"SHA-256 {data.get('listing_sha256')}"))
        if extra := data.get("extra"):
            rows.append(("generated images", f"{extra['name']}: {_counts(extra)}; SHA-256 {extra['sha256']}"))
        rows.append(("data licence", licence(data)))
        if extra:
            rows.append(("generated images' licence", licence(extra)))
        rows += [("about the data", warning) for warning in data.get("warnings", [])]
    if (student := manifest.get("student")) and student["weights"] != RANDOM:
        rows.append(("student", _network(student)))
        rows.append(("initial weights", f"SHA-256 {student.get('sha256')}"))
        rows.append(("initial weights licence", licence(student)))
    rows += [("peer", f"{_network(peer)}: {licence(peer)}") for peer in manifest.get("peers", [])]
    if teacher:
        rows.append(
            ("teacher", f"{teacher['model']}, weights: {teacher.get('weights') or 'trained in this run'}")
        )
        if teacher.get("sha256"):
            rows.append(("teacher weights", f"SHA-256 {teacher['sha256']}"))
        rows.append(("teacher licence", teacher_licence(teacher)))
    spent = {role: record.seconds(role) for role in ("teacher", "student", "baseline")}
    known = [f"{role} {numbers.duration(seconds)}" for role, seconds in spent.items() if seconds is not None]
    if known:
        rows.append(("training time", ", ".join(known)))
    if manifest.get("versions"):
        rows.append(
            ("versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()))
        )
    return rows


def _counts(entry: dict[str, Any], test_name: str = TEST) -> str:
    return ", ".join(
        f"{test_name if name == TEST else name} {numbers.figure(count)}"
        for name, count in entry.get("counts", {}).items()
    )


def licence(entry: dict[str, Any]) -> str:
    """Returns the value recorded in the manifest."""
    return str(entry.get("license") or "not known to kdcompress; look it up before you pass the files on")


def student_licence(entry: dict[str, Any]) -> str:
    """Returns the licence of the weights that the student started from; empty if they were random.

    Args:
        entry: The manifest's `student`; empty in a run of before there was one.
    """
    started = _weights(entry)
    return f"started from {started}: {licence(entry)}" if started else ""


def peer_licences(manifest: dict[str, Any]) -> list[str]:
    """Describes the weights that peers started from, with their licences; empty if all were random."""
    return [f"{peer['model']}, {student_licence(peer)}" for peer in manifest.get("peers", [])]


def teacher_licence(entry: dict[str, Any]) -> str:
    """Returns the licence of the teacher's weights; those trained in the run have none of their own."""
    if entry.get("weights") is None and entry.get("license") is None:
        return "trained in this run, so that of the data"
    return licence(entry)


def threads(count: int) -> str:
    """Formats `1 thread`, `2 threads`."""
    return f"{count} thread" + ("s" if count != 1 else "")


def shortened(text: str, most: int) -> str:
    """Cuts the text with an ellipsis if it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _network(section: dict[str, Any]) -> str:
    weights = _weights(section)
    return f"{section['model']}, " + (f"from {weights}" if weights else "from random weights")


def _weights(section: dict[str, Any]) -> str | None:
    """Describes the source of the weights, without the folders of the machine: these pages are passed on."""
    weights = section.get("weights")
    return Path(weights).name if weights and weights != RANDOM else None


def _settings(values: dict[str, Any]) -> str:
    """Formats ` (epochs 60, precision auto)`, without settings that are None."""
    parts = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in values.items() if value is not None]
    return f" ({', '.join(parts)})" if parts else ""


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
