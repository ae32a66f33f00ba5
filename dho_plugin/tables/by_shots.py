"""Tables whose columns are numbers of labelled images a class, in one or more blocks of rows, run by one sweep."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from . import summary
from .cells import Cell, Method, Outcome, configure, finished, folder_name, made_by, plan
from .command import (
    check_options,
    check_training_sets,
    command_lines,
    expanded,
    leading_names,
    leading_numbers,
    parts,
    short_of,
    star,
    table_parser,
    write,
)
from .summary import NO_PAPER, Paper, Record, Table
from .sweep import check_request, entered, finish, report_failures

# What a flag of these commands, and not an option, gives to the rows.
TAKEN = (
    *("SEED", "OUTPUT_DIR", "DATASET.NAME", "DATASET.ROOT", "DATASET.NUM_SHOTS", "DATASET.LABELS"),
    *("MODEL.BACKBONE.NAME", "TRAINER.NAME", "TRAINER.DHO.TEACHER.NAME"),
)
Records = Mapping[str, Sequence[Record]]
"""Records by block; the column of each is a number of shots in words."""


class Block(NamedTuple):
    """Rows that stand together.

    Attributes:
        name: of its folder and in its files. heading: above its tables; neither is needed where there is one block.
        methods: the rows; one that is the same_for "shots" is run once for all columns, for "block" once for all blocks
            that have it. pairs: rows with what they are compared with. claims: those of them that DHO should win.
        paper: numbers beside ours. notes: paragraphs below the heading.
        mean_paper: numbers beside our mean over the paper's ten datasets.
    """

    name: str
    heading: str
    methods: Sequence[Method]
    pairs: Sequence[tuple[str, str]]
    claims: Sequence[tuple[str, str]]
    paper: Paper = NO_PAPER
    notes: Sequence[str] = ()
    mean_paper: Paper = NO_PAPER

    def present(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The pairs of which both rows are in the block."""
        rows = {method.row for method in self.methods}
        return [pair for pair in pairs if rows.issuperset(pair)]


class Planned(NamedTuple):
    """A cell, and each place (block, column) that its result is entered in."""

    cell: Cell
    places: list[tuple[str, str]]


class Job(NamedTuple):
    """A table by shots: name of its command and files, title, blocks, numbers of shots, paragraphs of the preface."""

    name: str
    title: str
    blocks: Sequence[Block]
    shots: Sequence[int]
    preface: Sequence[str]

    def columns(self) -> list[str]:
        """Their names."""
        return [column(count) for count in self.shots]


def column(shots: int) -> str:
    """The paper's name of a number of labelled images a class; -1 stands for all of them."""
    return f"{shots}-shot" if shots > 0 else "all"


def shots_parser(command: str, purpose: str | None, *, shots: Sequence[int]) -> argparse.ArgumentParser:
    """The flags of a table by shots, to be read with `read`."""
    p = table_parser(command, purpose)
    several = "instead of --dataset: a table on each, their mean and a figure; `ten` stands for CoOp's ten"
    p.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help=several)
    p.add_argument("--shots", nargs="+", default=[str(count) for count in shots], help="labelled images a class")
    return p


def read(p: argparse.ArgumentParser, argv: Sequence[str], command: str) -> argparse.Namespace:
    """The command line; shots and seeds become numbers, and options that stand right behind them join the others.

    Raises:
        UsageError: numbers or files that cannot be meant.
    """
    args = p.parse_args(argv)
    args.shots, one = leading_numbers(args.shots)
    args.seeds, two = leading_numbers(args.seeds)
    datasets, three = leading_names(args.datasets)
    args.datasets = expanded([part for word in datasets for part in parts(word)])
    args.opts = [*one, *two, *three, *args.opts]
    args.output_dir = args.output_dir or f"output/{command}" + ("" if args.datasets else f"/{args.dataset}")
    if not args.shots or len(set(args.shots)) < len(args.shots) or min(args.shots) < 1:
        raise UsageError(f"--shots {' '.join(map(str, args.shots))}: expected different numbers from 1 on")
    check_options(args.opts, TAKEN)
    check_request(args.seeds, args.jobs, {"--json": args.json, "--table": args.table})
    return args


