"""The picture of a benchmark stands alone: every rule it needs is in it, and the PNG shows the same."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import pytest
from bench.documents import document, result
from PIL import Image, ImageColor

from kdcompress.report.latency import latency_charts
from kdcompress.report.plot import plot

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def bench():
    rows = [
        result("student", 4.0, base="teacher", ratio=5.0, round_medians_ms=[3.9, 4.0, 8.1]),
        result("teacher <b>", 20.0),
        result("student", 3.0, runtime="openvino", precision="bf16"),
        result("student", 2.0, threads=2, batch=8),
    ]
    return document(*rows)


def test_there_is_a_chart_for_each_thread_count_and_batch_size(bench):
    charts = latency_charts(bench["results"])
    assert [chart.title for chart in charts] == ["1 thread, batch 1", "2 threads, batch 8"]
    text = str(charts[0].svg)
    assert "student · onnxruntime<" in text
    assert "student · openvino · bf16<" in text
    assert "teacher &lt;b&gt; · onnxruntime<" in text


def test_an_artefact_keeps_its_colour_and_roles_have_theirs(bench):
    bench["results"][1]["artefact"] = "teacher"
    bench["results"].insert(0, result("other", 1.0))
    text = str(latency_charts(bench["results"])[0].svg)
    assert re.findall(r'class="dot (c\d)"', text) == ["c2", "c0", "c1", "c0"]


def test_the_rounds_are_marks_within_the_drawing(bench):
    svg = ET.fromstring(str(latency_charts(bench["results"])[0].svg))
    width = float(svg.get("viewBox").split()[2])
    rounds = [float(dot.get("cx")) for dot in svg.iter("circle") if "round" in dot.get("class")]
    assert len(rounds) == 3 + 2 + 2
    assert max(rounds) < width


def test_the_svg_has_a_rule_for_every_class_and_colour_in_it(bench):
    svg = plot(bench, ".svg").decode()
    root = ET.fromstring(svg)
    style = root.find(f"{SVG}style").text
    used = {name for element in root.iter() for name in element.get("class", "").split()} - {"chart"}
    assert used >= {"dot", "whisker", "round", "c0", "title", "row"}
    lacking = {name for name in used if not re.search(rf"\.{name}\b", style)}
    assert lacking <= {"tick", "label"}  # they look as texts do
    defined = set(re.findall(r"(--[\w-]+):", style))
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= defined
    assert not re.search(r"^(body|table|main)", style, re.M)


def test_the_svg_says_what_the_figures_hold_for(bench):
    text = plot(bench, ".svg").decode()
    assert "A CPU, 2 of 8 cores; onnxruntime 1.2, torch 2.9" in text
    assert "21 shuffled rounds" in text
    assert "A/A control: teacher twice came out 0.99 to 1.01× apart" in text
    assert "teacher &lt;b&gt;" in text


def test_the_png_is_the_same_drawing_in_pixels(bench):
    root = ET.fromstring(plot(bench, ".svg"))
    width, height = (float(root.get(key)) for key in ("width", "height"))
    with Image.open(io.BytesIO(plot(bench, ".png"))) as image:
        assert image.size == (round(2 * width), round(2 * height))
        colours = {colour for _, colour in image.getcolors(1 << 20)}
    for name in ("--c0", "--c1", "--paper"):
        value = re.search(rf"{name}: (#\w+)", root.find(f"{SVG}style").text)[1]
        assert ImageColor.getrgb(value) in colours
