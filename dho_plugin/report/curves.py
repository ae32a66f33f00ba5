"""Training curves of a row, parsed from the logs of its runs, one for each seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..analysis import drawing
from ..run_log import LOG

# The lines of Dassl and CoOp: "epoch [1/5] batch [10/30] time 0.1 (0.1) data 0.0 (0.0) loss 1.7 (1.8) lr 1e-3 eta ..."
_STEP = re.compile(r"epoch \[(\d+)/\d+\] batch \[(\d+)/(\d+)\] time \S+ \(\S+\) data \S+ \(\S+\) (.*)lr (\S+)")
_METRIC = re.compile(r"(\S+) \S+ \(([^)]+)\)")
_EVALUATED = re.compile(r"Evaluate on the \*(\w+)\* set")
_ACCURACY = re.compile(r"\* accuracy: ([\d.]+)%")
RATE, VALIDATION = "lr", "validation accuracy, %"


class Curve(NamedTuple):
    """A number over training: steps that were taken, and its value there."""

    steps: list[int]
    values: list[float]


def read_curves(log: Path) -> dict[str, Curve]:
    """Each metric's mean over the epoch so far, the learning rate, and validation accuracies, from a log.

    Where there are several epochs a mean is taken at the end of each, since it starts anew in the next one.
    """
    found: dict[str, dict[int, float]] = {}
    ends: set[int] = set()
    step, split = 0, ""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _STEP.match(line):
            epoch, batch, batches = (int(number) for number in match.groups()[:3])
            step = (epoch - 1) * batches + batch
            for name, mean in [*_METRIC.findall(match[4]), (RATE, match[5])]:
                found.setdefault(name, {})[step] = float(mean)
            ends |= {step} if batch == batches else set()
        elif match := _EVALUATED.match(line):
            split = match[1]
        elif split == "val" and (match := _ACCURACY.match(line)):
            found.setdefault(VALIDATION, {})[step] = float(match[1])
            split = ""
    whole = len(ends) > 1
    kept = {
        name: {at: value for at, value in points.items() if at in ends or not whole or name in (RATE, VALIDATION)}
        for name, points in found.items()
    }
    return {name: Curve(list(points), list(points.values())) for name, points in kept.items() if points}


def band(curves: Sequence[Curve]) -> tuple[list[int], Tensor]:
    """The steps that all curves have, and there the lowest, mean and highest value: float64 (3, steps)."""
    shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    rows = [[dict(zip(curve.steps, curve.values, strict=True))[step] for step in shared] for curve in curves]
    values = torch.tensor(rows, dtype=torch.float64).reshape(len(curves), len(shared))
    return shared, torch.stack([values.amin(dim=0), values.mean(dim=0), values.amax(dim=0)])


def panels_of(curves: Sequence[Mapping[str, Curve]]) -> list[tuple[str, list[str]]]:
    """What stands in which panel: losses together, then each other metric; titles with the metrics' names."""
    names = list(dict.fromkeys(name for of_run in curves for name in of_run))
    losses = [name for name in names if name.startswith("loss")]
    others = [name for name in names if name not in (*losses, RATE, VALIDATION)]
    found = [("losses" if len(losses) > 1 else "loss", losses)] if losses else []
    found += [("accuracy on the batches, %" if name == "acc" else name, [name]) for name in others]
    return found + [(title, [title]) for title in (VALIDATION,) if title in names] + [("learning rate", [RATE])]


def curves_figure(folders: Sequence[Path]) -> Any:
    """The figure of a row's runs; None where their logs have no steps."""
    logs = [folder / LOG for folder in folders if (folder / LOG).is_file()]
    runs = [curves for curves in map(read_curves, logs) if curves]
    if not runs:
        return None
    shown = panels_of(runs)
    figure, axes = drawing.panels(1, len(shown), width=2.6, height=2.0)
    for axis, (title, names) in zip(axes[0], shown, strict=True):
        for name in names:
            steps, (low, mean, high) = band([run[name] for run in runs if name in run])
            (line,) = axis.plot(steps, mean, label=name, marker="o" if len(steps) == 1 else "", markersize=3)
            if len(runs) > 1:
                axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set(title=title, xlabel="steps")
        if len(names) > 1:
            low, high = axis.get_ylim()
            axis.set_ylim(low, high + 0.6 * (high - low))  # the legend's place
            axis.legend(loc="upper right", fontsize=8)
        if title == "learning rate":
            axis.yaxis.set_major_formatter("{x:g}")
    return figure
