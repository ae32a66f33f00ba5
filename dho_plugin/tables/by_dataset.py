"""A table by shots on several datasets: one on each, their mean, a figure (Fig. 5, 6, 11, 12 and 14, Table 14)."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from ..analysis.drawing import check_installed, save
from ..datasets import TEN
from . import summary
from .by_shots import Block, Job, Planned, enter, publish
from .cells import configure, finished, made_by
from .command import check_training_sets, command_lines, star, write
from .multiples import multiples
from .summary import NO_PAPER, Record, Table
from .sweep import finish, report_failures

NAME = "by_dataset"
LEFT_OUT = "imagenet"  # of a mean with others, as in the paper
Settle = Callable[[argparse.Namespace], tuple[Job, list[Planned]]]
"""What a command finds out on one dataset before anything runs, such as students.settle."""
Found = Mapping[tuple[str, str], Sequence[Record]]
"""Records by dataset and block."""


class Series(NamedTuple):
    """Blocks of several datasets under one mean.

    Attributes:
        name: of the block; empty where there is one. block: says which rows are compared. records: by panel, which is
            a dataset, or a block of one.
    """

    name: str
    block: Block
    records: Mapping[str, Sequence[Record]]

    @property
    def averaged(self) -> list[str]:
        """The panels that the mean is over."""
        return [panel for panel in self.records if panel != LEFT_OUT or len(self.records) == 1]

    def mean(self) -> list[Record]:
        """The mean over the panels, for each row, column and seed that all of them have."""
        first, *others = ({(r.row, r.column, r.seed): r.accuracy for r in self.records[p]} for p in self.averaged)
        return [
            Record(*key, mean([value, *(other[key] for other in others)]))
            for key, value in first.items()
            if all(key in other for other in others)
        ]

    def results(self, columns: Sequence[str]) -> Table:
        """The mean's accuracies; beside them the paper's, where the mean is over the ten datasets as the paper's is."""
        records = self.mean()
        paper = self.block.mean_paper if set(self.averaged) == set(TEN) else NO_PAPER
        return summary.results_table(records, list(dict.fromkeys(r.row for r in records)), columns, paper)


def run_on_datasets(
    args: argparse.Namespace, argv: Sequence[str], settle: Settle, pictures: Mapping[str, Sequence[str]]
) -> int:
    """Run a command's table on each of args.datasets and print these and their mean; 1 where a run failed.

    Args:
        args: of by_shots.read; argv: what they were read from. pictures: the rows of each figure, by its name.

    Raises:
        UsageError: as settle, for any of the datasets; matplotlib is missing.
    """
    check_installed()
    settled = {name: settle(_on(args, name)) for name in args.datasets}
    cells = [entry.cell for _, planned in settled.values() for entry in planned]
    if args.dry_run:
        print(command_lines(cells, [f"{name}: {line}" for name, (job, _) in settled.items() for line in job.preface]))
        return 0
    unfinished = [cell for cell in cells if finished(cell) is None]
    check_training_sets(configure(cell)[0] for cell in unfinished)
    outcomes = finish(cells, jobs=args.jobs)
    found: dict[tuple[str, str], list[Record]] = {}
    for name, (job, planned) in settled.items():
        own = {entry.cell.folder for entry in planned}
        records = enter(planned, [outcome for outcome in outcomes if outcome.cell.folder in own], args.seeds)
        publish(job, planned, records, Path(args.output_dir, name), argv)
        found |= {(name, block): of for block, of in records.items()}
    jobs = {name: job for name, (job, _) in settled.items()}
    command = shlex.join(["python", "-m", "dho_plugin", next(iter(jobs.values())).name, *argv])
    preface = [f"# The mean over datasets\n\n    {command}", f"Made by {'; '.join(made_by(cells)) or 'nothing'}."]
    files = conclude(preface, jobs, found, Path(args.output_dir), pictures)
    for path, ending in ((args.table, "md"), (args.json, "json")):
        if path:
            Path(path).write_text(files[ending], encoding="utf-8")
    return report_failures([outcome for outcome in outcomes if outcome.error])


def _on(args: argparse.Namespace, dataset: str) -> argparse.Namespace:
    folder = str(Path(args.output_dir, dataset))
    return argparse.Namespace(**{**vars(args), "dataset": dataset, "output_dir": folder})


def all_series(jobs: Mapping[str, Job], found: Found) -> list[Series]:
    """Blocks of one name over all datasets; where these have different blocks, all blocks of all datasets together."""
    blocks = {(dataset, block.name): block for dataset, job in jobs.items() for block in job.blocks}
    names = dict.fromkeys(name for _, name in blocks)
    if len(blocks) < len(names) * len(jobs):
        together = {", ".join(filter(None, key)): found[key] for key in blocks}
        return [Series("", next(iter(blocks.values())), together)]
    return [
        Series(name, blocks[next(iter(jobs)), name], {dataset: found[dataset, name] for dataset in jobs})
        for name in names
    ]


def conclude(
    preface: Sequence[str], jobs: Mapping[str, Job], found: Found, folder: Path, pictures: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Print the means; leave by_dataset.md, .tex, .csv and .json, and the figures, in the folder.

    Returns:
        The files' texts by their endings.
    """
    columns = next(iter(jobs.values())).columns()
    paragraphs, tabulars = list(preface), []
    header: tuple[str, ...] = ()
    lines: list[tuple[str, ...]] = []
    for series in all_series(jobs, found):
        paragraphs += section(series, columns)
        for picture, rows in pictures.items():
            there = [row for row in rows if any(r.row == row for of in series.records.values() for r in of)]
            if there:
                name = "_".join(filter(None, (NAME, series.name, picture)))
                save(multiples({"mean": series.mean(), **series.records}, there, columns), folder / name)
                paragraphs.append(f"![{', '.join(there)}]({name}.svg)")
        records, block = series.mean(), series.block
        compared = [*block.present(block.pairs)] or [(method.row, "") for method in block.methods]
        header, details = summary.details_table(records, compared, columns)
        lines += [(series.name, *line) for line in details]
        tabulars.append(summary.latex(series.results(columns)))
    text = "\n\n".join(paragraphs)
    print(f"\n{text}")
    table = Table(("block", *header), tuple(lines))
    objects = [{"dataset": d, "block": b, **record._asdict()} for (d, b), of in found.items() for record in of]
    files = {"md": f"{text}\n", "tex": "\n\n".join(tabulars) + "\n", "csv": summary.comma_separated(table)}
    files["json"] = json.dumps(objects, indent=1) + "\n"
    write(folder, NAME, files)
    return files


def section(series: Series, columns: Sequence[str]) -> list[str]:
    """A mean in Markdown, paragraph by paragraph."""
    records, block = series.mean(), series.block
    there = {record.row for record in records}
    pairs = [pair for pair in block.pairs if there.issuperset(pair)]
    paragraphs = [f"## {block.heading}"] if series.name else []
    paragraphs += [
        f"The mean over {', '.join(series.averaged)}; rows that one of these lacks are left out.",
        summary.markdown(series.results(columns)),
        "± is the sample deviation over seeds of the mean.",
    ]
    if pairs:
        meaning = f"± is the standard error of the difference of the means, paired by seed. {star(records)}"
        paragraphs += [summary.markdown(summary.differences_table(records, pairs, columns)), meaning]
    return paragraphs
