"""The record of a teacher beside its kept outputs, so that a run in `mode: read` need not build it.

A run in `mode: fill` stores it: facts, the figures on held-out images, and the frozen last linear layer. It
is found by a key of everything in recipe and data that the teacher follows from. What no key can see (code
that a `python:` builder imports, a network of another version) shows after the student's training, when the
teacher is built for the report and its weights are compared.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcompress.atomic import sha256_of
from kdcompress.data.cache import cache_folder
from kdcompress.data.dataset import Data
from kdcompress.data.input_spec import InputSpec
from kdcompress.documents import check_document
from kdcompress.errors import KdcompressError, UserError
from kdcompress.methods.base import configured
from kdcompress.networks import weights
from kdcompress.networks.families import python
from kdcompress.networks.from_recipe import LoadedNetwork
from kdcompress.networks.output_cache.facts import TeacherFacts
from kdcompress.networks.output_cache.stored_teacher import StoredTeacher, stored_classifier
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.networks.weights import ResolvedWeights
from kdcompress.recipe import AUTO, CacheSection, Recipe, TeacherSection
from kdcompress.run.cache_plan import cacheable
from kdcompress.run.context import Run
from kdcompress.schemas.cache import TeacherRecordNote
from kdcompress.tasks import task_of
from kdcompress.train import precision, result_store
from kdcompress.train.result_store import StoredResult

RULES = 1
"""Version of records and their keys."""
KEY = "teacher.cache.mode"


def reads_alone(recipe: Recipe) -> bool:
    """Returns True if the recipe says `teacher.cache.mode: read`."""
    section = recipe.teacher
    return section is not None and isinstance(section.cache, CacheSection) and section.cache.mode == "read"


def why_built(recipe: Recipe, data: Data) -> str | None:
    """Returns why a run in `mode: read` has to build the teacher first; None: it has not."""
    cls, config = configured(recipe.method)
    needs, name = cls.needs(config), recipe.method["name"]
    extra, held_out = recipe.data.extra, data.held_out
    if needs.cached is not None or not cacheable(needs):
        return f"{name} reads maps of its stages"
    if cls.preparations(config):
        return f"{name} trains heads on it"
    if extra is not None and (extra.keep < 1 or extra.relabel):
        return "it judges the generated images (data.extra)"
    if recipe.pseudo_labels is not None or data.labelled == 0:
        return "the images have no labels of their own"
    if held_out is not None and not (needs.task.has_classes and bool((held_out.labels >= 0).any())):
        return "the student is compared with it on the held-out images, for want of labels that decide"
    return None


def stands_in(run: Run) -> bool:
    """Returns True if the cache's record stands for the teacher until the student is trained."""
    return reads_alone(run.recipe) and why_built(run.recipe, run.data) is None


@dataclass(frozen=True, slots=True)
class TeacherRecord:
    """Facts of a teacher, as stored.

    Args:
        note: Facts, as JSON (`TeacherRecordNote`).
        classifier: weight and bias of its last layer; empty: it has none that gives the logits.
    """

    note: dict[str, Any]
    classifier: dict[str, Tensor]

    @property
    def trained(self) -> bool:
        """True if a run trained or fine-tuned the teacher."""
        return bool(self.note["trained"])

    @property
    def held_out(self) -> dict[str, Any]:
        """Figures on the images that the teacher was tested on."""
        return dict(self.note["held_out"])

    def teacher(self, run: Run) -> StoredTeacher:
        """Returns the teacher that stands for the network."""
        note = self.note
        facts = TeacherFacts(
            note["model"], note["num_classes"], task_of(note["num_classes"], note["task"]),
            None if note["size"] is None else tuple(note["size"]), InputSpec.from_json(note["input"]),
            note["fingerprint"], note["normalisation"], note["classifier"],
        )  # fmt: skip
        return StoredTeacher(
            facts, features=note["features"], classifier=self.classifier,
            precision=precision.dtype(run.precision), device=run.device,
        )  # fmt: skip

    def start(self, run: Run) -> LoadedNetwork:
        """Returns what is known of the network that the teacher started from; it is empty here."""
        section, start = run.recipe.teacher, self.note["start"]
        assert section is not None
        loaded = None
        if section.initial_weights is not None:
            loaded = ResolvedWeights(
                {}, start["sha256"], section.initial_weights, license=section.license or start["license"]
            )
        return LoadedNetwork(
            nn.Identity(), loaded, start["head_replaced"], start["num_classes"], (), start["channels"],
            start["own_weights"],
        )  # fmt: skip


