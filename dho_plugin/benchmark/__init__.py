"""`python -m dho_plugin benchmark`: how many times faster than the peers' way, measured side by side, equality first.

ViT-B/16 at its true size with random weights, and the batches of a loader. The two ways take turns in one process; on a
CPU with one thread the processor's time is taken, so that other work on the machine does not count. A ratio is peers'
over ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from .._version import __version__
from ..errors import UsageError
from ..measuring import timed
from ..store import bytes_of_view
from ..tables.summary import Table, markdown
from ..text_memory import GIB
from ..vlm import feature_width, imagenet_classnames, random_vlm
from . import processes as benchmark_processes
from .input import replayed
from .input import rows as input_rows
from .picture import draw
from .row import Row, difference
from .steps import FULL, ON_GPU, QUICK, Bench, compiled_rows, where_time_goes
from .steps import rows as step_rows
from .text import Memory, memory
from .text import rows as text_rows

PARTS = ("text", "steps", "input")
COMPILE = "compile"  # needs a C++ compiler, and minutes; only when asked for
PROCESSES = "processes"  # needs two cores and ten minutes; only when asked for


class Measured(NamedTuple):
    """A row that was run; its models are gone.

    Attributes:
        name, wanted, tolerance: see Row. difference: of the results, relative. ratios: peers' time over ours, in the
        order of the repetitions.
    """

    name: str
    wanted: float | None
    tolerance: float
    difference: float
    ratios: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, measure, print; 1 if a result differs."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    torch.manual_seed(0)
    where = {
        "dho_plugin": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.cuda else f"CPU, {args.threads} thread(s)",
        "classes": args.classes,
        "repetitions": args.repeats,
    }
    print(", ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    names, found = list(imagenet_classnames()), []
    scale = QUICK if args.quick else ON_GPU if args.cuda else FULL
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "steps", scale, cuda=args.cuda)
        for row, where_run in cases(args, names[: args.classes], bench, Path(folder), device):
            row = row._replace(wanted=None) if args.quick else row  # the demands are for true sizes
            print(f"{row.name} ...", file=sys.stderr, flush=True)
            found.append(measure(row, args.repeats, where_run))
            print(f"  {median(found[-1].ratios):.1f}", file=sys.stderr, flush=True)
            del row
        shared = list(several(args, Path(folder)))
        lines = list(facts(args, names, bench, Path(folder)))
        if args.picture:
            title = f"A training step of CoOpDHO, {scale.student} from {scale.teacher}, C = {scale.classes}"
            drawn = draw(f"{title}, B = {scale.batch}; {where['device']}", *where_time_goes(bench))
            Path(args.picture).write_text(drawn, encoding="utf-8")
    tables = [*([table(found)] if found else []), *([benchmark_processes.table(shared)] if shared else [])]
    print("\n".join(["", "\n\n".join(map(markdown, tables)), *(f"\n{line}" for line, _ in lines)]))
    if args.json:
        kept = {key: value for _, values in lines for key, value in values.items()}
        kept |= {PROCESSES: benchmark_processes.as_json(shared)} if shared else {}
        Path(args.json).write_text(json.dumps(as_json(where, found, kept), indent=1) + "\n", encoding="utf-8")
    return complaints([*found, *shared])


def complaints(found: Sequence[Measured | benchmark_processes.Shared]) -> int:
    """Name the rows whose results differ; 1 if there are any."""
    different = [one for one in found if one.difference > one.tolerance]
    for one in different:
        print(f"error: {one.name}: the results differ by more than {one.tolerance:g}", file=sys.stderr)
    return int(bool(different))


def several(args: argparse.Namespace, folder: Path) -> Iterator[benchmark_processes.Shared]:
    """The rows of one process against two, if they were asked for."""
    if PROCESSES in args.parts:
        work = benchmark_processes.QUICK if args.quick else benchmark_processes.FULL
        yield from benchmark_processes.measured(folder / PROCESSES, args.repeats, work, lambda name: args.only in name)


def cases(
    args: argparse.Namespace, names: list[str], bench: Bench, folder: Path, device: torch.device
) -> Iterator[tuple[Row, torch.device]]:
    """The rows that were asked for, and where each is run: a loader's work is the processor's."""

    def wanted(name: str) -> bool:
        return args.only in name

    found: list[tuple[str, Callable[[], Iterator[Row]], torch.device]] = [
        ("text", lambda: text_rows(random_vlm("ViT-B/16").to(device), names), device),
        ("steps", lambda: step_rows(bench, wanted), device),
        ("input", lambda: input_rows(folder), torch.device("cpu")),
        (COMPILE, lambda: compiled_rows(bench), device),
    ]
    for part, rows, where in found:
        for row in rows() if part in args.parts else ():
            if wanted(row.name):
                yield row, where
            del row  # and with it its models, before the next ones are made


def facts(
    args: argparse.Namespace, names: list[str], bench: Bench, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is counted and not timed: a line for people, and the same by name."""
    if "text" in args.parts and not args.quick:
        kept = memory(random_vlm("ViT-B/16"), names, few=10)
        yield memory_line(kept), {"memory": kept._asdict()}
    if "steps" in args.parts:
        size = bytes_of_view(feature_width(bench.scale.teacher), "fp16")
        yield f"Stored for a view, {bench.scale.teacher} in half precision: {size:,} bytes", {"bytes of a view": size}
    if "input" in args.parts:
        same, all_ = replayed(folder)
        yield f"Views cut again from what a store knows of them: {same} of {all_} the same to the pixel", {"same": same}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; mistakes are refused before anything is measured."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin benchmark", description=__doc__)
    p.add_argument("--quick", action="store_true", help="small models, one repetition: about a minute")
    p.add_argument("--cuda", action="store_true", help="on the GPU")
    p.add_argument("--classes", type=int, default=100, help="number of classes C (default 100)")
    p.add_argument("--repeats", type=int, default=5, help="repetitions of each pair")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument(
        "--parts",
        nargs="+",
        default=PARTS,
        choices=(*PARTS, COMPILE, PROCESSES),
        help="which rows (default: "
        + ", ".join(PARTS)
        + "); processes: one process against two, ten minutes on two cores",
    )
    p.add_argument("--picture", default="", metavar="FILE", help="draw where a step's time goes, as SVG")
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
    if args.cuda and PROCESSES in args.parts:
        raise UsageError("--cuda --parts processes: two processes need a GPU each; it is measured on the CPU alone")
    for flag in ("json", "picture"):
        folder = Path(getattr(args, flag)).absolute().parent
        if not folder.is_dir():
            raise UsageError(f"--{flag} {getattr(args, flag)}: there is no folder {folder}")
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
    return Measured(row.name, row.wanted, row.tolerance, apart, ratios)


def table(found: Sequence[Measured]) -> Table:
    """A line for each row: ratios, what was wanted, how far apart the results are."""
    lines = []
    for name, wanted, _, apart, ratios in found:
        spread = f"{min(ratios):.1f} - {median(ratios):.1f} - {max(ratios):.1f}"
        lines.append((name, spread, "-" if wanted is None else f"{wanted:g}", f"{apart:.1e}"))
    return Table(("peers' time over ours", "min - median - max", "at least", "relative difference"), tuple(lines))


def memory_line(kept: Memory) -> str:
    """What the text keeps for the gradient, in words."""
    return (
        f"Kept for the gradient of the text, 16 tokens of context, C = {kept.classes}: peers {kept.peers / GIB:.1f}, "
        f"ours {kept.ours / GIB:.2f} GiB (at most {kept.wanted / GIB:.1f}), {kept.peers / kept.ours:.1f} times less"
    )


def as_json(where: dict[str, Any], found: Sequence[Measured], kept: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, as plain dictionaries and lists."""
    measured = [
        {"row": one.name, "wanted": one.wanted, "difference": one.difference, "ratios": one.ratios} for one in found
    ]
    return {"environment": where, "rows": measured, **kept}
