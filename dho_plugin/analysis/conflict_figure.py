"""Figures 4 and 13 from the conflict.csv of runs: what becomes of each measure in the course of training.

A line is the mean over runs, its band the sample deviation over them. Each run is smoothed before by a running mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import drawing
from .conflict_log import Observation

WINDOW = 0.05  # of the observations of a run, in which the running mean is taken
POINTS = 101  # at which runs of other steps than each other's are compared


class Run(NamedTuple):
    """What a run has left, and where it belongs; accuracy on the test set in percent, nan where it is not known."""

    dataset: str
    row: str
    seed: int
    lines: Sequence[Observation]
    accuracy: float = math.nan


class Panel(NamedTuple):
    """A panel: what stands above it, its measures (a solid and a dashed line), whether zero is of interest."""

    title: str
    measures: tuple[str, ...]
    zero: bool


PANELS = (
    Panel("cosine of gradients, shared parameters (Fig. 4)", ("cosine",), True),
    Panel("inner product of gradients, shared parameters", ("inner_product",), True),
    Panel("prediction discrepancy (Fig. 4)", ("discrepancy",), True),
    Panel("cosine of gradients, features (Fig. 13)", ("feature_cosine",), True),
    Panel("singular value, W of CE times Wᵀ of KD (Fig. 13)", ("singular_value",), False),
    Panel("eigenvalue of W Wᵀ: CE head; KD head dashed", ("ce_eigenvalue", "kd_eigenvalue"), False),
)


def window(count: int) -> int:
    """Of how many of a run's observations the running mean is taken: an odd number."""
    return 2 * round(WINDOW * count / 2) + 1


def smoothed(values: np.ndarray) -> np.ndarray:
    """The running mean of (n,) values, over fewer of them at both ends."""
    half = window(len(values)) // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def curves(runs: Sequence[Run], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Where (n,) and what (runs, n): over steps, or in percent of the training where runs have other steps."""
    steps = [np.array([line.step for line in run.lines]) for run in runs]
    values = [smoothed(np.array([getattr(line, measure) for line in run.lines])) for run in runs]
    if all(np.array_equal(steps[0], other) for other in steps):
        return steps[0], np.stack(values)
    share = np.linspace(0, 100, POINTS)
    return share, np.stack([np.interp(share, 100 * x / x[-1], y) for x, y in zip(steps, values, strict=True)])


def draw(runs: Sequence[Run], rows: Sequence[str]) -> Any:
    """The figure; to be called and saved within drawing.styled.

    Args:
        runs: each with two lines at least. rows: of which each has a run and gets a colour, in this order.
    """
    figure, axes = drawing.panels(2, 3, width=3.6, height=2.6)
    figure.get_layout_engine().set(h_pad=0.06)
    alike = len({tuple(line.step for line in run.lines) for run in runs}) == 1
    for panel, axis in zip(PANELS, axes.flat, strict=True):
        axis.set_title(panel.title)
        axis.set_xlabel("step" if alike else "training, %")
        if panel.zero:
            axis.axhline(0, color=drawing.INK, linewidth=0.8)
        for colour, row in zip(drawing.PALETTE, rows, strict=False):
            own = [run for run in runs if run.row == row]
            for measure, dash in zip(panel.measures, ("-", "--"), strict=False):
                where, values = curves(own, measure)
                axis.plot(where, values.mean(axis=0), dash, color=colour, label=row)
                if len(own) > 1 and dash == "-":
                    low, high = (values.mean(axis=0) + sign * values.std(axis=0, ddof=1) for sign in (-1, 1))
                    axis.fill_between(where, low, high, color=colour, alpha=0.2, linewidth=0)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=len(rows))
    return figure
