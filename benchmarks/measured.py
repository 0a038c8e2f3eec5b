"""Writes the present defaults' table of methods.md as kdcompress/methods/measured.json.

`kdcompress methods NAME` reads that file.

python benchmarks/measured.py
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "methods.md"
FILE = HERE.parent / "kdcompress" / "methods" / "measured.json"
SETTING = "Fashion-MNIST with 3,000 labels, ResNet-20 to ResNet-8, 465 steps of 64 images, three seeds"


def measured(table: str) -> dict:
    """Parses the Markdown table of the present defaults: one entry per method."""
    present, _, _ = table.partition("## Four times as many steps")
    methods = {}
    for line in present.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 7 or "±" not in cells[1] or cells[0] == "method":
            continue
        name, _, probe = cells[0].partition(" ")
        top1, sd = map(float, cells[1].split("±"))
        methods[name] = {
            "top1": top1,
            "sd": sd,
            "gain_points": float(cells[2]) if cells[2] else None,
            "by_probe": probe == "(probe)",
            "images": cells[3],
            "minutes": float(cells[4]),
            "preparation_minutes": float(cells[5]) if cells[5] else None,
            "peak_mb": int(cells[6].replace(",", "")),
        }
    return {
        "schema": "kdcompress.measured/1",
        "setting": SETTING,
        "source": "benchmarks/methods.md",
        "methods": methods,
    }


if __name__ == "__main__":
    document = measured(TABLE.read_text(encoding="utf-8"))
    FILE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
