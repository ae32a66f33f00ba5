"""`python -m dho_plugin table13`: the paper's Table 13 through the ordinary trainers, beside its own numbers."""

from __future__ import annotations

import argparse
import io
import shlex
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import report, table13_rows
from .cells import Cell, Method, configure, finished, made_by, plan
from .datasets import SHIFTS
from .errors import UsageError
from .labels import build_labeled_dataset
from .pool import check_trainable
from .report import Paper, Record, Table
from .shifts import load_shifts
from .sweep import check_request, default_jobs, report_failures, sweep
from .vlm import find_vlm, load_vlm


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; seeds become numbers, and options that stand right behind them join the others."""
    p = argparse.ArgumentParser(
        prog="python -m dho_plugin table13",
        description=__doc__,
        epilog="KEY VALUE options at the end are handed to every training: OPTIM.MAX_EPOCH 1",
    )
    p.add_argument("--dataset", default="shapes", help="name of a file in configs/datasets")
    p.add_argument("--root", default="", help="folder that holds the datasets")
    p.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    p.add_argument("--shots", type=int, help="labelled images a class for every row; -1 for all")
    p.add_argument("--backbone", default="", help="student model or file")
    p.add_argument("--teacher", default="", help="teacher model or file, of CasPL's stage one too")
    p.add_argument("--rows", action="append", default=[], metavar="TEXT", help="only rows with TEXT in their label")
    p.add_argument("--jobs", type=int, default=default_jobs(cuda=torch.cuda.is_available()), help="runs at a time")
    p.add_argument("--output-dir", default="", help="default output/table13/DATASET; what is finished there is kept")
    p.add_argument("--json", default="", metavar="FILE", help="write one record for each row, column and seed")
    p.add_argument("--table", default="", metavar="FILE", help="write the document that is printed")
    p.add_argument("--dry-run", action="store_true", help="print the command line of every run, train nothing")
    p.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = p.parse_args(argv)
    # argparse gives --seeds every word up to the next flag.
    seeds = list(takewhile(lambda word: word.lstrip("-").isdigit(), args.seeds))
    args.seeds, args.opts = [int(word) for word in seeds], [*args.seeds[len(seeds) :], *args.opts]
    args.output_dir = args.output_dir or f"output/table13/{args.dataset}"
    for key in sorted(set(table13_rows.TAKEN).intersection(args.opts[::2])):
        raise UsageError(f"{key} is what the rows of this table differ in, or what a flag gives to all: see --help")
    check_request(args.seeds, args.jobs, {"--json": args.json, "--table": args.table})
    return args


def words(**flags: object) -> tuple[str, ...]:
    """Words of a command line for the flags that have a value."""
    return tuple(word for flag, value in flags.items() if value not in (None, "") for word in (f"--{flag}", str(value)))


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


def chosen(methods: Sequence[Method], texts: Sequence[str]) -> list[Method]:
    """The rows with one of the texts in their label, and the rows that these start from; all for no text."""
    wanted = {m.row for m in methods if not texts or any(text.casefold() in m.row.casefold() for text in texts)}
    if not wanted:
        raise UsageError(f"--rows {' '.join(texts)}: in none of {[method.row for method in methods]}")
    wanted |= {method.after for method in methods if method.row in wanted}
    return [method for method in methods if method.row in wanted]


def check_data(cells: Iterable[Cell]) -> None:
    """Build each training set once, and the shifts: what is missing is said, fetched or drawn before the first run."""
    configurations = [configure(cell)[0] for cell in cells]
    with redirect_stdout(io.StringIO()):
        for cfg in {str(cfg.DATASET): cfg for cfg in configurations}.values():
            check_trainable(build_labeled_dataset(cfg), final_model=cfg.TEST.FINAL_MODEL)
        for cfg in configurations[:1]:
            load_shifts(cfg, SHIFTS.get(cfg.DATASET.NAME, {}))


class Sheet(NamedTuple):
    """The finished table: what was measured, and how it is laid out."""

    records: Sequence[Record]
    methods: Sequence[Method]
    columns: Sequence[str]
    paper: Paper

    def results(self) -> Table:
        """Our accuracies, and the paper's beside them."""
        return report.results_table(self.records, [method.row for method in self.methods], self.columns, self.paper)

    def document(self, preface: Sequence[str]) -> str:
        """Markdown: what was run, both tables, and where DHO did not win."""
        pairs = table13_rows.comparisons(self.methods)
        dho = [(row, rival) for row, rival in pairs if table13_rows.is_dho(row)]
        paragraphs = [
            *preface,
            report.markdown(self.results()),
            "± is the sample deviation over seeds; zero-shot rows have no seed.",
            report.markdown(report.differences_table(self.records, pairs, self.columns, self.paper)),
            f"± is the standard error of the paired difference, the paper's own is in parentheses. {self.star()}",
        ]
        short = report.not_beaten(self.records, dho, self.columns)
        if short:
            said = "DHO rows that are not above what they are compared with by more than two standard errors:"
            paragraphs += [said, "\n".join(f"* {line}" for line in short)]
        elif dho:
            paragraphs += ["Every DHO row is above all that it is compared with by more than two standard errors."]
        return "\n\n".join(paragraphs)

    def star(self) -> str:
        """What `*` means with this many seeds."""
        seeds = len({record.seed for record in self.records})
        if seeds < 2:
            return "One seed has no standard error, so that no difference is marked."
        chance = 100 * report.chance_of_a_star(seeds)
        return f"`*` marks more than two of them; over {seeds} seeds noise alone earns it in {chance:.0f} % of cases."

    def write(self, folder: Path, document: str) -> None:
        """Leave table13.md, .tex, .csv and .json in the folder."""
        rows = [(method.row, method.control) for method in self.methods]
        details = report.details_table(self.records, rows, self.columns, self.paper)
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in {
            "md": f"{document}\n",
            "tex": f"{report.latex(self.results())}\n",
            "csv": report.comma_separated(details),
        }.items():
            (folder / f"table13.{ending}").write_text(text, encoding="utf-8")
        report.write_json(self.records, folder / "table13.json")


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
        commands = [shlex.join(["python", "train.py", *cell.words]) for cell in job.cells]
        print("\n".join([*(f"# {note}" for note in job.notes), *commands]))
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
        report.write_json(records, args.json)
    return report_failures(failed)
