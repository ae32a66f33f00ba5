"""The tables of a comparison: in words, as summary.py has them, and from these words as HTML and as files."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import NamedTuple

from ..tables import summary
from ..tables.command import star
from ..tables.summary import Difference, Table, accuracies, paired_difference
from .comparison import Comparison
from .markup import Markup, join, tag

Cell = Callable[[int, int, str], Markup]
"""A table's cell as HTML, from its line, its column (0 for the first behind the row's name) and its word."""


class Leaders(NamedTuple):
    """Who is ahead in a column: the best row where it is clear of all others, else those that tie for it."""

    best: str
    tied: tuple[str, ...]


def leaders(comparison: Comparison, column: str) -> Leaders:
    """Of the rows that have learned something; nobody where there is nothing to tell it by, such as a single seed."""
    records = comparison.records
    means = {row: mean(v) for row in comparison.trained() if (v := accuracies(records, row, column).values())}
    if len(means) < 2:
        return Leaders("", ())
    top = max(means, key=means.__getitem__)
    behind = {row: paired_difference(records, top, row, column) for row in means if row != top}
    if any(math.isnan(difference.standard_error) for difference in behind.values()):
        return Leaders("", ())
    tied = tuple(row for row, difference in behind.items() if not difference.clear)
    return Leaders("", (top, *tied)) if tied else Leaders(top, ())


def results(comparison: Comparison) -> Table:
    """Accuracies in words."""
    return summary.results_table(comparison.records, list(comparison.rows), comparison.columns, comparison.paper)


def differences(comparison: Comparison) -> Table:
    """Paired differences in words."""
    return summary.differences_table(comparison.records, comparison.pairs, comparison.columns, comparison.paper)


def results_html(comparison: Comparison, badges: Callable[[str], Markup]) -> Markup:
    """The accuracies; the paper's stand in grey behind ours.

    Args:
        badges: what stands behind a row's name.
    """
    table, ours = results(comparison), len(comparison.columns)
    ahead = [leaders(comparison, column) for column in comparison.columns]
    seeds = len({record.seed for record in comparison.records})
    rows = list(comparison.rows)

    def cell(line: int, column: int, word: str) -> Markup:
        row, papers = rows[line], table.lines[line][1 + ours :]
        said = tag("strong", word) if row == ahead[column].best else join(word)
        beside = tag("span", papers[column].removeprefix("-"), class_="paper") if papers else ""
        there = len(accuracies(comparison.records, row, comparison.columns[column]))
        words = ["tie"] * (row in ahead[column].tied) + [f"{there} of {seeds}"] * (0 < there < seeds)
        return join(said, behind(", ".join(words)), beside)

    header = table.header[: 1 + ours]
    lines = [line[: 1 + ours] for line in table.lines]
    return html("Accuracy", Table(header, tuple(lines)), cell, lambda line: join(rows[line], badges(rows[line])))


def differences_html(comparison: Comparison) -> Markup:
    """The paired differences; what is within two standard errors is called a tie, the paper's stand in grey."""
    table = differences(comparison)

    def cell(line: int, column: int, word: str) -> Markup:
        row, control = comparison.pairs[line]
        ours, opening, papers = word.partition(" (")
        said = verdict(paired_difference(comparison.records, row, control, comparison.columns[column]))
        starred = "*" if ours.endswith("*") else ""
        beside = tag("span", f"{opening}{papers}", class_="paper") if comparison.paper.columns else ""
        return join(ours.removesuffix("*"), behind(starred or said), beside)

    table = table._replace(header=("row minus row", *table.header[1:]))
    return html("Paired differences", table, cell, lambda line: join(table.lines[line][0]))


def behind(word: str) -> Markup:
    """What stands behind a number, in a place of its own, so that numbers stand below each other."""
    if word == "*":
        return tag("span", word, class_="verdict star")
    return tag("span", f" {word}" if word else "", class_="verdict")


def verdict(difference: Difference) -> str:
    """A word for a difference that is not clear; empty for one that is, and for none."""
    if math.isnan(difference.mean) or difference.clear:
        return ""
    return "one pair" if math.isnan(difference.standard_error) else "tie"


def html(caption: str, table: Table, cell: Cell, name: Callable[[int], Markup]) -> Markup:
    """A table whose columns can be sorted, in a box of its own that scrolls."""
    heads = [
        tag("th", tag("button", word, type="button"), scope="col", aria_sort="none")
        for word in (_upper(table.header[0]), *table.header[1:])
    ]
    lines = [
        tag(
            "tr",
            tag("th", name(i), scope="row"),
            *(
                tag("td", cell(i, j, word), data_value=number(word), class_="missing" if word == "missing" else None)
                for j, word in enumerate(line[1:])
            ),
        )
        for i, line in enumerate(table.lines)
    ]
    inside = tag(
        "table", tag("caption", caption, class_="unseen"), tag("thead", tag("tr", *heads)), tag("tbody", *lines)
    )
    return scrolling(inside, caption)


def scrolling(inside: Markup, name: str) -> Markup:
    """A box of its own for what may be wider than the page, which the keyboard reaches and scrolls."""
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=name)


def number(word: str) -> str | None:
    """What a cell is sorted by: the number that it begins with."""
    first = word.split()[0].rstrip("*") if word else ""
    try:
        return str(float(first))
    except ValueError:
        return None


def legend(comparison: Comparison) -> str:
    """What the marks of the accuracies mean, with these seeds."""
    seeds = sorted({record.seed for record in comparison.records})
    listed = ", ".join(map(str, seeds)) or "none"
    if len(seeds) < 2:
        return f"Seed {listed}.{papers_note(comparison)}"
    over = (
        f"Mean and sample deviation over seeds {listed}, or over as many of them as a cell says. Bold: the highest of "
        "the trained rows, where it is more than two standard errors above every other, paired by seed; else those "
        "that are not told apart from the highest are called a tie."
    )
    return f"{over}{papers_note(comparison)}"


def differences_legend(comparison: Comparison) -> str:
    """What the marks of the differences mean."""
    return (
        "Points, ± the standard error of the difference paired by seed. A difference within two standard errors is "
        f"called a tie. {star(comparison.records)}"
    )


def papers_note(comparison: Comparison) -> str:
    """Whose the grey numbers are."""
    if not comparison.paper.columns:
        return ""
    return f" Grey: the paper's numbers ({', '.join(comparison.paper.columns)}), with its students and teachers."


def _upper(word: str) -> str:
    return word[:1].upper() + word[1:]
