"""`python -m dho_plugin conflict`: the gradients of L_CE and L_KD in training, one head against two (Fig. 4 and 13)."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..analysis import conflict_figure, drawing
from ..analysis.conflict_figure import Run
from ..analysis.conflict_log import read
from ..errors import UsageError, check_choice
from . import summary
from .by_shots import TAKEN, Block, Planned, plan_blocks
from .cells import Cell, Outcome, configure, finished, made_by
from .command import (
    check_data,
    check_options,
    chosen,
    command_lines,
    leading_names,
    leading_numbers,
    table_parser,
    words,
    write,
)
from .conflict_text import paragraphs, tidy, tidy_table
from .students import find_models
from .students_rows import KINDS
from .sweep import check_request, finish, report_failures

NAME = "conflict"
TRAINERS = ("CEKD", "StudentDHO")
EVERY = ("TRAIN.CONFLICT_FREQ", "5")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        UsageError: names, numbers or files that cannot be meant.
    """
    p = table_parser(NAME, __doc__)
    p.add_argument("--datasets", nargs="+", default=[], help="several, in place of --dataset: their runs are averaged")
    p.add_argument("--trainers", nargs="+", default=list(TRAINERS), help="what is trained on the same batches")
    p.add_argument("--shots", type=int, default=16, help="labelled images a class")
    kinds = "; ".join(f"{dataset}: {', '.join(names)}" for dataset, names in KINDS.items())
    p.add_argument("--teacher", default="", help=f"model or file (default: the dataset's own); or, {kinds}")
    p.add_argument("--figure", default="", metavar="FILE", help="write FILE.svg and FILE.png too")
    args = p.parse_args(argv)
    args.datasets, one = leading_names(args.datasets)
    args.trainers, two = leading_names(args.trainers)
    args.seeds, three = leading_numbers(args.seeds)
    args.opts = [*one, *two, *three, *args.opts]
    args.datasets = args.datasets or [args.dataset]
    for flag, names in (("--datasets", args.datasets), ("--trainers", args.trainers)):
        if not names or len(set(names)) < len(names):
            raise UsageError(f"{flag} {' '.join(names)}: expected different names")
    if args.shots < 1:
        raise UsageError(f"--shots {args.shots}: expected a number from 1 on")
    args.output_dir = args.output_dir or f"output/{NAME}/{'_'.join(args.datasets)}"
    check_options(args.opts, TAKEN)
    check_request(args.seeds, args.jobs, {"--json": args.json, "--table": args.table, "--figure": args.figure})
    return args


def block(args: argparse.Namespace, dataset: str) -> Block:
    """The rows of a dataset: its teacher where that is trained here, and one for each trainer.

    Raises:
        UsageError: unknown dataset, trainer, teacher or key.
    """
    teacher = args.teacher or (KINDS[dataset][0] if dataset in KINDS else "")
    if dataset in KINDS:
        check_choice("--teacher", teacher, KINDS[dataset])
    own = argparse.Namespace(**{**vars(args), "dataset": dataset, "teachers": [teacher] if teacher else []})
    place = words(dataset=dataset, root=args.root, backbone=args.backbone)
    _, (found,) = find_models(own, place)
    teachers = [row._replace(same_for=("shots",)) for row in found.rows if row.row == found.after]
    students = [found.student(name, name) for name in args.trainers]
    methods = [method._replace(flags=(*place, *method.flags)) for method in (*teachers, *students)]
    return Block(dataset if len(args.datasets) > 1 else "", "", chosen(methods, args.rows), (), ())


def left(args: argparse.Namespace, planned: Sequence[Planned], outcomes: Sequence[Outcome]) -> list[Run]:
    """What the runs of the trainers have left, in the order of the plan; of one that failed, nothing."""
    through = {outcome.cell.folder: list(outcome.accuracies.values()) for outcome in outcomes if not outcome.error}
    found = []
    for cell, places in planned:
        if cell.method.row in args.trainers and cell.folder in through:
            accuracy = next(iter(through[cell.folder]), math.nan)
            dataset = places[0][0] or args.datasets[0]
            found.append(Run(dataset, cell.method.row, cell.seed, read(cell.folder), accuracy))
    return found


def setting(args: argparse.Namespace, cells: Sequence[Cell]) -> str:
    """Students and teachers, as they are configured, and how many images have labels."""
    trained: dict[Path | None, str] = {
        cell.folder: f"CE on {cell.method.flags[-1]}, one for each seed"
        for cell in cells
        if cell.method.row not in args.trainers
    }
    known = [(cell.after, configure(cell)[0]) for cell in cells if cell.method.row in args.trainers]
    students = dict.fromkeys(cfg.MODEL.BACKBONE.NAME for _, cfg in known)
    teachers = dict.fromkeys(trained.get(after) or cfg.TRAINER.DHO.TEACHER.NAME for after, cfg in known)
    return (
        f"{args.shots} labelled {'image' if args.shots == 1 else 'images'} a class, all other training images "
        f"unlabelled. Student: {', '.join(students)}; teacher: {'; '.join(teachers)}. Runs of one seed start from the "
        "same student and see the same batches."
    )


def publish(args: argparse.Namespace, cells: Sequence[Cell], runs: Sequence[Run], argv: Sequence[str]) -> None:
    """Draw the figure, print the document, and write all files."""
    figures = [Path(args.output_dir, NAME), *([Path(args.figure)] if args.figure else [])]
    drawable = [run for run in runs if len(run.lines) > 1]
    rows = [row for row in args.trainers if any(run.row == row for run in drawable)]
    if rows:
        with drawing.styled():
            figure = conflict_figure.draw(drawable, rows)
            for path in figures:
                drawing.save(figure, path, background="white")
    command = shlex.join(["python", "-m", "dho_plugin", NAME, *argv])
    made = f"Made by {'; '.join(made_by(cells)) or 'nothing'}."
    title = f"Gradient conflict on {', '.join(args.datasets)}, after Figures 4 and 13"
    opening = [f"# {title}", f"    {command}", made, setting(args, cells)]
    closing = paragraphs(runs, args.trainers)

    def document(picture: str) -> str:
        return "\n\n".join([*opening, *([f"![{title}]({picture}.svg)"] if rows and picture else []), *closing])

    print(f"\n{document(NAME)}")
    objects = json.dumps(tidy(runs), indent=1) + "\n"
    own = {"md": document(NAME) + "\n", "csv": summary.comma_separated(tidy_table(runs)), "json": objects}
    write(Path(args.output_dir), NAME, own)
    if args.table:
        picture = os.path.relpath(args.figure, Path(args.table).parent) if args.figure else ""
        Path(args.table).write_text(document(picture) + "\n", encoding="utf-8")
    if args.json:
        Path(args.json).write_text(objects, encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Train what is not trained, draw and print; 1 where a run failed."""
    args = parse(argv)
    blocks = [block(args, dataset) for dataset in args.datasets]
    planned = plan_blocks(blocks, [args.shots], args.seeds, args.output_dir, (), (*EVERY, *args.opts))
    cells = [entry.cell for entry in planned]
    unfinished = [cell for cell in cells if finished(cell) is None]
    if args.dry_run:
        print(command_lines(cells, [f"{len(cells) - len(unfinished)} of {len(cells)} are finished"]))
        return 0
    drawing.check_installed()
    check_data(unfinished)
    outcomes = finish(cells, jobs=args.jobs)
    publish(args, cells, left(args, planned, outcomes), argv)
    return report_failures([outcome for outcome in outcomes if outcome.error])
