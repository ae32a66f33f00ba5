"""`python -m dho_plugin costs`: what the second head costs at inference, and what merging tokens saves.

Tables 2, 7 and 9 of the paper, on the machine at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ._version import __version__
from .costs_tables import FOOT, SAVING, Report, head_table, merging_table, merging_verdicts, size_table
from .errors import UsageError
from .heads import HEAD_KINDS
from .measuring import Student, build_student, macs_of_merging, measure_heads, measure_merging, sizes, smallest_r
from .precision import Precision
from .tables.summary import Table, comma_separated, latex, markdown

STUDENTS = ("resnet18", "mobilenet_v2", "resnet50", "ViT-B/16")
FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "csv": comma_separated}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parse(argv)
    device = torch.device(args.device)
    precision = Precision("amp" if args.amp else "fp32", device)
    students = [build_student(name, args.classes, kd_head=args.head) for name in args.students]
    if args.tome is not None and not any(student.vlm for student in students):
        raise UsageError(f"--tome: only the ViT of a CLIP merges tokens, and there is none among {args.students}")
    where = environment(args, precision)
    print(", ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    report = measure(students, args, device, precision)
    tables = [size_table(report), head_table(report), *([merging_table(report)] if report.merging else [])]
    for table in tables:
        print(f"\n{FORMATS[args.format](table)}")
    print("", FOOT, "", *merging_verdicts(report), sep="\n")
    if args.json:
        Path(args.json).write_text(json.dumps({"environment": where, **as_json(report)}, indent=1) + "\n")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; mistakes are refused before anything is measured."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin costs", description=__doc__)
    p.add_argument("--students", nargs="+", default=list(STUDENTS), help="names of CLIP architectures or classifiers")
    p.add_argument("--classes", type=int, default=1000)
    p.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images at a time")
    p.add_argument("--repeats", type=int, default=10, help="repetitions of each measurement")
    p.add_argument("--head", choices=HEAD_KINDS, default="", help="KD head (default: cosine for a CLIP, else linear)")
    merging = (
        "also with R tokens merged in each layer of a ViT, and with the smallest R that saves a quarter of the FLOPs"
    )
    p.add_argument("--tome", type=int, nargs="*", metavar="R", help=merging)
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    p.add_argument("--format", choices=tuple(FORMATS), default="markdown")
    p.add_argument("--json", default="", metavar="FILE", help="write every size and time to this file")
    args = p.parse_args(argv)
    for flag, value, least in (
        ("classes", args.classes, 1),
        ("batch", min(args.batch), 1),
        ("repeats", args.repeats, 2),
        ("tome", min(args.tome or [0]), 0),
    ):
        if value < least:
            raise UsageError(f"--{flag} {value}: expected {least} or more")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UsageError(f"--json {args.json}: there is no folder {Path(args.json).absolute().parent}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def environment(args: argparse.Namespace, precision: Precision) -> dict[str, Any]:
    """Where the times come from."""
    on_gpu = args.device == "cuda"
    return {
        "dho_plugin": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        "precision": precision.name,
        "threads": torch.get_num_threads(),
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "unknown",
        "classes": args.classes,
        "repetitions": args.repeats,
    }


def measure(
    students: Sequence[Student], args: argparse.Namespace, device: torch.device, precision: Precision
) -> Report:
    """All sizes, then all times."""
    report = Report({}, [], {}, [])
    for student in students:
        student.model.to(device)
        report.sizes[student.name] = sizes(student)
        for batch in args.batch:
            print(f"timing {student.name}, batch {batch}", file=sys.stderr, flush=True)
            report.heads.append(measure_heads(student, batch, repeats=args.repeats, precision=precision))
        if args.tome is not None and student.vlm:
            rs = sorted({*args.tome, smallest_r(student, SAVING)} - {0})
            report.merged[student.name] = {r: macs_of_merging(student, r) for r in (0, *rs)}
            for batch in args.batch:
                print(f"timing {student.name}, batch {batch}, r = {[0, *rs]}", file=sys.stderr, flush=True)
                report.merging.append(measure_merging(student, rs, batch, repeats=args.repeats, precision=precision))
    return report


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain dictionaries and lists."""
    return {
        "sizes": {name: [size._asdict() for size in pair] for name, pair in report.sizes.items()},
        "heads": [timing._asdict() for timing in report.heads],
        "macs_of_merging": report.merged,
        "merging": [timing._asdict() for timing in report.merging],
    }
