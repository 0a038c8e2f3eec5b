"""The model card: what someone who is handed the files must know, as Markdown with a YAML head."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import yaml

from kdcompress import discovery
from kdcompress.atomic import write_text
from kdcompress.data.split_name import name_split
from kdcompress.plain_text import one_line, printable_value
from kdcompress.report import numbers, quality_charts, tiles, words
from kdcompress.report.page import networks
from kdcompress.report.quality import ahead_sentence, badge, class_rows, read_quality
from kdcompress.report.record import Record, read_run
from kdcompress.report.usage import preprocessing, snippets

NAME = "README.md"
MOST_CLASSES = 20
"""Named in the card; `labels.json` has all."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&@])")
_LINK = re.compile(r"\bwww\.|://", re.IGNORECASE)
"""Beginnings of addresses, which viewers turn into links even without brackets."""


def write_card(run: Path) -> Path:
    """Writes `README.md` into a run folder.

    Args:
        run: A run that has come to results.

    Returns:
        The file.

    Raises:
        UserError: It is no such run, or a file in it is damaged or from a newer kdcompress.
    """
    record = read_run(run)
    path = record.folder / NAME
    write_text(path, name_split(card(record.with_marked_words()), record.test_name))
    return path


def card(record: Record) -> str:
    """Returns the model card as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, not HTML; what comes from outside goes through `md`
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=printable_value,
    )
    environment.filters["md"] = escaped
    environment.filters["code"] = as_code
    spec, manifest, quality = record.input_spec, record.manifest, read_quality(record)
    names, extra = record.class_names, (manifest.get("data") or {}).get("extra")
    context = {
        "front_matter": _front_matter(record),
        "name": record.recipe["name"],
        "sentence": words.sentence(record),
        "tiles": tiles.tiles(record),
        "badge": badge(quality),
        "ahead_sentence": ahead_sentence(quality),
        "calibration_sentence": quality_charts.calibration_sentence(quality),
        "threshold_sentences": quality_charts.threshold_sentences(quality),
        "cautions": words.cautions(record.results, record.class_names),
        "gates": record.gates,
        "failed": record.failed_gates,
        "student": record.student,
        "has_classes": record.task.has_classes,
        "numbers_are_labels": record.task.numbers_are_labels,
        "num_features": record.config.get("num_features"),
        "num_classes": record.config.get("num_classes")
        or len(record.results["student"].get("per_class") or []),
        "class_names": ", ".join(names[:MOST_CLASSES]) + (", …" if len(names) > MOST_CLASSES else ""),
        "files": [name for name in _file_names() if record.has(name)],
        "networks_caption": words.split_sentence(record),
        "gain_sentence": words.gain_sentence(record),
        "ensemble_sentence": words.ensemble_sentence(record),
        "pretraining_sentence": words.pretraining_sentence(record.results),
        "exit_sentences": words.exit_sentences(record),
        "latency": _latency(record),
        "snippets": snippets(record),
        "spec": spec,
        "preprocessing": preprocessing(spec) if spec else "",
        "asked": words.recipe_rows(record),
        "has_teacher": record.teacher is not None,
        "data_licence": words.licence(manifest.get("data") or {}),
        "student_licence": words.student_licence(manifest.get("student") or {}),
        "extra_licence": words.licence(extra) if extra else "",
        "peer_licences": words.peer_licences(manifest),
        "teacher_licence": words.teacher_licence(manifest.get("teacher") or {}),
        "weakest": [(row.name, numbers.percent(row.student), row.n) for row in class_rows(quality)[:3]],
        **networks(quality),
    }
    return environment.get_template("card.md.j2").render(context)


def _file_names() -> list[str]:
    """Names of the files that a run may ship, those of new formats included."""
    suffixes = [discovery.header("format", name).constants["SUFFIX"] for name in discovery.names("format")]
    of_onnx = ["student.onnx", *(f"student.{kind}.onnx" for kind in ("int8", "fp16", "image"))]
    others = sorted(suffix for suffix in suffixes if suffix not in {".onnx", ".safetensors"})
    several = ["ensemble.onnx", "exits.onnx"]
    return [*of_onnx, *several, "student.safetensors", *(f"student{suffix}" for suffix in others)]


def escaped(text: object) -> str:
    """Escapes text so that Markdown shows it unchanged, on one line."""
    shown = _MARKUP.sub(r"\\\1", one_line(text))
    return _LINK.sub(lambda match: match[0].replace(".", r"\.").replace(":", r"\:"), shown)


def as_code(text: object) -> str:
    """Writes text as Markdown code on one line, also in a table, whatever it holds."""
    shown = one_line(text).replace("|", r"\|")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _front_matter(record: Record) -> str:
    data = record.manifest.get("data") or {}
    task = "image-classification" if record.task.has_classes else "image-feature-extraction"
    head: dict[str, object] = {
        # Nobody but its maker can say under which terms a network may be used; the hubs' word for that is
        # "unknown".
        "license": "unknown",
        "library_name": "kdcompress",
        "pipeline_tag": task,
        "tags": [task, "knowledge-distillation", "onnx", record.recipe["method"]["name"]],
        "datasets": [data.get("name") or record.recipe["data"]["dataset"]],
    }
    if record.results["student"]["top1"] is not None:
        head["metrics"] = ["accuracy"]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _latency(record: Record) -> str:
    """Writes one sentence per timing of the student."""
    if record.bench is None:
        return ""
    sentences = []
    for result in record.bench["results"]:
        if not result["artefact"].startswith("student"):
            continue
        latency = result["latency_ms"]
        which = {"student (int8)": "int8 in ", "student (fp16)": "fp16 in "}.get(result["artefact"], "")
        sentences.append(
            f"{which}{result['runtime']} with {words.threads(result['threads'])} "
            f"at batch {result['batch']}: {numbers.milliseconds(latency['p50'])} "
            f"(95 % interval {numbers.interval(latency['ci95'])})"
        )
    return f"Latency on {record.bench['env']['cpu']}: {'; '.join(sentences)}." if sentences else ""
