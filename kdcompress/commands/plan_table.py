"""The text of `plan`."""

from __future__ import annotations

from typing import Any

import click

from kdcompress.progress import duration_text

_PARTS = {
    "teacher": "teacher", "student": "student", "data": "waiting for data",
    "losses_and_rest": "losses, heads, optimiser", "epoch_ends": "evaluation and checkpoints",
}  # fmt: skip
_STAGES = {
    "pretraining": "training without labels",
    "pixel_cache": "filling the pixel cache",
    "teacher": "training the teacher",
    "preparations": "training heads on the teacher",
    "student": "training the student",
    "delivery": "export, proof, timing (estimate)",
}


def print_plan(plan: dict[str, Any]) -> None:
    """Writes the forecast for a terminal."""
    click.echo(
        f"{plan['recipe']} on {plan['device']}, {plan['threads']} thread{'s' * (plan['threads'] != 1)}: "
        f"{plan['images_per_s']:,.0f} images/s, {plan['step_ms']:,.1f} ms a step of {plan['batch_size']} "
        f"images ({plan['measured_steps']} measured)"
    )
    click.echo(
        f"An epoch of {plan['steps_per_epoch']:,} steps: {duration_text(plan['epoch_s'])}, of which "
        f"{duration_text(plan['epoch_end_s'])} at its end (evaluation, batch-norm statistics, checkpoint)"
    )
    click.echo()
    for key, name in _STAGES.items():
        seconds = plan["seconds"][key]
        if seconds:
            click.echo(f"  {name:<34} {duration_text(seconds):>12}")
    click.echo(f"  {'in all':<34} {duration_text(plan['seconds']['total']):>12}")
    for left_out in plan["not_counted"]:
        click.echo(f"Not counted: {left_out}")
    click.echo()
    parts = ", ".join(f"{name} {100 * plan['shares'][key]:.0f} %" for key, name in _PARTS.items())
    click.echo(f"Of the student's training: {parts}")
    click.echo(f"Memory: {plan['peak_memory_bytes'] / 1e9:.1f} GB")
    cache = plan["teacher_cache"]
    if cache is not None:
        click.echo(f"Teacher cache: {_cache_text(cache)}")
    for advice in plan["advice"]:
        click.echo(
            f"Faster: --set {advice['setting']} would train the student {advice['speedup']:.2f} times as fast"
        )


def _cache_text(cache: dict[str, Any]) -> str:
    if not cache["possible"]:
        return str(cache["reason"]).removeprefix("teacher.cache: ")
    size = f"{cache['views']} views as {cache['keep']}, {cache['bytes'] / 1e6:,.1f} MB"
    return size if cache["on"] else f"off; with teacher.cache=auto {size}"
