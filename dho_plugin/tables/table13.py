"""`python -m dho_plugin table13`: the paper's Table 13 through the ordinary trainers, beside its own numbers."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from ..datasets import SHIFTS
from ..errors import UsageError
from ..vlm import find_vlm, load_vlm, untrained
from . import table13_rows
from .by_sets import Job, run_job
from .cells import Method, configure, plan
from .command import check_options, chosen, leading_numbers, table_parser, words
from .summary import Paper
from .sweep import check_request


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; seeds become numbers, and options that stand right behind them join the others."""
    p = table_parser("table13", __doc__)
    p.add_argument("--shots", type=int, help="labelled images a class for every row; -1 for all")
    p.add_argument("--teacher", default="", help="teacher model or file, of CasPL's stage one too")
    args = p.parse_args(argv)
    args.seeds, rest = leading_numbers(args.seeds)
    args.opts = [*rest, *args.opts]
    args.output_dir = args.output_dir or f"output/table13/{args.dataset}"
    check_options(args.opts, table13_rows.TAKEN)
    check_request(args.seeds, args.jobs, {"--json": args.json, "--table": args.table})
    return args


def labels(args: argparse.Namespace, cfg: Any) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Flags for the labels of the linear probe and VPT and for those of the other rows, and both in a sentence."""
    if args.dataset == "imagenet" and args.shots is None:
        said = "LP and VPT rows have 1 % of the labels (the paper's Table 11; its Table 13 prints 1.25 % for VPT)"
        return words(labels="simclr-1"), words(shots=16), f"{said}, the others 16 a class."
    shots = cfg.DATASET.NUM_SHOTS if args.shots is None else args.shots
    many = f"{shots} labelled images a class" if shots > 0 else "all training images labelled"
    flags = words(shots=args.shots)
    return flags, flags, f"Every row has {many} (the paper: 1 % in LP and VPT rows, 16 a class in the others)."


def vit_layers(name: str) -> int:
    """Layers of a model's ViT; 0 for an image tower that takes no visual prompts."""
    with redirect_stdout(io.StringIO()):  # which says that its weights, perhaps on another machine, are left out
        vlm = load_vlm(untrained(name))
    try:
        vlm.check_visual_prompts(1)
    except UsageError:
        return 0
    return len(vlm.model.visual.transformer.resblocks)


def settle(args: argparse.Namespace) -> Job:
    """Find out rows, cells and models, before anything slow starts.

    Raises:
        UsageError: unknown dataset, model, key or row; other settings in the output folder.
    """
    data = words(dataset=args.dataset, root=args.root)
    probe = Method("", ("--trainer", "LinearProbeDHO", *words(backbone=args.backbone, teacher=args.teacher)))
    cfg, _ = configure(plan([probe], [0], args.output_dir, data, args.opts)[0])
    student, teacher, shifts = cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.DHO.TEACHER.NAME, SHIFTS.get(cfg.DATASET.NAME, {})
    if not args.dry_run:
        find_vlm(teacher)
    layers = vit_layers(student)
    few, many, labelled = labels(args, cfg)
    methods = chosen(list(table13_rows.rows(teacher, layers, few, many)), args.rows)
    # One student and one teacher for all, whatever the trainers' own files name.
    flags = (*data, *words(backbone=student, teacher=teacher), *(["--ood"] if shifts else []))
    columns = ("test", *shifts)
    paper = Paper(table13_rows.COLUMNS[: len(columns)], table13_rows.paper_rows(layers))
    notes = table13_rows.footnotes(methods, student, layers)
    preface = (
        labelled,
        "The paper's columns are ImageNet's, with CLIP ViT-B/16 taught by ViT-L/14@336px; "
        f"ours are those of {args.dataset}, with {student} taught by {teacher}.",
    )
    cells = plan(methods, args.seeds, args.output_dir, flags, args.opts)
    pairs = table13_rows.comparisons(methods)
    claims = [(row, rival) for row, rival in pairs if table13_rows.is_dho(row)]
    title = f"Table 13 on {args.dataset}"
    return Job("table13", title, methods, cells, columns, paper, pairs, claims, notes, preface)


def main(argv: Sequence[str]) -> int:
    """Run the table and print it; 1 where a run failed."""
    args = parse(argv)
    return run_job(settle(args), args, argv)
