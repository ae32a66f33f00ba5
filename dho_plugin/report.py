"""Result tables: mean and deviation over seeds, and paired differences between rows that share seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple


class Record(NamedTuple):
    """One cell of a table at one seed; accuracy in percent."""

    row: str
    column: str
    seed: int
    accuracy: float


class Difference(NamedTuple):
    """A paired difference in points: mean over seeds and its standard error (nan for a single seed)."""

    mean: float
    standard_error: float

    @property
    def clear(self) -> bool:
        """Whether it is more than two standard errors away from zero."""
        return abs(self.mean) > 2 * self.standard_error


def accuracies(records: Iterable[Record], row: str, column: str) -> dict[int, float]:
    """Accuracy by seed of one cell."""
    return {record.seed: record.accuracy for record in records if (record.row, record.column) == (row, column)}


def paired_difference(records: Sequence[Record], row: str, control: str, column: str) -> Difference:
    """Row minus control over the seeds that both have; the spread between seeds cancels."""
    one, other = accuracies(records, row, column), accuracies(records, control, column)
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if len(differences) < 2:
        return Difference(mean(differences) if differences else math.nan, math.nan)
    return Difference(mean(differences), stdev(differences) / math.sqrt(len(differences)))


def results_table(records: Sequence[Record], rows: Sequence[str], columns: Sequence[str]) -> str:
    """Markdown table of mean and sample deviation over seeds; a missing cell is shown as missing."""
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            values = list(accuracies(records, row, column).values())
            spread = f" ±{stdev(values):.1f}" if len(set(values)) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}" if values else "missing")
        lines.append([row, *cells])
    return _markdown(["top-1, %", *columns], lines)


def differences_table(records: Sequence[Record], pairs: Sequence[tuple[str, str]], columns: Sequence[str]) -> str:
    """Markdown table of paired differences, "*" where one is more than two standard errors from zero."""
    lines = []
    for row, control in pairs:
        cells = []
        for column in columns:
            difference = paired_difference(records, row, control, column)
            error = "" if math.isnan(difference.standard_error) else f" ±{difference.standard_error:.1f}"
            star = "*" if difference.clear else ""
            cells.append("missing" if math.isnan(difference.mean) else f"{difference.mean:+.1f}{error}{star}")
        lines.append([f"{row} minus {control}", *cells])
    return _markdown(["paired difference, points ± its standard error", *columns], lines)


def write_json(records: Sequence[Record], path: str | Path) -> None:
    """One object for each cell and seed: row, column, seed, accuracy."""
    Path(path).write_text(json.dumps([record._asdict() for record in records], indent=1) + "\n", encoding="utf-8")


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [list(header), *[list(line) for line in lines]]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    shown = [
        "| " + " | ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in table
    ]
    rule = "|" + "|".join(("-" * (width + 1) + ("-" if i == 0 else ":")) for i, width in enumerate(widths)) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def _pad(cell: str, width: int, position: int) -> str:
    return cell.ljust(width) if position == 0 else cell.rjust(width)
