"""Self-supervised self-distillation of ResNet-8 on the 60,000 pictures of Fashion-MNIST, without a label.

    python benchmarks/sssd.py [--work DIR] [--seeds 2] [--set KEY=VALUE ...]

Runs the recipe sssd-fashion-mnist with each seed. Then three networks are scored by labels that none of
them was trained on: one with random weights, the pre-trained one, and the one trained on its clusters; for
clusters also the raw pixels. Linear probe: logistic regression on the features of 10,000 labelled training
images, scored on the 10,000 test images. Clusters: k-means with ten clusters on the features (of unit length)
of the test images. Runs that are done are not repeated, and one that was under way is resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import safetensors.torch
from scipy import stats

from kdcompress.deploy.config import write_config
from kdcompress.deploy.formats.safetensors import write_tensors
from kdcompress.deploy.load import load
from kdcompress.networks.build import build
from kdcompress.networks.from_recipe import seeded
from kdcompress.networks.load_state import load_state
from kdcompress.recipe import load_recipe

from runs import distill

NAMES = ("random weights", "pre-trained", "trained on its clusters")


def evaluate(work, file, probe, *options):
    """Returns the document of `kdcompress evaluate --probe`."""
    command = [sys.executable, "-m", "kdcompress", "evaluate", file, "--recipe", work / "recipe.yaml"]
    command += ["--probe", probe, "--json", *options]
    done = subprocess.run([str(word) for word in command], check=True, cwd=work, capture_output=True)
    return json.loads(done.stdout)


def backbone(folder, run, seed, state=None):
    """Writes a network without a classifier, with random weights or a state, in the form that is probed."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, spec = load_recipe(str(run / "recipe.yaml")), load(run)[1]
    seeded(seed, "weights of student")
    size = spec.height, spec.width
    network = build(recipe.student.model, num_classes=0, channels=spec.channels, image_size=size)
    if state is not None:
        load_state(network, state)
    write_tensors(network, folder / "student.safetensors")
    model = recipe.student.model
    write_config(folder / "config.json", model=model, num_classes=0, spec=spec, class_names=(), extra={})
    return folder / "student.safetensors"


def figures(work, recipe, seed):
    """Trains one seed; returns results and, by network, linear top-1, NMI and accuracy of clusters in %."""
    results = distill(work, f"seed{seed}", recipe, "--set", f"seed={seed}")
    run = work / "runs" / f"seed{seed}"
    (work / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    before = safetensors.torch.load_file(run / "checkpoints" / "pretraining.safetensors")
    files = {
        "random weights": backbone(work / f"random{seed}", run, seed),
        "pre-trained": backbone(work / f"pretrained{seed}", run, seed, before),
        "trained on its clusters": run / "student.safetensors",
    }
    found = {}
    for name, file in files.items():
        linear = evaluate(work, file, "linear", "--set", "data.labels=10000", "--set", "pseudo_labels=null")
        clusters = evaluate(work, file, "clusters", "--set", "pseudo_labels=null")
        found[name] = [100 * linear["top1"], 100 * clusters["nmi"], 100 * clusters["accuracy"]]
        pixels = clusters["pixels"]
    found["raw pixels"] = [None, 100 * pixels["nmi"], 100 * pixels["accuracy"]]
    return results, found


def cell(values):
    """Writes mean and half-width of the 95 % interval over the seeds."""
    if values[0] is None:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.2f} ± {half:.2f}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/sssd"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="change of the recipe")
    options = parser.parse_args()
    work = options.work.absolute()
    (work / "runs").mkdir(parents=True, exist_ok=True)
    recipe = load_recipe("sssd-fashion-mnist", options.set).to_yaml()
    every = []
    for seed in range(options.seeds):
        results, found = figures(work, recipe, seed)
        every.append(found)
        spent = results["training"]["seconds"]
        print(f"seed {seed}: {found}; the training on the clusters took {spent:.0f} s", flush=True)
    print("| network | linear probe top-1 % | clusters: NMI % | clusters: accuracy % |")
    print("|---|---|---|---|")
    for name in ("raw pixels", *NAMES):
        columns = zip(*(found[name] for found in every), strict=True)
        print(f"| {name} | {' | '.join(cell(values) for values in columns)} |")


if __name__ == "__main__":
    main()
