"""The derived files of an export (int8, fp16, image input): which are requested, and their makers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.data.source import Source
from kdcompress.deploy import image_graph
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.derived import DerivedMaker
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.qat_int8 import QatStudent
from kdcompress.deploy.quantize import check_rescue
from kdcompress.documents import read_document
from kdcompress.errors import UserError
from kdcompress.export.compressed import Test, compressed_makers
from kdcompress.export.image_file import OPTION, image_maker
from kdcompress.export.int8_inputs import load_qat_student
from kdcompress.recipe import BenchSection, ExportSection, Int8Section
from kdcompress.run_folder import RunFolder
from kdcompress.schemas.results import Results


@dataclass(frozen=True, slots=True)
class DerivedRequest:
    """The derived files to make beside the files of an export.

    Args:
        int8: How the int8 file is made; None: not at all.
        fp16: True: an fp16 file.
        image: The option or key that requests an image file, for messages; None: no image file.
        rounds: Rounds of the timing that the verdicts rest on; None: `bench.rounds`.
        tuned_in: A run whose student may have been tuned for int8.
    """

    int8: Int8Section | None = None
    fp16: bool = False
    image: str | None = None
    rounds: int | None = None
    tuned_in: Path | None = None

    @classmethod
    def of(cls, export: ExportSection, run: Path, image: str) -> DerivedRequest:
        """Reads the request of a run from its recipe.

        Args:
            export: The section.
            run: The run folder.
            image: Key that requests an image file, for messages.
        """
        resize = export.embed_preprocess == "resize"
        return cls(export.int8, export.fp16, image if resize else None, tuned_in=run)

    def makers(
        self,
        train: Source,
        test: Source,
        batches: Test,
        *,
        held_out: Source | None = None,
        workers: int,
        allow_code: bool = False,
    ) -> list[DerivedMaker]:
        """Lists the makers of the requested files.

        Args:
            train: The training split, to calibrate with.
            test: The test split.
            batches: Opens the test split; called several times.
            held_out: Images to choose between weights tuned for int8 and others; None: the tuned ones.
            workers: Processes that decode images.
            allow_code: True: a `python:` network may be built.
        """

        def tuned(folder: Path) -> QatStudent | None:
            run = self.tuned_in
            if run is None or (run != folder and _lost_to_untuned(run)):
                return None
            return load_qat_student(run, folder, held_out, workers=workers, allow_code=allow_code)

        makers = compressed_makers(self.int8, self.fp16, train, batches, workers=workers, tuned=tuned)
        return makers if self.image is None else [*makers, image_maker(test, self.image)]

    def timing(self, bench: BenchSection) -> BenchSection:
        """Returns the section with the requested number of rounds."""
        return bench if self.rounds is None else bench.model_copy(update={"rounds": self.rounds})


def derived_request(
    source: Path,
    formats: Sequence[str],
    *,
    int8: bool,
    fp16: bool,
    image: bool,
    changes: dict[str, Any],
    rounds: int | None,
) -> DerivedRequest:
    """Makes the request of a command line; what it leaves open is as in the run's recipe.

    Args:
        source: A run folder, or a checkpoint, which has no recipe.
        formats: Formats that are written with them.
        int8: True: an int8 file.
        fp16: True: an fp16 file.
        image: True: an image file.
        changes: Values of `export.int8` that go before the recipe's.
        rounds: Rounds of the timing; None: the recipe's `bench.rounds`.

    Raises:
        UserError: A file cannot be had of this source, or not with these formats.
    """
    options = [name for name, given in ((OPTION, image), ("--int8", int8), ("--fp16", fp16)) if given]
    if options and "onnx" not in formats:
        raise UserError(f"{options[0]}: is made from {GRAPH}; add onnx to --format")
    if image and (source / CONFIG).is_file():
        image_graph.check_spec(read_config(source / CONFIG).spec, OPTION)
    section = None
    if int8:
        recipe = RunFolder(source).recorded_recipe(allow_code=True) if source.is_dir() else None
        section = ((recipe and recipe.export.int8) or Int8Section()).model_copy(update=changes)
        if (source / GRAPH).is_file():
            check_rescue(source / GRAPH, section.rescue)
    tuned_in = source if source.is_dir() else None
    return DerivedRequest(section, fp16, OPTION if image else None, rounds, tuned_in)


def _lost_to_untuned(run: Path) -> bool:
    """Reads whether a run's weights tuned for int8 did worse there; True if it has no results."""
    if not (run / "results.json").is_file():
        return True
    known = (read_document(run / "results.json", Results).get("variants") or {}).get("int8", {}).get("qat")
    return known is not None and not known.get("kept")
