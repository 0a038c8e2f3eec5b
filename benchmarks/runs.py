"""Runs `kdcompress distill` for a benchmark that can be stopped and goes on with the same command."""

from __future__ import annotations

import json
import subprocess
import sys

from PIL import Image


def distill(work, name, recipe, *options):
    """Runs a recipe in WORK/runs/NAME, unless it is done, and returns its `results.json`."""
    folder, file = work / "runs" / name, work / f"{name}.yaml"
    if not (folder / "done").exists():
        file.write_text(recipe)
        command = [sys.executable, "-m", "kdcompress", "distill", "--recipe", file, "--out", folder, "-q"]
        command += ["--allow-code", *options, *(["--resume"] if folder.exists() else [])]
        subprocess.run([str(word) for word in command], check=True, cwd=work, stdout=subprocess.DEVNULL)
        (folder / "done").touch()
    return json.loads((folder / "results.json").read_text())


def save_image(pixels, folder, index):
    """Writes pixels `[H, W]` uint8 as FOLDER/INDEX.png."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{index}.png")
