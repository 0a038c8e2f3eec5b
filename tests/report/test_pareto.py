"""The picture of accuracy, time and size: which networks no other beats, and where they are drawn."""

from __future__ import annotations

import re

from kdcompress.report.pareto import Choice, front, pareto_chart

CHOICES = [
    Choice("small", 1.0, 80.0, 100),
    Choice("large", 4.0, 90.0, 900),
    Choice("slow", 5.0, 85.0, 300),
    Choice("worse", 4.0, 89.0, 900),
    Choice("twin", 1.0, 80.0, 100),
]


def test_a_network_that_another_equals_everywhere_and_beats_somewhere_is_beaten():
    # "slow" is smaller than "large"; only a comparison of all three keeps it.
    assert [choice.name for choice in front(CHOICES)] == ["small", "large", "slow", "twin"]
    assert [choice.name for choice in front(CHOICES[1:2] + CHOICES[3:4])] == ["large"]


def test_beaten_networks_are_hollow_and_the_area_is_the_size():
    chart = pareto_chart(CHOICES, key="k", y_label="top-1, %", colours=6)
    circles = re.findall(r'<circle class="(\w+) c(\d)" cx="[\d.]+" cy="[\d.]+" r="([\d.]+)"', chart.svg)
    by_number = {int(colour): (kind, float(radius)) for kind, colour, radius in circles}
    assert [by_number[number][0] for number in range(5)] == ["dot", "dot", "dot", "hollow", "dot"]
    assert by_number[1][1] == by_number[3][1] > by_number[2][1] > by_number[0][1]
    assert [name for name, _, _ in chart.legend] == [choice.name for choice in CHOICES]


def test_names_are_escaped():
    chart = pareto_chart([Choice("<b>", 1.0, 50.0, 10)], key="k", y_label="top-1, %", colours=6)
    assert "<b>" not in chart.svg
