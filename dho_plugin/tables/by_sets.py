"""Tables whose columns are test sets: a dataset's own and its shifts, run by one sweep."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import summary
from .cells import Cell, Method, finished, made_by
from .command import check_data, command_lines, short_of, star, write
from .summary import Paper, Record, Table
from .sweep import report_failures, sweep


class Sheet(NamedTuple):
    """What was measured, and how it is laid out.

    Attributes:
        pairs: rows with what they are compared with. claims: those of them that DHO should win.
    """

    records: Sequence[Record]
    methods: Sequence[Method]
    columns: Sequence[str]
    paper: Paper
    pairs: Sequence[tuple[str, str]]
    claims: Sequence[tuple[str, str]]

    def results(self) -> Table:
        """Our accuracies, and the paper's beside them."""
        return summary.results_table(self.records, [method.row for method in self.methods], self.columns, self.paper)

    def document(self, preface: Sequence[str], closing: Sequence[str] = ()) -> str:
        """Markdown: what was run, both tables, and where DHO did not win."""
        own = ", the paper's own is in parentheses" if self.paper.columns else ""
        paragraphs = [
            *preface,
            summary.markdown(self.results()),
            "± is the sample deviation over seeds; zero-shot rows have no seed.",
            summary.markdown(summary.differences_table(self.records, self.pairs, self.columns, self.paper)),
            f"± is the standard error of the paired difference{own}. {star(self.records)}",
            *short_of(self.records, self.claims, self.columns),
            *closing,
        ]
        return "\n\n".join(paragraphs)

    def write(self, folder: Path, name: str, document: str) -> None:
        """Leave <name>.md, .tex, .csv and .json in the folder."""
        rows = [(method.row, method.control) for method in self.methods]
        details = summary.details_table(self.records, rows, self.columns, self.paper)
        texts = {"md": f"{document}\n", "tex": f"{summary.latex(self.results())}\n"}
        write(folder, name, {**texts, "csv": summary.comma_separated(details)})
        summary.write_json(self.records, folder / f"{name}.json")


class Job(NamedTuple):
    """What is to be run and shown.

    Attributes:
        name: of the command. title: of the document. pairs, claims: see Sheet.
        notes: where a row is another than the paper's. preface, closing: what else to know.
    """

    name: str
    title: str
    methods: Sequence[Method]
    cells: Sequence[Cell]
    columns: Sequence[str]
    paper: Paper
    pairs: Sequence[tuple[str, str]]
    claims: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()
    preface: Sequence[str] = ()
    closing: Sequence[str] = ()


def run_job(job: Job, args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Run a table and print it, or print its command lines; the exit status, 1 where a run failed.

    Args:
        args: of command.table_parser. argv: what they were read from.
    """
    unfinished = [cell for cell in job.cells if finished(cell) is None]
    if args.dry_run:
        print(command_lines(job.cells, job.notes))
        return 0
    for note in job.notes:
        print(note)
    check_data(unfinished)
    records, failed = sweep(job.cells, args.seeds, jobs=args.jobs)

    sheet = Sheet(records, job.methods, job.columns, job.paper, job.pairs, job.claims)
    command = shlex.join(["python", "-m", "dho_plugin", job.name, *argv])
    title = (f"# {job.title}", f"    {command}", f"Made by {'; '.join(made_by(job.cells)) or 'nothing'}.")
    text = sheet.document([*title, *job.preface, *job.notes], job.closing)
    print(f"\n{text}")
    sheet.write(Path(args.output_dir), job.name.replace("-", "_"), text)
    if args.table:
        Path(args.table).write_text(f"{text}\n", encoding="utf-8")
    if args.json:
        summary.write_json(records, args.json)
    return report_failures(failed)
