"""The int8 file of a student that was tuned for it, beside that of the student as it is: the better one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.accuracy import Batches, outputs_of, scored
from kdcompress.deploy.calibration import Calibration
from kdcompress.deploy.float_graph import Ranges
from kdcompress.deploy.formats.onnx import PREFIX, open_, write
from kdcompress.deploy.layer_noise import snr_db
from kdcompress.deploy.quantize import Target
from kdcompress.deploy.variants import Fp32Reference, Variant, to_int8


@dataclass(frozen=True, slots=True)
class QatStudent:
    """The shipped student's class with weights that were tuned for int8.

    Args:
        network: The plain network.
        spec: Its input.
        facts: How it was tuned: `epochs`, `lr`, `epoch`.
        held_out: Opens the images to choose on; None: nothing is held out.
    """

    network: nn.Module
    spec: InputSpec
    facts: dict[str, Any]
    held_out: Callable[[], Batches] | None


def choose_int8(
    exact: Fp32Reference,
    images: Calibration,
    folder: Path,
    tuned: QatStudent,
    *,
    target: Target,
    ranges: Ranges = "minmax",
    rescue: int = 0,
    max_drop: float,
) -> Variant:
    """Makes and proves the int8 file of both, and gives the one that does better on held-out images.

    Where nothing is held out, the tuned one, which was asked for. What is told of each on the test split
    decides nothing.

    Args:
        exact: The float32 file, of the student as it was before the tuning.
        images: To calibrate with.
        folder: Destination; each gets a folder in it.
        tuned: The other weights.
        target: See `to_int8`.
        ranges: Likewise.
        rescue: Likewise.
        max_drop: Likewise.

    Raises:
        NetworkError: One of them cannot be quantised.
    """
    settings: dict[str, Any] = {"target": target, "ranges": ranges, "rescue": rescue, "max_drop": max_drop}
    made = {}
    for name in ("ptq", "qat"):
        (folder / name).mkdir()
        source = None
        if name == "qat":
            source = folder / name / "tuned.onnx"
            facts = {key.removeprefix(PREFIX): value for key, value in exact.file.metadata.items()}
            write(
                tuned.network, tuned.spec, source,
                metadata=facts, opset=exact.file.opset, task=exact.task,
            )  # fmt: skip
        made[name] = to_int8(
            exact, images, folder / name, **settings, source=source, qat=tuned.facts if source else None
        )
    held_out = _on_held_out(exact, made, tuned.held_out)
    kept = held_out is None or held_out["qat"] >= held_out["ptq"]
    if made["ptq"].passed and not made["qat"].passed:
        kept = False
    test = {name: _on_test(variant) for name, variant in made.items()}
    tuning = {"kept": kept, **tuned.facts, "held_out": held_out, "test": test}
    tuning["sentence"] = sentence(tuning)
    return dataclasses.replace(made["qat" if kept else "ptq"], tuning=tuning)


def sentence(tuning: dict[str, Any]) -> str:
    """Describes the effect of quantisation-aware training in a sentence.

    Args:
        tuning: See `Variant`.
    """
    epochs = f"{tuning['epochs']} epoch{'s' if tuning['epochs'] != 1 else ''} of quantisation-aware tuning"
    ptq, qat = (tuning["test"][name].get("drop") for name in ("ptq", "qat"))
    effect = ""
    if ptq is not None and qat is not None:
        effect = f": top-1 of int8 against fp32 {-qat:+.2f} points with it, {-ptq:+.2f} without"
    held_out = tuning["held_out"]
    if held_out is None:
        return f"{epochs}{effect}; the file is the tuned one, as nothing is held out to choose on"
    both = " and ".join(_figure(held_out["figure"], held_out[name]) for name in ("qat", "ptq"))
    which = "tuned" if tuning["kept"] else "untuned"
    return (
        f"{epochs}{effect}; the file is the {which} one, chosen on {held_out['n']:,} held-out images "
        f"({both} in int8 with and without, {_figure(held_out['figure'], held_out['fp32'])} in fp32)"
    )


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "exact"
    return f"{value:.1f} dB" if name == "snr_db" else f"{100 * value:.2f} %"


def _on_test(variant: Variant) -> dict[str, Any]:
    keys = ("top1", "knn_top1", "drop", "agreement_fp32", "snr_db")
    return {key: variant.score[key] for key in keys if key in variant.score}


def _on_held_out(
    exact: Fp32Reference, made: dict[str, Variant], held_out: Callable[[], Batches] | None
) -> dict[str, Any] | None:
    """Computes the selection metric of each file and of the float32 one; None if it cannot be computed."""
    if held_out is None or not all(variant.score for variant in made.values()):
        return None
    exact_NK, labels_N = outputs_of(exact.file, held_out())
    threads = torch.get_num_threads()
    figures: dict[str, Any] = {}
    name = ""
    for which, variant in made.items():
        outputs_NK, _ = outputs_of(open_(variant.path, threads), held_out())
        name, figures[which], fp32 = _deciding(exact, outputs_NK, exact_NK, labels_N)
    return {"figure": name, "n": len(labels_N), "fp32": fp32, **figures}


def _deciding(
    exact: Fp32Reference, outputs_NK: Tensor, exact_NK: Tensor, labels_N: Tensor
) -> tuple[str, float, float | None]:
    """Computes (name, figure, float32's figure): accuracy, or without labels the likeness to float32."""
    if bool((labels_N >= 0).any()):
        key = exact.task.metrics[0]
        int8_figure, fp32_figure = (
            scored(exact.task, outputs, labels_N).result()[key] for outputs in (outputs_NK, exact_NK)
        )
        return key, int8_figure, fp32_figure
    if not exact.task.has_classes:
        return "snr_db", snr_db(exact_NK.numpy(), outputs_NK.numpy()), None
    same = outputs_NK.argmax(1) == exact_NK.argmax(1)
    return "agreement_fp32", float(same.double().mean()), 1.0
