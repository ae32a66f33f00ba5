"""`python -m dho_plugin students`: DHO and its rivals on a compact student, by shots (the paper's Table 1)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean

from ..datasets import TEN
from ..errors import UsageError, check_choice
from ..host import TRAINER_REGISTRY
from ..vlm import find_vlm
from . import students_rows, summary
from .by_dataset import run_on_datasets
from .by_shots import Block, Job, Planned, Records, plan_blocks, read, run_job, shots_parser
from .cells import Method, configure, plan
from .command import chosen, leading_names, words
from .students_rows import DHO, FEW_SHOT, KINDS, PICTURES, RIVALS, TRAINED, ZERO_SHOT, Teacher, rows, tuned
from .summary import NO_PAPER, Table

STUDENT = "StudentDHO"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    p = shots_parser("students", __doc__, shots=students_rows.SHOTS)
    add_teachers(p)
    return read_teachers(read(p, argv, "students"))


def add_teachers(p: argparse.ArgumentParser) -> None:
    """The flag that names the teachers."""
    kinds = "; ".join(f"{dataset}: {', '.join(names)}" for dataset, names in KINDS.items())
    p.add_argument(
        "--teachers",
        "--teacher",
        nargs="+",
        default=[],
        help=f"one block of rows for each: models or files (default: the dataset's own), or kinds of errors ({kinds})",
    )


def read_teachers(args: argparse.Namespace) -> argparse.Namespace:
    """Give options that stand right behind the teachers to the others.

    Raises:
        UsageError: a teacher twice.
    """
    args.teachers, rest = leading_names(args.teachers)
    args.opts = [*rest, *args.opts]
    if len(set(args.teachers)) < len(args.teachers):
        raise UsageError(f"--teachers {' '.join(args.teachers)}: one of them stands twice")
    return args


def find_models(args: argparse.Namespace, flags: Sequence[str]) -> tuple[str, list[Teacher]]:
    """The student's name, and the teachers of the blocks, those of the configuration where none is named.

    A dry run does not look for the weights, which may be on another machine.

    Raises:
        UsageError: unknown dataset, model, kind of teacher or key.
    """
    for name in args.teachers if args.dataset in KINDS else ():
        check_choice("--teachers", name, KINDS[args.dataset])
    cfg, _ = configure(plan([Method("", ("--trainer", STUDENT))], [0], args.output_dir, flags, args.opts)[0])
    student = cfg.MODEL.BACKBONE.NAME
    if not args.dry_run:
        TRAINER_REGISTRY.get(STUDENT).find_student(student)
    if args.dataset in KINDS:
        teachers = [students_rows.trained_teacher(args.dataset, kind) for kind in args.teachers or KINDS[args.dataset]]
    else:
        names = args.teachers or [cfg.TRAINER.DHO.TEACHER.NAME]
        for name in names if not args.dry_run else ():
            find_vlm(name)
        teachers = [students_rows.clip_teacher(name) for name in names]
    return student, teachers


def settle(args: argparse.Namespace) -> tuple[Job, list[Planned]]:
    """Find out blocks, cells and models, before anything slow starts.

    Raises:
        UsageError: as find_models; unknown row.
    """
    flags = words(dataset=args.dataset, root=args.root, backbone=args.backbone)
    student, teachers = find_models(args, flags)
    theirs = students_rows.papers_student(student)
    paper = NO_PAPER if args.dataset in (*KINDS, *TEN) else students_rows.paper(theirs, args.shots)
    blocks = [
        Block(
            teacher.name if len(teachers) > 1 else "",
            f"Teacher: {teacher.name}" if len(teachers) > 1 else "",
            chosen(tuned(rows(teacher)) if args.dataset in TEN else rows(teacher), args.rows),
            students_rows.comparisons(),
            students_rows.claims(),
            paper,
        )
        for teacher in teachers
    ]
    names = ", ".join(teacher.name for teacher in teachers)
    preface = [f"Labelled images a class by column, all other training images unlabelled. Student: {student}."]
    if args.dataset in KINDS:
        preface += [f"Teachers: runs of CE on {args.dataset}_KIND, one for each seed and kind of errors ({names})."]
    elif args.dataset in TEN:
        preface += [f"Teacher: {names}."]
    else:
        preface += [
            f"Teacher: {names}. The paper's numbers are ImageNet's, with {theirs} taught by CLIP RN50; its KD and its "
            "zero-shot teacher use no labels and have one number for all shots."
        ]
    job = Job("students", f"Compact students on {args.dataset}, after Table 1", blocks, args.shots, preface)
    planned = plan_blocks(blocks, args.shots, args.seeds, args.output_dir, flags, args.opts)
    return job._replace(preface=[*preface, *interpolations(planned)]), planned


def interpolations(planned: Sequence[Planned]) -> list[str]:
    """Alpha and beta of the rows with two heads, as they are configured."""
    said = {}
    for cell in (entry.cell for entry in planned):
        if STUDENT in cell.words and cell.method.row not in said:
            dho = configure(cell)[0].TRAINER.DHO
            fixed = f"alpha {dho.ALPHA:g}, beta {dho.BETA:g}, fixed"
            by = {"fixed": fixed, "val": "alpha and beta searched on validation images"}
            said[cell.method.row] = by.get(dho.CHOOSE, "alpha and beta searched on the TEST images, an oracle")
    return ["; ".join(f"{row}: {words}" for row, words in said.items()) + "."] if said else []


def best_rivals(job: Job, block: Block, records: Records) -> dict[str, str]:
    """The rival of the highest mean in each column that has one."""
    best = {}
    for column in job.columns():
        means = {rival: summary.accuracies(records[block.name], rival, column).values() for rival in RIVALS}
        known = {rival: mean(values) for rival, values in means.items() if values}
        if known:
            best[column] = max(known, key=known.__getitem__)
    return best


def by_teacher(job: Job, records: Records) -> Table:
    """How DHO does under each teacher, over all columns."""
    lines, columns = [], job.columns()
    for block in job.blocks:
        own = records[block.name]
        teacher = [record.accuracy for record in own if record.row in (ZERO_SHOT, TRAINED)]
        best = best_rivals(job, block, records)
        over = [summary.difference_over_columns(own, DHO, rival) for rival in (dict.fromkeys(columns, "CEKD"), best)]
        counts = summary.tally(own, block.present(block.claims), columns)
        shown = [str(count) for count in counts] if len({record.seed for record in own}) > 1 else ["-"] * 3
        lines.append(
            (
                block.name or "the teacher",
                f"{mean(teacher):.1f}" if teacher else "missing",
                *map(summary.points, over),
                ", ".join(dict.fromkeys(best.values())),
                *shown,
            )
        )
    compared = ("DHO minus CEKD", "DHO minus best rival", "best rival")
    return Table(("teacher", "its top-1, %", *compared, "wins", "ties", "losses"), tuple(lines))


def closing(job: Job, records: Records) -> list[str]:
    """How wins, ties and losses go with the teacher, and the paper's other student."""
    paragraphs = [
        "## By teacher",
        summary.markdown(by_teacher(job, records)),
        "Differences are means over the numbers of shots, paired by seed, ± their standard error over seeds. The best "
        "rival is that of the highest mean at each number of shots, picked on the same results, which favours it. "
        "Wins, ties and losses count DHO against each rival at each number of shots.",
    ]
    return paragraphs if any(DHO in {m.row for m in block.methods} for block in job.blocks) else []


def papers_table(shots: Sequence[int]) -> list[str]:
    """The paper's Table 1, of both students."""
    sheets = {student: students_rows.paper(student, shots) for student in students_rows.PAPER}
    order = (ZERO_SHOT, FEW_SHOT, *RIVALS, DHO, students_rows.DHO_F)
    lines = []
    for row in order:
        values = [sheet.value(row, place) for sheet in sheets.values() for place in range(len(shots))]
        if any(value is not None for value in values):
            lines.append((row, *("-" if value is None else f"{value:.1f}" for value in values)))
    columns = [f"{student}, {name}" for student, sheet in sheets.items() for name in sheet.columns]
    return ["## The paper's Table 1", summary.markdown(Table(("ImageNet, top-1, %", *columns), tuple(lines)))]


def main(argv: Sequence[str]) -> int:
    """Run the table and print it; 1 where a run failed."""
    args = parse(argv)
    if args.datasets:
        return run_on_datasets(args, argv, settle, PICTURES)
    job, planned = settle(args)
    paper = [] if args.dataset in KINDS else papers_table(args.shots)
    return run_job(job, planned, args, argv, lambda job, records: [*closing(job, records), *paper])
