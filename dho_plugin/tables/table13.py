"""`python -m dho_plugin table13`: the paper's Table 13 through the ordinary trainers, beside its own numbers."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..datasets import SHIFTS
from ..errors import UsageError
from ..vlm import find_vlm, load_vlm
from . import summary, table13_rows
from .cells import Cell, Method, configure, finished, made_by, plan
from .command import (
    check_data,
    check_options,
    chosen,
    command_lines,
    leading_numbers,
    short_of,
    star,
    table_parser,
    words,
    write,
)
from .summary import Paper, Record, Table
from .sweep import check_request, report_failures, sweep


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
    vlm = load_vlm(name)
    try:
        vlm.check_visual_prompts(1)
    except UsageError:
        return 0
    return len(vlm.model.visual.transformer.resblocks)


class Sheet(NamedTuple):
    """The finished table: what was measured, and how it is laid out."""

    records: Sequence[Record]
    methods: Sequence[Method]
    columns: Sequence[str]
    paper: Paper

    def results(self) -> Table:
        """Our accuracies, and the paper's beside them."""
        return summary.results_table(self.records, [method.row for method in self.methods], self.columns, self.paper)

    def document(self, preface: Sequence[str]) -> str:
        """Markdown: what was run, both tables, and where DHO did not win."""
        pairs = table13_rows.comparisons(self.methods)
        dho = [(row, rival) for row, rival in pairs if table13_rows.is_dho(row)]
        marked = star(self.records)
        paragraphs = [
            *preface,
            summary.markdown(self.results()),
            "± is the sample deviation over seeds; zero-shot rows have no seed.",
            summary.markdown(summary.differences_table(self.records, pairs, self.columns, self.paper)),
            f"± is the standard error of the paired difference, the paper's own is in parentheses. {marked}",
            *short_of(self.records, dho, self.columns),
        ]
        return "\n\n".join(paragraphs)

    def write(self, folder: Path, document: str) -> None:
        """Leave table13.md, .tex, .csv and .json in the folder."""
        rows = [(method.row, method.control) for method in self.methods]
        details = summary.details_table(self.records, rows, self.columns, self.paper)
        texts = {"md": f"{document}\n", "tex": f"{summary.latex(self.results())}\n"}
        write(folder, "table13", {**texts, "csv": summary.comma_separated(details)})
        summary.write_json(self.records, folder / "table13.json")


class Job(NamedTuple):
    """What is to be run and shown. notes: where a row is another than the paper's. preface: what else to know."""

    methods: Sequence[Method]
    cells: Sequence[Cell]
    columns: Sequence[str]
    paper: Paper
    notes: Sequence[str]
    preface: Sequence[str]


def settle(args: argparse.Namespace) -> Job:
    """Find out rows, cells and models, before anything slow starts.

    Raises:
        UsageError: unknown dataset, model, key or row; other settings in the output folder.
    """
    data = words(dataset=args.dataset, root=args.root)
    probe = Method("", ("--trainer", "LinearProbeDHO", *words(backbone=args.backbone, teacher=args.teacher)))
    cfg, _ = configure(plan([probe], [0], args.output_dir, data, args.opts)[0])
    student, teacher, shifts = cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.DHO.TEACHER.NAME, SHIFTS.get(cfg.DATASET.NAME, {})
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
    return Job(methods, cells, columns, paper, notes, preface)


def main(argv: Sequence[str]) -> int:
    """Run the table and print it; 1 where a run failed."""
    args = parse(argv)
    job = settle(args)
    unfinished = [cell for cell in job.cells if finished(cell) is None]
    if args.dry_run:
        print(command_lines(job.cells, job.notes))
        return 0
    for note in job.notes:
        print(note)
    check_data(unfinished)
    records, failed = sweep(job.cells, args.seeds, jobs=args.jobs)

    sheet = Sheet(records, job.methods, job.columns, job.paper)
    command = shlex.join(["python", "-m", "dho_plugin", "table13", *argv])
    title = (
        f"# Table 13 on {args.dataset}",
        f"    {command}",
        f"Made by {'; '.join(made_by(job.cells)) or 'nothing'}.",
    )
    text = sheet.document([*title, *job.preface, *job.notes])
    print(f"\n{text}")
    sheet.write(Path(args.output_dir), text)
    if args.table:
        Path(args.table).write_text(f"{text}\n", encoding="utf-8")
    if args.json:
        summary.write_json(records, args.json)
    return report_failures(failed)
