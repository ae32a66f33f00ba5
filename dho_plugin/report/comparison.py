"""Runs of a dataset that are compared with each other: which rows and columns they make, and what controls what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..saved import FREE
from ..tables import students_rows, table13_rows
from ..tables.summary import NO_PAPER, Paper, Record
from . import papers
from .collect import ZERO_SHOT, Run

_FREE = (*FREE, "SEED", "DATASET.NUM_SHOTS", "DATASET.LABELS")  # may differ between the runs of a row


class Comparison(NamedTuple):
    """Rows of a table with their runs.

    Attributes:
        title: in words. rows: the runs of each row, finished or not, in the order in which they are shown; none for a
            row that was planned only. columns: test sets, or numbers of labelled images a class. records: accuracies
            by row, column and seed. pairs: rows with what they are compared with. paper: numbers beside ours.
    """

    title: str
    rows: Mapping[str, Sequence[Run]]
    columns: Sequence[str]
    records: Sequence[Record]
    pairs: Sequence[tuple[str, str]]
    paper: Paper = NO_PAPER

    @property
    def runs(self) -> list[Run]:
        """All of them, row by row."""
        return [run for runs in self.rows.values() for run in runs]

    @property
    def dataset(self) -> str:
        """That of most runs."""
        return Counter(run.dataset for run in self.runs).most_common(1)[0][0]

    def groups(self) -> dict[str, list[Run]]:
        """The runs of each row, apart where they have other labels than each other."""
        found: dict[str, list[Run]] = {}
        for row, runs in self.rows.items():
            several = len({run.labels for run in runs}) > 1
            for run in runs:
                found.setdefault(f"{row}, {run.labels}" if several else row, []).append(run)
        return found

    def trained(self) -> list[str]:
        """Rows that have learned something."""
        return [row for row, runs in self.rows.items() if any(run.trainer != ZERO_SHOT for run in runs)]


def told_apart(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With titles of which none is another's."""
    counts = Counter[str]()
    apart = []
    for comparison in comparisons:
        counts[comparison.title] += 1
        number = counts[comparison.title]
        apart.append(comparison._replace(title=f"{comparison.title} ({number})") if number > 1 else comparison)
    return apart


def of_dataset(dataset: str, title: str, runs: Sequence[Run]) -> Comparison:
    """The runs of a dataset: by test set, or by shots where a row has several of them."""
    rows = variants(runs)
    by_shots = any(len({run.labels for run in own}) > 1 for own in rows.values())
    seeds = sorted({run.seed for run in runs if run.trainer != ZERO_SHOT}) or [run.seed for run in runs]
    labels = sorted({run.labels for run in runs if run.trainer != ZERO_SHOT}, key=_order)
    records = []
    for row, own in rows.items():
        for run in own:
            entered = seeds if run.trainer == ZERO_SHOT else [run.seed]
            for column, value in run.accuracies.items():
                if not by_shots:
                    records += [Record(row, column, seed, value) for seed in entered]
                elif column.startswith("test"):
                    shown = labels if run.trainer == ZERO_SHOT else [run.labels]
                    names = [column.replace("test", count, 1) for count in shown]
                    records += [Record(row, name, seed, value) for name in names for seed in entered]
    columns = list(dict.fromkeys(record.column for record in records))
    if by_shots:
        columns.sort(key=_order)
    elif not columns:
        columns = ["test"]
    paper = paper_of(rows, columns) if dataset == papers.DATASET else NO_PAPER
    return Comparison(title, rows, columns, records, named_pairs(rows), paper)


def paper_of(rows: Mapping[str, Sequence[Run]], columns: Sequence[str]) -> Paper:
    """The paper's numbers for rows that were trained on its dataset."""
    return papers.paper_beside({row: runs[0] for row, runs in rows.items() if runs}, columns)


def _order(column: str) -> tuple[float, str]:
    number = re.match(r"\d+", column)
    return (int(number[0]) if number else float("inf"), column)


def variants(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by row; of one label with several settings there is a row for each, named by what differs."""
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.row, []).append(run)
    rows: dict[str, list[Run]] = {}
    for label in sorted(by_label, key=lambda label: _place(label, by_label[label][0])):
        kinds = [{key: _kind(value) for key, value in run.settings.items()} for run in by_label[label]]
        known = sorted(set().union(*kinds))
        keys = [key for key in known if not key.startswith(_FREE) and len({kind.get(key) for kind in kinds}) > 1]
        for run, kind in zip(by_label[label], kinds, strict=True):
            differs = ", ".join(f"{key} {kind.get(key)}" for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
            rows.setdefault(f"{label} [{differs}]" if keys else label, []).append(run)
    return rows


def _place(label: str, run: Run) -> tuple[object, ...]:
    """What is not trained stands first, a control above what is compared with it."""
    return (run.trainer != ZERO_SHOT, label.partition(" + ")[0].casefold(), len(label), label)


def _kind(value: object) -> str:
    """A setting without what differs between seeds and shots: the folder of the run that one starts from."""
    return re.sub(r"(seed|shots)-?\d+", r"\1*", str(value))


def named_pairs(rows: Mapping[str, Sequence[Run]]) -> list[tuple[str, str]]:
    """Each row with its controls, as the tables have them, where they are there."""
    pairs = []
    for row, runs in rows.items():
        if not runs:
            continue
        name = runs[0].row
        for control in controls(name) if runs[0].trainer != ZERO_SHOT else ():
            alike = [control + row.removeprefix(name), control]
            pairs += [(row, other) for other in alike if other in rows][:1]
    return pairs


def controls(name: str) -> list[str]:
    """What a row of that name is compared with."""
    base, plus, _ = name.partition(" + ")
    trainer = name.removesuffix(" (labels)")
    if plus:
        return [base, f"{base} + CasPL"] if table13_rows.is_dho(name) else [base]
    if trainer == "StudentDHO":
        return list(students_rows.RIVALS)
    if trainer.endswith("DHO") and trainer != students_rows.DHO:
        return [trainer.removesuffix("DHO"), trainer.removesuffix("DHO") + "CasPL"]
    known = [control for row, control in students_rows.comparisons() if row == name]
    return known or [table13_rows.STUDENT]
