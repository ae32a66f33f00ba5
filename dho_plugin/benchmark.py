"""`python -m dho_plugin benchmark`: how many times faster than the peers' way, measured side by side, equality first.

ViT-B/16 at its true size with random weights. The two ways take turns in one process; on a CPU with one thread the
processor's time is taken, so that other work on the machine does not count. A ratio is peers' over ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from ._version import __version__
from .benchmark_text import TOLERANCE, Memory, Row, difference, memory, rows
from .errors import UsageError
from .measuring import timed
from .report import Table, markdown
from .text_memory import GIB
from .vlm import imagenet_classnames, random_vlm


class Measured(NamedTuple):
    """ratios: peers' time over ours, in the order of the repetitions. difference: of the results, relative."""

    row: Row
    difference: float
    ratios: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, measure, print; 1 if a result differs."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    torch.manual_seed(0)
    vlm = random_vlm("ViT-B/16").to(device)
    where = {
        "dho_plugin": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.cuda else f"CPU, {args.threads} thread(s)",
        "classes": args.classes,
        "repetitions": args.repeats,
    }
    print(", ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    names = list(imagenet_classnames())
    found = []
    for row in rows(vlm, names[: args.classes]):
        if args.only in row.name:
            print(f"{row.name} ...", file=sys.stderr, flush=True)
            found.append(measure(row, args.repeats, device))
    kept = memory(vlm, names, few=10) if not args.quick else None
    print(f"\n{markdown(table(found))}")
    if kept is not None:
        print(f"\n{memory_line(kept)}")
    if args.json:
        Path(args.json).write_text(json.dumps(as_json(where, found, kept), indent=1) + "\n", encoding="utf-8")
    different = [one.row.name for one in found if one.difference > TOLERANCE]
    for name in different:
        print(f"error: {name}: the results differ by more than {TOLERANCE:g}", file=sys.stderr)
    return int(bool(different))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; mistakes are refused before anything is measured."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin benchmark", description=__doc__)
    p.add_argument("--quick", action="store_true", help="8 classes, one repetition, no memory: under a minute")
    p.add_argument("--cuda", action="store_true", help="on the GPU")
    p.add_argument("--classes", type=int, default=100, help="number of classes C (default 100)")
    p.add_argument("--repeats", type=int, default=5, help="repetitions of each pair")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--only", default="", metavar="WORDS", help="only rows whose name has these words")
    p.add_argument("--json", default="", metavar="FILE", help="write every ratio to this file")
    args = p.parse_args(argv)
    if args.quick:
        args.classes, args.repeats = 8, 1
    for flag in ("classes", "repeats", "threads"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag} {getattr(args, flag)}: expected 1 or more")
    if args.classes > len(imagenet_classnames()):
        raise UsageError(f"--classes {args.classes}: expected at most {len(imagenet_classnames())}, ImageNet's")
    if args.cuda and not torch.cuda.is_available():
        raise UsageError("--cuda: torch sees no GPU here")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UsageError(f"--json {args.json}: there is no folder {Path(args.json).absolute().parent}")
    return args


def measure(row: Row, repeats: int, device: torch.device) -> Measured:
    """Compare the two results, then time the two ways in turn, the first of a pair alternating."""
    apart = difference(row)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    ratios = []
    for number in range(repeats):
        order = (row.peers, row.ours) if number % 2 == 0 else (row.ours, row.peers)
        seconds = {call: timed(call, device, 1, clock) for call in order}
        ratios.append(row.scale * seconds[row.peers] / seconds[row.ours])
    return Measured(row, apart, ratios)


def table(found: Sequence[Measured]) -> Table:
    """A line for each row: ratios, what was wanted, how far apart the results are."""
    lines = []
    for row, apart, ratios in found:
        spread = f"{min(ratios):.1f} - {median(ratios):.1f} - {max(ratios):.1f}"
        wanted = "-" if row.wanted is None else f"{row.wanted:g}"
        lines.append((row.name, spread, wanted, f"{apart:.1e}"))
    return Table(("peers' time over ours", "min - median - max", "at least", "relative difference"), tuple(lines))


def memory_line(kept: Memory) -> str:
    """What the text keeps for the gradient, in words."""
    return (
        f"Kept for the gradient of the text, 16 tokens of context, C = {kept.classes}: peers {kept.peers / GIB:.1f}, "
        f"ours {kept.ours / GIB:.2f} GiB (at most {kept.wanted / GIB:.1f}), {kept.peers / kept.ours:.1f} times less"
    )


def as_json(where: dict[str, Any], found: Sequence[Measured], kept: Memory | None) -> dict[str, Any]:
    """Everything that was measured, as plain dictionaries and lists."""
    measured = [
        {"row": one.row.name, "wanted": one.row.wanted, "difference": one.difference, "ratios": one.ratios}
        for one in found
    ]
    return {"environment": where, "rows": measured, "memory": kept._asdict() if kept else None}
