"""The verdict on a smaller file, and the facts behind it."""

from __future__ import annotations

from collections import Counter

import pytest
from small_student import SPEC
from spoilt import calibrated

from kdcompress.deploy.float_graph import Layer
from kdcompress.deploy.int8_diagnosis import (
    Layout,
    _of_the_graph,
    _of_the_layers,
    _of_the_processor,
    grouped_share,
    layout_of,
    slow_causes,
    usual_target,
)
from kdcompress.deploy.layer_noise import LayerNoise
from kdcompress.deploy.quantize import Quantiser
from kdcompress.deploy.speed_verdict import speed_verdict, worst_layers

SCORE = {"drop": 0.12, "top1": 0.9, "agreement_fp32": 0.99}
CI95 = (-0.4, 0.16)


def timing(ratio, verdict, ends=None):
    ends = [ratio - 0.1, ratio + 0.1] if ends is None else ends
    return [{"threads": 1, "batch": 1, "ratio": ratio, "ci95": ends, "verdict": verdict}]


def said(timings, score=SCORE, because=("the reason",), **options):
    return speed_verdict("int8", score, 0.27, timings, because, ci95=CI95, **options)


def test_faster_at_little_loss_is_kept():
    told = said(timing(2.9, "faster"))
    assert told["keep"] is True
    assert told["sentence"] == (
        "int8: keep. 2.90x the speed of fp32 (95 % CI 2.80 to 3.00). "
        "Top-1 -0.12 points (95 % -0.40 to +0.16), 0.27 of the size"
    )
    assert told["because"] == []
    assert told["points"] == -0.12


@pytest.mark.parametrize(
    ("ratio", "verdict", "words"),
    [
        (
            0.75,
            "slower",
            "0.75x the speed of fp32 (95 % CI 0.65 to 0.85): a; b.",
        ),
        (
            1.0,
            "no difference",
            "1.00x the speed of fp32 (95 % CI 0.90 to 1.10): a; b.",
        ),
    ],
)
def test_what_is_not_faster_is_not_kept_and_the_facts_say_why(ratio, verdict, words):
    told = said(timing(ratio, verdict), because=["a", "b"])
    assert told["keep"] is False
    assert told["sentence"].startswith(f"int8: not recommended on this machine. {words}")
    assert told["because"] == ["a", "b"]


def test_without_a_fact_no_cause_is_claimed():
    told = said(timing(0.9, "slower"), because=[])
    assert "no cause was found in the processor's flags or in the graph" in told["sentence"]


def test_faster_but_dear_is_not_kept():
    told = said(timing(2.0, "faster"), score={**SCORE, "drop": 2.5})
    assert told["keep"] is False
    assert told["sentence"].startswith(
        "int8: not recommended. It loses more than 1 point of top-1 at 2.00x the speed of fp32"
    )


def test_too_few_rounds_show_nothing():
    told = speed_verdict("int8", SCORE, 0.27, [{**timing(2.0, "no difference")[0], "ci95": None}], [])
    assert told["keep"] is None
    assert (
        "undecided. 2.00x the speed of fp32 in too few rounds to tell (bench.rounds: 6 at least)"
        in told["sentence"]
    )


@pytest.mark.parametrize(("ratio", "ends"), [(1.4, [0.9, 1.8]), (3.0, [2.5, 3.2]), (0.95, [0.6, 1.2])])
def test_where_the_interval_reaches_far_and_shows_nothing_there_is_no_verdict(ratio, ends):
    told = said(timing(ratio, "no difference", ends))
    assert told["keep"] is None
    assert told["sentence"].startswith(
        f"int8: undecided. {ratio:.2f}x the speed of fp32 (95 % CI {ends[0]:.2f} to {ends[1]:.2f}), "
        "too unsteady to tell (more rounds, or a quieter machine). Top-1 -0.12 points"
    )
    assert said(timing(ratio, "no difference", ends), score={**SCORE, "drop": 2.5})["keep"] is False


def test_a_loss_of_just_a_point_is_not_more_than_one():
    assert 100 * (0.99 - 0.98) > 1
    assert said(timing(2.0, "faster"), score={**SCORE, "drop": 100 * (0.99 - 0.98)})["keep"] is True


def test_a_file_that_could_not_be_timed_is_not_kept():
    assert "could not be timed on this machine" in said([])["sentence"]
    assert said([])["keep"] is False


def test_of_a_file_for_another_kind_of_machine_nothing_is_said_here():
    told = said(timing(0.5, "slower"), other_target="arm")
    assert told["keep"] is None
    assert "no verdict on this machine: made for arm; time it there" in told["sentence"]


