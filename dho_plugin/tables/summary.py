"""Result tables: mean and deviation over seeds, paired differences between rows that share seeds, a paper's numbers.

Records become a Table of words, and a Table becomes Markdown, LaTeX or CSV.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

_LATEX = {"±": r"$\pm$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {mark: f"\\{mark}" for mark in "&%$#_{}"}


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


class Tally(NamedTuple):
    """Numbers of differences: clearly above zero, not clear either way, clearly below."""

    wins: int
    ties: int
    losses: int


class Paper(NamedTuple):
    """Published numbers to stand beside ours: one for each of our columns, under the paper's names; None for none."""

    columns: tuple[str, ...] = ()
    rows: Mapping[str, Sequence[float | None]] = {}

    def value(self, row: str, position: int) -> float | None:
        """The number of a row in the column of that position."""
        return self.rows[row][position] if row in self.rows else None

    def difference(self, row: str, control: str, position: int) -> float | None:
        """Row minus control, where it has both."""
        one, other = self.value(row, position), self.value(control, position)
        return None if one is None or other is None else one - other


class Table(NamedTuple):
    """What to show, in words: a header, and lines of which the first word names the row."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


NO_PAPER = Paper()


def accuracies(records: Iterable[Record], row: str, column: str) -> dict[int, float]:
    """Accuracy by seed of one cell."""
    return {record.seed: record.accuracy for record in records if (record.row, record.column) == (row, column)}


def paired_difference(records: Sequence[Record], row: str, control: str, column: str) -> Difference:
    """Row minus control over the seeds that both have; the spread between seeds cancels."""
    return difference_over_columns(records, row, {column: control})


def difference_over_columns(records: Sequence[Record], row: str, controls: Mapping[str, str]) -> Difference:
    """Mean over columns of row minus control, paired over the seeds that have all of it.

    The columns of a seed are averaged before its error is estimated, since they share what the seed decides.

    Args:
        controls: the row to compare with in each column.
    """
    pairs = [(accuracies(records, row, column), accuracies(records, controls[column], column)) for column in controls]
    shared = set.intersection(*(set(accuracy) for pair in pairs for accuracy in pair)) if pairs else set()
    differences = [mean(one[seed] - other[seed] for one, other in pairs) for seed in sorted(shared)]
    if len(differences) < 2:
        return Difference(mean(differences) if differences else math.nan, math.nan)
    return Difference(mean(differences), stdev(differences) / math.sqrt(len(differences)))


def tally(records: Sequence[Record], pairs: Sequence[tuple[str, str]], columns: Sequence[str]) -> Tally:
    """How often a row is clearly above its control, neither, or clearly below it; missing cells are not counted."""
    differences = [paired_difference(records, *pair, column) for pair in pairs for column in columns]
    known = [difference for difference in differences if not math.isnan(difference.mean)]
    wins = sum(difference.clear and difference.mean > 0 for difference in known)
    losses = sum(difference.clear and difference.mean < 0 for difference in known)
    return Tally(wins, len(known) - wins - losses, losses)


def points(difference: Difference) -> str:
    """A difference in words: "+1.3 ±0.2*", the star where it is clear; "missing" where there is none."""
    if math.isnan(difference.mean):
        return "missing"
    error = "" if math.isnan(difference.standard_error) else f" ±{difference.standard_error:.1f}"
    return f"{difference.mean:+.1f}{error}{'*' if difference.clear else ''}"


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """Over seeds, in words: "71.3 ±0.4", without a deviation where all are equal; "missing" where there are none."""
    if not values or math.isnan(mean(values)):
        return "missing"
    spread = f" ±{stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def chance_of_a_star(seeds: int) -> float:
    """How often nothing but (normal) noise is over two standard errors from zero: Student's t, seeds - 1 degrees."""
    degrees, steps = seeds - 1, 2000
    gammas = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    scale = math.exp(gammas) / math.sqrt(degrees * math.pi)
    points = ((2 * step + 1) / steps for step in range(steps))  # midpoints of (0, 2)
    return 1 - 2 * (2 / steps) * sum(scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2) for t in points)


