"""How sure each predictor is, and how often it is right then; each function is called within drawing.styled()."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..calibration import Reliability
from .drawing import GRID, PALETTE, panels
from .head_figures import line_of, over_runs

Bins = Sequence[Mapping[str, Reliability]]
"""By predictor, of each run."""


def confidence_figure(found: Bins, column: str) -> Any:
    """Share of images by the highest probability, all runs' images together (Fig. 15)."""
    figure, axes = panels(1, 1, width=6.4, height=3.4)
    ax = axes[0, 0]
    for name, bins in pooled(found).items():
        colour, dashes = line_of(name)
        edges = np.linspace(0, 100, len(bins.images) + 1)
        shares = 100 * bins.images / bins.images.sum()
        label = f"{name}: mean {100 * bins.confidence.sum() / bins.images.sum():.0f} %"
        ax.stairs(shares.numpy(), edges, color=colour, linestyle=dashes, linewidth=1.6, label=label)
    figure.legend(loc="outside lower left", ncols=2)
    ax.set(xlabel="highest probability, %", ylabel="images, %", xlim=(0, 100))
    ax.set_title(f"How sure each predictor is on {column}{over_runs(found)}")
    return figure


def reliability_figure(found: Bins, column: str) -> Any:
    """A panel for each predictor: accuracy by confidence, and the gap to a confidence that would be honest."""
    parts = pooled(found)
    figure, axes = panels(1, len(parts), width=2.4, height=3.0)
    for ax, (name, bins) in zip(axes[0], parts.items(), strict=True):
        edges = np.linspace(0, 100, len(bins.images) + 1)
        there = (bins.images > 0).numpy()
        middles, width = (edges[:-1] + edges[1:])[there] / 2, edges[1]
        right, sure = (100 * part.numpy()[there] for part in (bins.accuracy, bins.mean_confidence))
        ax.plot([0, 100], [0, 100], color=GRID, linewidth=1.2)
        ax.bar(middles, right, width, color=line_of(name)[0], linewidth=0, label="accuracy")
        gap = {"facecolor": "none", "edgecolor": PALETTE[3], "hatch": "////", "linewidth": 0.8}
        ax.bar(middles, sure - right, width, bottom=right, label="gap to confidence", **gap)
        ax.set(xlim=(0, 100), ylim=(0, 100), xlabel="highest probability, %", aspect="equal")
        ax.set_title(f"{name}\nECE {bins.error:.3f}")
    axes[0, 0].set_ylabel(f"top-1 on {column}, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(parts)))
    return figure


def pooled(found: Bins) -> dict[str, Reliability]:
    """All runs' images together, by predictor."""
    return {name: Reliability.pooled([one[name] for one in found]) for name in found[0]}