def test_without_labels_the_sentence_tells_the_agreement():
    told = speed_verdict("int8", {"drop": None, "agreement_fp32": 0.987}, 0.3, timing(2.0, "faster"), [])
    assert told["sentence"].endswith("fp32's class for 98.7 % of the images, 0.30 of the size")
    assert told["points"] is None
    told = speed_verdict("fp16", {"drop": None}, 0.5, timing(2.0, "faster"), [])
    assert "no labels to score it by" in told["sentence"]
    told = speed_verdict("int8", {"drop": 1.0, "top1": None}, 0.3, timing(2.0, "faster"), [])
    assert "kNN top-1 -1.00 points" in told["sentence"]


def test_the_worst_layers_are_named_with_their_noise():
    losses = [LayerNoise("layer1.0.conv1", 12.3, 4.56), LayerNoise("fc", 30.0, -0.2)]
    assert worst_layers(losses) == (
        "worst layers by signal to noise: layer1.0.conv1 (12 dB, in float +4.6 dB at the outputs), "
        "fc (30 dB, in float -0.2 dB at the outputs)"
    )
    assert worst_layers([]) == ""
    assert [row["layer"] for row in said(timing(2.0, "faster"), losses=losses)["worst"]] == [
        "layer1.0.conv1", "fc",
    ]  # fmt: skip


# ---- facts


@pytest.mark.parametrize(
    ("machine", "isa", "target"),
    [
        ("x86_64", ["avx2", "avx512_vnni"], "x86"),
        ("x86_64", ["avx2", "avx_vnni"], "x86"),
        ("AMD64", ["avx2"], "x86-novnni"),
        ("aarch64", [], "arm"),
        ("arm64", ["asimddp"], "arm"),
    ],
)
def test_a_file_is_made_for_the_machine_it_is_made_on(machine, isa, target):
    assert usual_target(machine, isa) == target


def test_a_processor_without_products_of_int8_is_a_reason():
    assert _of_the_processor("x86_64", ["avx512_vnni"]) == []
    assert "no VNNI" in _of_the_processor("x86_64", ["avx2"])[0]
    assert _of_the_processor("aarch64", ["asimddp"]) == []
    assert "no dot product of int8" in _of_the_processor("aarch64", ["asimd"])[0]


def layer(macs, groups=1):
    return Layer("a", "a", "x", "w", macs, groups)


def test_grouped_convolutions_and_little_work_are_reasons():
    layers = [layer(90_000_000), layer(10_000_000, groups=32)]
    assert grouped_share(layers) == pytest.approx(0.1)
    (told,) = _of_the_layers(layers)
    assert "grouped and depthwise convolutions do 10 % of the multiply-accumulates" in told
    assert _of_the_layers([layer(90_000_000)]) == []
    (told,) = _of_the_layers([layer(763_520)])
    assert "the network is so small (0.76 M MACs) that fixed overhead dominates" in told
    assert grouped_share([]) == 0.0


def test_conversions_and_moves_in_the_graph_are_reasons():
    assert _of_the_graph(Layout(2, Counter(), 3, 40), []) == []
    between = Layout(39, Counter({"HardSigmoid": 28, "ReduceMean": 10}), 3, 100)
    assert _of_the_graph(between, []) == [
        "39 conversions between int8 and float around what onnxruntime computes in float: "
        "HardSigmoid (28), ReduceMean (10)"
    ]
    (told,) = _of_the_graph(Layout(2, Counter(), 95, 174), [])
    assert told.startswith("95 of 174 operators only move data")
    assert _of_the_graph(Layout(2, Counter(), 0, 9), ["fc"]) == [
        "1 layer left in float by --int8-rescue (export.int8.rescue)"
    ]


def test_the_graph_that_onnxruntime_makes_of_a_file_is_looked_at(run, tmp_path):
    import onnx

    source = run[0] / "student.onnx"
    quantiser = Quantiser(source, calibrated(spec=SPEC), "x86")
    found = {}
    for name, in_float in (("all", []), ("some", ["layer2.0.conv1", "layer3.0.conv2"])):
        onnx.save(quantiser.graph(in_float), tmp_path / f"{name}.onnx")
        found[name] = layout_of(tmp_path / f"{name}.onnx")
    assert found["all"].conversions <= 4
    assert found["some"].conversions > found["all"].conversions
    assert found["some"].in_float
    told = slow_causes(
        source, tmp_path / "some.onnx", "x86_64", ["avx2"], ["layer2.0.conv1", "layer3.0.conv2"]
    )
    assert told[0].startswith("this processor has no VNNI")
    assert any("2 layers left in float" in reason for reason in told)


def test_the_agreement_with_a_nearly_constant_file_says_so():
    score = {"drop": None, "agreement_fp32": 0.98, "constant_fp32": 0.96}
    told = speed_verdict("int8", score, 0.3, timing(2.0, "faster"), [])
    assert "says little: fp32 is nearly constant, 96.0 % are one class" in told["sentence"]