def plan_blocks(
    blocks: Sequence[Block],
    shots: Sequence[int],
    seeds: Sequence[int],
    output: str | Path,
    flags: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[Planned]:
    """All cells of all blocks, each once; folders are <output>/[<block>/][shots<K>/]<row>/seed<S>.

    Raises:
        UsageError: an option of all rows is what they differ in.
    """
    check_options(options, {key for block in blocks for method in block.methods for key in method.options[::2]})
    planned: dict[Path, Planned] = {}
    for block in blocks:
        for count in shots:
            above: list[Cell] = []
            for method in block.methods:
                shared_by_blocks, shared_by_shots = "block" in method.same_for, "shots" in method.same_for
                group = [] if shared_by_blocks or not block.name else [block.name]
                folder = Path(output, *map(folder_name, group), *([] if shared_by_shots else [f"shots{count}"]))
                group += [] if shared_by_shots else [column(count)]
                own = flags if shared_by_shots else [*flags, "--shots", str(count)]
                cells = plan([method], seeds, folder, own, options, group=", ".join(group), above=above)
                above += cells
                for cell in cells:
                    planned.setdefault(cell.folder, Planned(cell, [])).places.append((block.name, column(count)))
    return list(planned.values())


def enter(planned: Sequence[Planned], outcomes: Sequence[Outcome], seeds: Sequence[int]) -> dict[str, list[Record]]:
    """The records of each block: the accuracy on the test set, in every place that a cell is entered in."""
    places = {entry.cell.folder: entry.places for entry in planned}
    records: dict[str, list[Record]] = {block: [] for entry in planned for block, _ in entry.places}
    for outcome in outcomes:
        cell = outcome.cell
        for block, name in places[cell.folder] if "test" in outcome.accuracies else ():
            accuracy = outcome.accuracies["test"]
            records[block] += [Record(cell.method.row, name, seed, accuracy) for seed in entered(cell, seeds)]
    return records


def results(block: Block, records: Sequence[Record], columns: Sequence[str]) -> Table:
    """Our accuracies in a block, and the paper's beside them."""
    return summary.results_table(records, [method.row for method in block.methods], columns, block.paper)


def section(block: Block, records: Sequence[Record], columns: Sequence[str]) -> list[str]:
    """A block in Markdown, paragraph by paragraph: both tables, and where DHO wins, ties and loses."""
    pairs, claims = block.present(block.pairs), block.present(block.claims)
    paragraphs = [f"## {block.heading}"] if block.heading else []
    spread = "± is the sample deviation over seeds; rows whose run has no seed have none."
    paragraphs += [*block.notes, summary.markdown(results(block, records, columns)), spread]
    if pairs:
        own = ", the paper's own is in parentheses" if block.paper.columns else ""
        meaning = f"± is the standard error of the paired difference{own}. {star(records)}"
        paragraphs += [summary.markdown(summary.differences_table(records, pairs, columns, block.paper)), meaning]
    return [*paragraphs, *verdict(records, claims, columns)]


def verdict(records: Sequence[Record], claims: Sequence[tuple[str, str]], columns: Sequence[str]) -> list[str]:
    """Counts of wins, ties and losses, and the cells that are no wins; nothing is counted over a single seed."""
    if not claims or len({record.seed for record in records}) < 2:
        return []
    wins, ties, losses = summary.tally(records, claims, columns)
    rows = " and ".join(dict.fromkeys(row for row, _ in claims))
    counted = f"Of {wins + ties + losses} cells (a rival at a number of shots), {rows} wins {wins}, ties {ties} and "
    return [f"{counted}loses {losses}; a tie is within two standard errors.", *short_of(records, claims, columns)]


def details(job: Job, records: Records) -> Table:
    """One line for each block, row, control and column."""
    header: tuple[str, ...] = ()
    lines: list[tuple[str, ...]] = []
    for block in job.blocks:
        pairs = block.present(block.pairs)
        rows = [
            (method.row, control)
            for method in block.methods
            for control in ([other for row, other in pairs if row == method.row] or [""])
        ]
        header, found = summary.details_table(records[block.name], rows, job.columns(), block.paper)
        lines += [(block.name, *line) for line in found]
    return Table(("block", *header), tuple(lines))


def texts(job: Job, records: Records, document: str) -> dict[str, str]:
    """The table's files by their endings."""
    columns = job.columns()
    objects = [{"block": block.name, **record._asdict()} for block in job.blocks for record in records[block.name]]
    tabulars = [
        (f"% {block.heading}\n" if block.heading else "") + summary.latex(results(block, records[block.name], columns))
        for block in job.blocks
    ]
    return {
        "md": f"{document}\n",
        "tex": "\n\n".join(tabulars) + "\n",
        "csv": summary.comma_separated(details(job, records)),
        "json": json.dumps(objects, indent=1) + "\n",
    }


def run_job(
    job: Job,
    planned: Sequence[Planned],
    args: argparse.Namespace,
    argv: Sequence[str],
    closing: Callable[[Job, Records], list[str]] = lambda job, records: [],
) -> int:
    """Run a table and print it, or print its command lines; the exit status, 1 where a run failed.

    Args:
        planned: see plan_blocks. args: see read; argv: what they were read from.
        closing: the document's last paragraphs, from the records.
    """
    cells = [entry.cell for entry in planned]
    unfinished = [cell for cell in cells if finished(cell) is None]
    if args.dry_run:
        print(command_lines(cells, job.preface))
        return 0
    check_training_sets(configure(cell)[0] for cell in unfinished)
    outcomes = finish(cells, jobs=args.jobs)
    files = publish(job, planned, enter(planned, outcomes, args.seeds), args.output_dir, argv, closing)
    for path, ending in ((args.table, "md"), (args.json, "json")):
        if path:
            Path(path).write_text(files[ending], encoding="utf-8")
    return report_failures([outcome for outcome in outcomes if outcome.error])


def publish(
    job: Job,
    planned: Sequence[Planned],
    records: Records,
    folder: str | Path,
    argv: Sequence[str],
    closing: Callable[[Job, Records], list[str]] = lambda job, records: [],
) -> dict[str, str]:
    """Print a table's document and write its files; returns them by their endings. See run_job."""
    command = shlex.join(["python", "-m", "dho_plugin", job.name, *argv])
    made = f"Made by {'; '.join(made_by(entry.cell for entry in planned)) or 'nothing'}."
    paragraphs = [f"# {job.title}", f"    {command}", made, *job.preface]
    for block in job.blocks:
        paragraphs += section(block, records[block.name], job.columns())
    text = "\n\n".join([*paragraphs, *closing(job, records)])
    print(f"\n{text}")
    files = texts(job, records, text)
    write(Path(folder), job.name, files)
    return files
