"""`python -m dho_plugin low-shot`: CLIP students trained as a whole from few labels (Tables 4, 5, 9 and 12)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..datasets import SHIFTS
from ..errors import UsageError
from ..vlm import find_vlm
from . import low_shot_rows, summary, table13_rows
from .ablations import CLIP_STUDENTS
from .by_sets import Job, run_job
from .by_shots import TAKEN as BY_FLAGS
from .cells import configure, plan
from .command import check_options, chosen, leading_names, leading_numbers, parts, table_parser, words
from .low_shot_rows import LABELS, PAIRS, Pair
from .summary import NO_PAPER, Paper
from .sweep import check_request

TAKEN = (*BY_FLAGS, "MODEL.TOKEN_MERGING", *(f"TRAINER.DHO.{key}" for key in ("ALPHA", "BETA", "CHOOSE")))
PREFACE = (
    "Rows say student <- teacher, and labels. They have alpha 0.5 and beta 1.0 (Table 11); `beta 0.5` is another "
    "evaluation of the same run (Tables 4, 5 and 6), `tokens merged` another one of that (Table 9)."
)
PAPERS = (
    "The paper prints the same numbers for validation in Tables 4 and 12, whose betas differ; its zero-shot row of "
    "ViT-L/14 does not say at which resolution; and its Table 4 has 84.4 for DFN ViT-H/14."
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; lists end where options begin."""
    p = table_parser("low-shot", __doc__)
    p.add_argument("--teacher", default="", help="with --backbone: another student and teacher than the paper's")
    p.add_argument("--labels", nargs="+", default=[], help="of each run: lists as in train.py, or numbers a class")
    p.add_argument("--starts", action="store_true", help="Table 5's rows too: how the heads start")
    args = p.parse_args(argv)
    args.seeds, one = leading_numbers(args.seeds)
    labels, two = leading_names(args.labels)
    args.opts = [*one, *two, *args.opts]
    args.output_dir = args.output_dir or f"output/low-shot/{args.dataset}"
    if args.dataset not in CLIP_STUDENTS:
        raise UsageError(f"--dataset {args.dataset}: there is no CLIP student for it, but for {list(CLIP_STUDENTS)}")
    if bool(args.backbone) != bool(args.teacher):
        raise UsageError("--backbone and --teacher: give both, or neither for the paper's pairs")
    args.labels = [part for word in labels for part in parts(word)] or list(LABELS[args.dataset])
    check_options(args.opts, TAKEN)
    check_request(args.seeds, args.jobs, {"--json": args.json, "--table": args.table})
    return args


def settle(args: argparse.Namespace) -> Job:
    """Find out rows, cells and models, before anything slow starts.

    Raises:
        UsageError: unknown model, key or row; other settings in the output folder.
    """
    pairs = (Pair(args.backbone, args.teacher),) if args.teacher else PAIRS[args.dataset]
    for name in () if args.dry_run else dict.fromkeys(name for pair in pairs for name in pair[:2]):
        find_vlm(name)
    methods = chosen(list(low_shot_rows.rows(args.dataset, pairs, args.labels, starts=args.starts)), args.rows)
    cells = plan(
        methods, args.seeds, args.output_dir, (*words(dataset=args.dataset, root=args.root), "--ood"), args.opts
    )
    columns = ("test", *SHIFTS[configure(cells[0])[0].DATASET.NAME])
    present = {method.row for method in methods}
    compared = [(method.row, method.control) for method in methods if method.control in present]
    claims = [(row, control) for row, control in compared if control.endswith(low_shot_rows.ZERO_SHOT)]
    theirs = args.dataset == "imagenet"
    paper = Paper(table13_rows.COLUMNS, low_shot_rows.PAPER) if theirs else NO_PAPER
    closing = (summary.markdown(low_shot_rows.papers_table()),)
    title, preface = f"Low-shot students on {args.dataset}, after Tables 4 and 12", [PREFACE, *[PAPERS] * theirs]
    return Job("low-shot", title, methods, cells, columns, paper, compared, claims, (), preface, closing)


def main(argv: Sequence[str]) -> int:
    """Run the table and print it; 1 where a run failed."""
    args = parse(argv)
    return run_job(settle(args), args, argv)
