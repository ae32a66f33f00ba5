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


class Job(NamedTuple):
    """What is to be run and shown.

    Attributes:
        name: of the command. title: of the document.
        pairs: rows with what they are compared with. claims: those of them that DHO should win.
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

    def results(self, records: Sequence[Record]) -> Table:
        """Our accuracies, and the paper's beside them."""
        return summary.results_table(records, [method.row for method in self.methods], self.columns, self.paper)

    def document(self, records: Sequence[Record], command: str) -> str:
        """Markdown: what was run, both tables, and where DHO did not win."""
        own = ", the paper's own is in parentheses" if self.paper.columns else ""
        made = f"Made by {'; '.join(made_by(self.cells)) or 'nothing'}."
        paragraphs = [
            *(f"# {self.title}", f"    {command}", made, *self.preface, *self.notes),
            summary.markdown(self.results(records)),
            "± is the sample deviation over seeds; zero-shot rows have no seed.",
            summary.markdown(summary.differences_table(records, self.pairs, self.columns, self.paper)),
            f"± is the standard error of the paired difference{own}. {star(records)}",
            *short_of(records, self.claims, self.columns),
            *self.closing,
        ]
        return "\n\n".join(paragraphs)

    def files(self, records: Sequence[Record], document: str) -> dict[str, str]:
        """The table's files by their endings."""
        rows = [(method.row, method.control) for method in self.methods]
        details = summary.details_table(records, rows, self.columns, self.paper)
        texts = {"md": f"{document}\n", "tex": f"{summary.latex(self.results(records))}\n"}
        return {**texts, "csv": summary.comma_separated(details)}


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

    text = job.document(records, shlex.join(["python", "-m", "dho_plugin", job.name, *argv]))
    print(f"\n{text}")
    folder, name = Path(args.output_dir), job.name.replace("-", "_")
    write(folder, name, job.files(records, text))
    summary.write_json(records, folder / f"{name}.json")
    if args.table:
        Path(args.table).write_text(f"{text}\n", encoding="utf-8")
    if args.json:
        summary.write_json(records, args.json)
    return report_failures(failed)