def write_record(
    run: Run, teacher: FrozenTeacher, start: LoadedNetwork, held_out: dict[str, Any], *, trained: bool
) -> None:
    """Stores what a later run in `mode: read` needs, where the recipe fills a cache.

    Args:
        run: The run.
        teacher: Frozen and tested.
        start: The network and weights that it was loaded from.
        held_out: Its figures.
        trained: True if a run trained it on this data.
    """
    section = run.recipe.teacher
    assert section is not None
    if not isinstance(section.cache, CacheSection) or section.cache.mode != "fill" or not run.processes.first:
        return
    classifier = stored_classifier(teacher)
    if classifier is None:
        return  # a layer of another kind than two tensors describe
    facts, shapes = TeacherFacts.of(teacher), teacher.shapes()
    note = {
        "model": facts.model,
        "task": facts.task.name,
        "num_classes": facts.num_classes,
        "features": None if shapes.pooled is None else shapes.pooled.shape[1],
        "size": facts.size,
        "input": facts.input_spec.to_json(),
        "fingerprint": facts.fingerprint,
        "normalisation": facts.normalisation,
        "classifier": facts.classifier,
        "trained": trained,
        "start": {
            "num_classes": start.num_classes,
            "channels": start.channels,
            "head_replaced": start.head_replaced,
            "own_weights": start.own_weights,
            "sha256": None if start.weights is None else start.weights.sha256,
            "license": None if start.weights is None else start.weights.license,
        },
        "held_out": held_out,
    }
    key = _key(run, section, trained=trained)
    digest = hashlib.sha256(result_store.content_of(classifier)).hexdigest()
    # A folder that cannot be written to is reported by the cache itself.
    with suppress(OSError, KdcompressError):
        result_store.write_stored(_folder(section), key, StoredResult(classifier, note, key, digest))


def read_record(run: Run) -> TeacherRecord:
    """Finds the record of the recipe's teacher.

    Raises:
        UserError: There is none.
    """
    section = run.recipe.teacher
    assert section is not None
    if section.model.startswith("python:") and not run.allow_code:
        raise UserError(f"{section.model!r} runs code of yours; pass --allow-code to let it")
    for trained in (False, True):
        record = _read(_folder(section), _key(run, section, trained=trained))
        if record is not None and _suits(record, run, section, trained=trained):
            return record
    raise UserError(
        f"{KEY}: read, but {_folder(section)} holds nothing about this teacher on these images; run it once "
        f"with {KEY}: fill (if you did: a last layer that is no plain linear one is not stored)"
    )


def _suits(record: TeacherRecord, run: Run, section: TeacherSection, *, trained: bool) -> bool:
    note, (cls, config) = record.note, configured(run.recipe.method)
    return (
        record.trained == trained
        and section.sha256 in (None, note["start"]["sha256"])
        and ("logits" not in cls.needs(config).read_of_teacher or note["num_classes"] > 0)
    )


def _read(folder: Path, key: str) -> TeacherRecord | None:
    stored = result_store.read_stored(folder, key, key)
    if stored is None:
        return None
    try:
        note = {"schema": result_store.SCHEMA, "key": key, "sha256": stored.sha256, **stored.note}
        check_document(note, str(folder), TeacherRecordNote)
    except UserError:
        return None
    return TeacherRecord(stored.note, stored.state) if _is_classifier(stored) else None


def _is_classifier(stored: StoredResult) -> bool:
    """Returns True if the tensors are the last linear layer that the note tells of, or there is none."""
    outputs, features = stored.note["num_classes"], stored.note["features"]
    if not stored.state:
        return features is None or outputs == 0
    shapes = {"weight": (outputs, features), "bias": (outputs,)}
    return "weight" in stored.state and all(
        name in shapes and tuple(tensor.shape) == shapes[name] and tensor.is_floating_point()
        for name, tensor in stored.state.items()
    )


def _folder(section: TeacherSection) -> Path:
    assert isinstance(section.cache, CacheSection)
    own = section.cache.folder
    return (cache_folder() / "teacher-outputs" if own is None else Path(own)) / "teachers"


def _key(run: Run, section: TeacherSection, *, trained: bool) -> str:
    """Returns a hash of everything that a teacher and its held-out figures follow from.

    Args:
        run: The run; its recipe is resolved.
        section: The teacher's.
        trained: True: the teacher's training counts; False: it is its weights.
    """
    assert section.pretrained != AUTO or not section.may_load_own_weights
    data, train, optim = result_store.recipe_parts(run.recipe)
    own = section.model_dump(mode="json", include={"model", "input", "taps", "train", "pretrained"})
    source = None
    if section.model.startswith("python:"):
        file = python.source_file(section.model.removeprefix("python:"))
        source = sha256_of(file) if file is not None and file.is_file() else None
    named = section.initial_weights
    parts: list[Any] = [
        RULES, own, None if named is None else weights.identity(named), source, run.data.listing_sha256,
        run.data.class_names, [run.data.channels, *run.data.image_size, run.data.fit],
        {key: data[key] for key in ("dataset", "labels", "cut", "held_out", "max_broken") if key in data},
        run.precision, run.device.type,
    ]  # fmt: skip
    if trained:
        training = section.model_dump(mode="json", include={"epochs", "seed", "lr"})
        parts += [training, data, train, optim, run.environment]
    return result_store.key_of(*parts)
