"""Tables that a command has left in a folder, as comparisons: their CSV says what stands in which row beside what."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..tables.cells import folder_name
from ..tables.summary import NO_PAPER, Paper, Record
from . import papers
from .collect import Run, Source
from .comparison import Comparison, named_pairs, of_dataset, paper_of

Lines = Sequence[Mapping[str, str]]


def comparisons(source: Source) -> list[Comparison]:
    """All of a folder: its tables, and by dataset the runs that no table has.

    A table that lacks what a run of its rows has come to is older than the run, and is passed over.
    """
    found, rest = [], list(source.runs)
    for blocks in tables_left(source):
        entered = {(record.row, record.seed, record.accuracy) for block in blocks for record in block.records}
        own = [run for run in rest if any(run.row in block.rows for block in blocks)]
        values = [{(run.row, run.seed, value) for value in run.accuracies.values()} for run in own if run.accuracies]
        if all(entered & of_run for of_run in values):
            found += blocks
            rest = [run for run in rest if run not in own]
    for dataset in dict.fromkeys(run.dataset for run in rest):
        title = f"{dataset}, {source.folder.name}" if source.folder else dataset
        found.append(of_dataset(dataset, title, [run for run in rest if run.dataset == dataset]))
    return found


def tables_left(source: Source) -> list[list[Comparison]]:
    """The blocks of each table whose files lie in a source's folder (see tables.command.write)."""
    tables = []
    for path in sorted(source.folder.glob("*.csv")) if source.folder else ():
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = [line for line in csv.DictReader(file) if {"row", "column", "control"} <= set(line)]
            records = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        names = list(dict.fromkeys(line.get("block", "") for line in lines))
        blocks = []
        for name in names:
            others = {folder_name(other) for other in names} - {folder_name(name)}
            runs = [run for run in source.runs if _first_part(run, source) not in others]
            block = of_block(path.stem, name, runs, lines, records)
            blocks += [block] if block.runs else []
        tables.append(blocks)
    return tables


def of_block(
    table: str, name: str, runs: Sequence[Run], lines: Lines, records: Sequence[Mapping[str, Any]]
) -> Comparison:
    """A block of a table.

    Args:
        table: its command. name: of the block, empty where there is one. runs: among which are its own.
        lines, records: of the table's CSV and JSON.
    """
    lines = [line for line in lines if line.get("block", "") == name]
    rows: dict[str, list[Run]] = {line["row"]: [] for line in lines}
    for run in runs:
        if run.row in rows:
            rows[run.row].append(run)
    columns = list(dict.fromkeys(line["column"] for line in lines))
    pairs = list(dict.fromkeys((line["row"], line["control"]) for line in lines if line["control"]))
    own = [record for record in records if record.get("block", "") == name]
    kept = [Record(**{field: record[field] for field in Record._fields}) for record in own]
    block = Comparison(f"{table}: {name}", rows, columns, kept, pairs)
    if not block.runs:
        return block
    block = block._replace(pairs=pairs or named_pairs(rows))
    printed = {(line["row"], line["column"]): float(line["paper"]) for line in lines if line["paper"]}
    paper = NO_PAPER
    if block.dataset == papers.DATASET:
        beside = {row: [printed.get((row, column)) for column in columns] for row in rows}
        paper = Paper(tuple(columns), beside) if printed else paper_of(rows, columns)
    return block._replace(title=block.title if name else f"{table} on {block.dataset}", paper=paper)


def _first_part(run: Run, source: Source) -> str:
    return run.folder.relative_to(source.folder or "").parts[0]
