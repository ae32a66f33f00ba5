"""Small multiples: accuracy over the number of labels, a panel a dataset, a line a row (Fig. 5, 6, 11, 12, 14)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from ..analysis.drawing import PALETTE, panels, styled
from . import summary
from .summary import Record

WIDE = 4  # panels beside each other, at most
MARKERS = "osD^v"


def multiples(records: Mapping[str, Sequence[Record]], rows: Sequence[str], columns: Sequence[str]) -> Any:
    """The figure: means over seeds, bars of a sample deviation up and down; what is missing leaves a gap.

    Args:
        records: by the panel's title. rows: the lines, at most as many as PALETTE has colours. columns: along the
            horizontal axis.
    """
    high = math.ceil(len(records) / WIDE)
    with styled():
        figure, axes = panels(high, math.ceil(len(records) / high), width=2.6, height=2.2)
        lines = {}
        for axis, (title, of) in zip(axes.flat, records.items(), strict=False):
            for row, colour, marker in zip(rows, PALETTE, MARKERS, strict=False):
                values = [list(summary.accuracies(of, row, column).values()) for column in columns]
                if any(values):
                    lines[row] = _line(axis, values, color=colour, marker=marker)
            axis.set(title=title, xticks=range(len(columns)))
            axis.set_xticklabels([column.removesuffix("-shot") for column in columns])
        for axis in axes.flat[len(records) :]:
            axis.set_visible(False)
        figure.supylabel("top-1, %", fontsize="medium")
        figure.supxlabel("labelled images a class; bars: a sample deviation over seeds", fontsize="medium")
        order = [row for row in rows if row in lines]
        figure.legend([lines[row] for row in order], order, loc="outside upper left", ncols=len(order))
    return figure


def _line(axis: Any, values: Sequence[Sequence[float]], **style: Any) -> Any:
    middle = [mean(of) if of else math.nan for of in values]
    spread = [stdev(of) if len(of) > 1 else 0.0 for of in values]
    return axis.errorbar(range(len(values)), middle, spread, markersize=3.5, capsize=1.5, **style)
