"""Numbers of several runs that differ in their seed, as tables: mean and deviation, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from ..tables.summary import Table, mean_and_deviation

Values = Mapping[str, Mapping[str, float]]
"""A number of one run by row and column."""


class Section(NamedTuple):
    """A part of a document.

    Attributes:
        name: of its files. tables: in Markdown, with `text` below them. details: as CSV.
    """

    name: str
    heading: str
    tables: tuple[Table, ...]
    text: tuple[str, ...]
    details: Table


def values_table(title: str, measured: Sequence[Values]) -> Table:
    """Mean and deviation over runs; the rows and columns are the first one's."""
    columns = list(dict.fromkeys(column for row in measured[0].values() for column in row))
    lines = [
        (row, *(mean_and_deviation(over_runs(measured, row, column), _digits(column)) for column in columns))
        for row in measured[0]
    ]
    return Table((title, *columns), tuple(lines))


def details(measured: Sequence[Values]) -> Table:
    """A line for each row and column, to compute with; empty where there is no such number."""
    lines = []
    for row, columns in measured[0].items():
        for column in columns:
            values = over_runs(measured, row, column)
            numbers = (mean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan)
            lines.append((row, column, *("" if math.isnan(x) else f"{x:.6g}" for x in numbers), str(len(values))))
    return Table(("row", "column", "mean", "sd", "n"), tuple(lines))


def over_runs(measured: Sequence[Values], row: str, column: str) -> list[float]:
    """The numbers that there are of one row and column."""
    values = [values[row][column] for values in measured if column in values.get(row, {})]
    return [value for value in values if not math.isnan(value)]


def _digits(column: str) -> int:
    if column == "images":
        return 0
    return 1 if "%" in column or "points" in column else 3


def in_percent(values: Values) -> Values:
    """The same with the unit in the columns' names."""
    return {row: {f"{column}, %": value for column, value in columns.items()} for row, columns in values.items()}
