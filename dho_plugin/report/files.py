"""The tables of a page as files, to be pasted and computed with."""

from __future__ import annotations

from collections.abc import Sequence

from ..tables import summary
from ..tables.summary import Table
from .comparison import Comparison
from .pictures import OfRow
from .tables import differences, differences_legend, legend, results


def texts(title: str, comparisons: Sequence[Comparison], heads: Sequence[OfRow]) -> dict[str, str]:
    """All tables as Markdown and LaTeX, and the accuracies as CSV, by ending."""
    paragraphs, tabulars, lines = [f"# {title}"], [], []
    header: tuple[str, ...] = ()
    for comparison in comparisons:
        paragraphs += [f"## {comparison.title}", summary.markdown(results(comparison)), legend(comparison)]
        tabulars.append(_latex(comparison.title, results(comparison)))
        if comparison.pairs:
            paragraphs += [summary.markdown(differences(comparison)), differences_legend(comparison)]
            tabulars.append(_latex(f"{comparison.title}, paired differences", differences(comparison)))
        named = [(row, [other for one, other in comparison.pairs if one == row] or [""]) for row in comparison.rows]
        pairs = [(row, control) for row, others in named for control in others]
        header, found = summary.details_table(comparison.records, pairs, comparison.columns, comparison.paper)
        lines += [(comparison.title, *line) for line in found]
    for row in heads:
        paragraphs.append(f"## {row.title}")
        for section, _ in row.sections:
            paragraphs += [f"### {section.heading}", *map(summary.markdown, section.tables), *section.text]
            tabulars += [_latex(f"{row.title}: {section.heading}", table) for table in section.tables]
    return {
        "md": "\n\n".join(paragraphs) + "\n",
        "tex": "\n\n".join(tabulars) + "\n",
        "csv": summary.comma_separated(Table(("table", *header), tuple(lines))),
    }


def details(heads: Sequence[OfRow]) -> dict[str, str]:
    """What the heads of each row come to as CSV, by file name."""
    return {
        f"{row.name}_{section.name}.csv": summary.comma_separated(section.details)
        for row in heads
        for section, _ in row.sections
    }


def _latex(title: str, table: Table) -> str:
    return f"% {' '.join(title.split())}\n{summary.latex(table)}"
