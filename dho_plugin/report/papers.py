"""Which of the paper's numbers stand beside ours: on its dataset, by what a row was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..tables import students_rows, table13_rows
from ..tables.summary import NO_PAPER, Paper
from .collect import ZERO_SHOT, Run

DATASET = "ImageNet"
SETS = dict(zip(("test", "V2", "Sketch", "R", "A"), range(5), strict=True))  # columns of Table 13


def paper_beside(rows: Mapping[str, Run], columns: Sequence[str]) -> Paper:
    """The numbers of Table 13 where our columns are its sets, else of Table 1 where they are its shots.

    Args:
        rows: a run of each row, all of the paper's dataset. columns: ours.
    """
    if columns and all(column in SETS for column in columns):
        names = tuple(table13_rows.COLUMNS[SETS[column]] for column in columns)
        numbers = {row: table13_rows.PAPER.get(in_table13(row, run)) for row, run in rows.items()}
        return Paper(names, {row: [v[SETS[c]] for c in columns] for row, v in numbers.items() if v})
    shots = [int(column.removesuffix("-shot")) for column in columns if column.removesuffix("-shot").isdigit()]
    if not shots or len(shots) < len(columns):
        return NO_PAPER
    found: dict[str, Sequence[float | None]] = {}
    for row, run in rows.items():
        paper = students_rows.paper(students_rows.papers_student(run.settings["MODEL.BACKBONE.NAME"]), shots)
        name = students_rows.DHO if run.row == "StudentDHO" else run.row
        found |= {row: paper.rows[name]} if name in paper.rows else {}
    return Paper(tuple(columns), found) if found else NO_PAPER


def in_table13(row: str, run: Run) -> str:
    """The label that Table 13 has for a run; its own where it was run for that table."""
    if run.trainer == ZERO_SHOT or row in table13_rows.PAPER:
        return row
    trainer = run.trainer.removesuffix("CasPL").removesuffix("DHO")
    bases = {name: label for label, name in reversed(table13_rows.BASES.items())}
    base = bases.get(trainer, trainer)
    if trainer == "VPT":
        base = f"VPT-{run.settings['TRAINER.VPT.PROMPT_DEPTH']}"
    with_unlabeled = run.settings["TRAINER.DHO.UNLABELED"]
    if run.trainer.endswith("DHO"):
        return f"{base} + DHO ({'+ unlabelled' if with_unlabeled else 'labels'})"
    return f"{base} + CasPL" if run.trainer.endswith("CasPL") else base