def results_table(
    records: Sequence[Record], rows: Sequence[str], columns: Sequence[str], paper: Paper = NO_PAPER
) -> Table:
    """Mean and sample deviation over seeds, then the paper's numbers; a missing cell is shown as missing."""
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            cells.append(mean_and_deviation(list(accuracies(records, row, column).values())))
        printed = [paper.value(row, position) for position in range(len(paper.columns))]
        lines.append((row, *cells, *("-" if value is None else f"{value:.1f}" for value in printed)))
    return Table(("top-1, %", *columns, *(f"paper {column}" for column in paper.columns)), tuple(lines))


def differences_table(
    records: Sequence[Record], pairs: Sequence[tuple[str, str]], columns: Sequence[str], paper: Paper = NO_PAPER
) -> Table:
    """Paired differences, "*" where one is over two standard errors from zero; the paper's stands in parentheses."""
    lines = []
    for row, control in pairs:
        cells = []
        for position, column in enumerate(columns):
            printed = paper.difference(row, control, position)
            beside = "" if printed is None else f" ({printed:+.1f})"
            cells.append(points(paired_difference(records, row, control, column)) + beside)
        lines.append((f"{row} minus {control}", *cells))
    return Table(("paired difference, points ± its standard error", *columns), tuple(lines))


def details_table(
    records: Sequence[Record],
    rows: Sequence[tuple[str, str]],
    columns: Sequence[str],
    paper: Paper = NO_PAPER,
) -> Table:
    """One line for each row and column, to compute with; a word is empty where there is no such number.

    Args:
        rows: each with the row that it is compared with, empty for none.
    """
    lines = []
    for row, control in rows:
        for position, column in enumerate(columns):
            values = list(accuracies(records, row, column).values())
            difference = paired_difference(records, row, control, column)
            numbers = (
                mean(values) if values else None,
                stdev(values) if len(values) > 1 else None,
                len(values),
                paper.value(row, position) if paper.columns else None,
            )
            lines.append((row, column, *map(_number, numbers), control, *map(_number, difference)))
    return Table(("row", "column", "mean", "sd", "n", "paper", "control", "difference", "se"), tuple(lines))


def not_beaten(records: Sequence[Record], pairs: Sequence[tuple[str, str]], columns: Sequence[str]) -> list[str]:
    """A line for each pair whose row is not above its control by more than two standard errors in every column.

    It names those columns; "clearly below" where it is under its control by more than two standard errors.
    """
    lines = []
    for row, control in pairs:
        said = []
        for column in columns:
            difference = paired_difference(records, row, control, column)
            if not (difference.clear and difference.mean > 0):
                said.append(f"{column} {points(difference)}{' (clearly below)' if difference.clear else ''}")
        if said:
            lines.append(f"{row} v {control}: {', '.join(said)}")
    return lines


def markdown(table: Table) -> str:
    """A Markdown table, aligned to be read as it stands."""
    words = [[cell.replace("|", "\\|") for cell in line] for line in (table.header, *table.lines)]
    widths = [max(len(line[i]) for line in words) for i in range(len(table.header))]
    shown = [
        "| " + " | ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in words
    ]
    rule = "|" + "|".join(("-" * (width + 1) + ("-" if i == 0 else ":")) for i, width in enumerate(widths)) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def latex(table: Table) -> str:
    """A tabular for the package booktabs."""
    header, *lines = (
        " & ".join("".join(_LATEX.get(mark, mark) for mark in cell) for cell in line) + r" \\"
        for line in (table.header, *table.lines)
    )
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"])


def comma_separated(table: Table) -> str:
    """The table as CSV, with a final newline."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.lines])
    return text.getvalue()


def write_json(records: Sequence[Record], path: str | Path) -> None:
    """One object for each cell and seed: row, column, seed, accuracy."""
    Path(path).write_text(json.dumps([record._asdict() for record in records], indent=1) + "\n", encoding="utf-8")


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _pad(cell: str, width: int, position: int) -> str:
    return cell.ljust(width) if position == 0 else cell.rjust(width)
