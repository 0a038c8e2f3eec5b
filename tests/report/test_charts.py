"""A chart has round ticks that enclose its values, an accessible title, and no text that is markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from kdcompress.report.charts import Line, Row, dot_chart, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 14.8, [0, 5, 10, 15]),
        (41.2, 93.1, [40, 60, 80, 100]),
        (-0.3, 0.3, [-0.4, -0.2, 0, 0.2, 0.4]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low, high, expected):
    assert ticks(low, high, 5 if high != 1 else 3) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-9, -3.0])
def test_a_flat_curve_has_ticks_around_it(value):
    found = ticks(value, value, 5)
    assert found[0] < value < found[-1]


def test_every_point_lies_inside_the_drawing():
    chart = line_chart(
        [Line("a", [(1, 0.1), (2, 7.0)], 0), Line("b", [(1, 3.0)], 1, dashed=True)],
        key="k", title="Loss", x_label="epochs", y_label="nats", from_zero=True,
    )  # fmt: skip
    svg = ET.fromstring(str(chart.svg))
    _, _, width, height = map(float, svg.get("viewBox").split())
    for line in svg.iter("polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    assert chart.legend == [("a", 0, "solid"), ("b", 1, "dashed")]


def test_a_single_epoch_is_a_visible_dot():
    chart = line_chart([Line("a", [(1, 2.0)], 0)], key="k", title="t", x_label="x", y_label="y")
    assert len(list(ET.fromstring(str(chart.svg)).iter("circle"))) == 1


def test_the_title_is_referred_to_and_text_is_escaped():
    chart = dot_chart([Row("<b>&", [(1.0, 0)], note="1")], key="k", title="<i>", x_label="ms")
    svg = ET.fromstring(str(chart.svg))  # well-formed, hence escaped
    assert svg.get("role") == "img"
    assert [svg.find("title").get("id"), svg.find("desc").get("id")] == svg.get("aria-labelledby").split()
    assert svg.find("title").text == "<i>: ms"
    assert "<b>&" in [text.text for text in svg.iter("text")]


def test_an_interval_is_drawn_from_its_low_to_its_high_end():
    chart = dot_chart([Row("a", [(2.0, 0)], (1.0, 4.0), "2 ms")], key="k", title="t", x_label="ms", highest=4)
    lines = [line for line in ET.fromstring(str(chart.svg)).iter("line") if "whisker" in line.get("class")]
    x1, x2 = (float(lines[0].get(key)) for key in ("x1", "x2"))
    dot = float(next(ET.fromstring(str(chart.svg)).iter("circle")).get("cx"))
    assert (dot - x1) / (x2 - x1) == pytest.approx(1 / 3, abs=0.01)
