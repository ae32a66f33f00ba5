"""`python -m dho_plugin grid`: trainers x datasets x shots x seeds, each a run of train.py in CoOp's folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from .. import cli
from ..errors import UsageError
from ..saved import check_same_settings, read_record, settings
from . import sweep
from .by_shots import Block, Job, Planned, column, enter, publish
from .cells import Cell, Method, Outcome, configure, finished, plan, read_result
from .command import check_options, check_training_sets, command_lines, leading_names, leading_numbers, parts, words
from .grid_display import LiveTable, Place
from .slurm import Queue, parameters
from .sweep import Display, Lines, Slot, check_request, default_jobs, finish, report_failures
from .workers import visible_devices

TAKEN = ("SEED", "OUTPUT_DIR", "RESUME", "DATASET.NAME", "DATASET.ROOT", "DATASET.NUM_SHOTS", "TRAINER.NAME")


def parser() -> argparse.ArgumentParser:
    """The flags; lists are read by `parse`."""
    p = argparse.ArgumentParser(
        prog="python -m dho_plugin grid",
        description=__doc__,
        epilog="Lists have commas or spaces. KEY VALUE options at the end are handed to every run.",
    )
    p.add_argument("--trainers", nargs="+", required=True, metavar="NAME")
    p.add_argument("--datasets", nargs="+", required=True, metavar="NAME", help="names of files in configs/datasets")
    p.add_argument("--shots", nargs="+", default=["16"], help="labelled images a class; -1 for all")
    p.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    p.add_argument("--root", default="", help="folder that holds the datasets")
    p.add_argument("--output", default="output", help="what is finished there is kept, what was interrupted goes on")
    p.add_argument("--dry-run", "--explain", action="store_true", help="print the command line of every run")
    p.add_argument("--launcher", default="local", choices=("local", "slurm"))
    p.add_argument("--jobs", type=int, help="runs at a time (under Slurm: jobs queued at a time; default all)")
    p.add_argument("--per-gpu", type=int, default=1, metavar="N", help="runs at a time on each visible GPU")
    p.add_argument("--threads", type=int, default=0, help="of torch in each run (default: an equal share)")
    s = p.add_argument_group("Slurm, for each run")
    for flag in ("partition", "account", "qos", "mem"):
        s.add_argument(f"--{flag}", default="")
    s.add_argument("--time", default="4:00:00", help="a run that reaches it saves, is queued again and goes on")
    s.add_argument("--gpus", type=int, default=1, choices=(0, 1))
    s.add_argument("--cpus", type=int, default=None)
    s.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help="any other flag of sbatch")
    p.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, its lists as lists.

    Raises:
        UsageError: numbers or options that cannot be meant, or something twice.
    """
    args = parser().parse_args(argv)
    for flag in ("trainers", "datasets"):
        names, rest = leading_names(getattr(args, flag))
        args.opts = [*rest, *args.opts]
        names = [part for name in names for part in parts(name)]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"--{flag} {' '.join(names)}: expected different names")
        setattr(args, flag, names)
    args.shots, one = leading_numbers(args.shots)
    args.seeds, two = leading_numbers(args.seeds)
    args.opts = [*one, *two, *args.opts]
    if not args.shots or len(set(args.shots)) < len(args.shots) or not all(n > 0 or n == -1 for n in args.shots):
        raise UsageError(f"--shots {' '.join(map(str, args.shots))}: expected different numbers from 1 on, or -1")
    for flag in ("jobs", "per_gpu", "cpus"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: at least 1")
    check_request(args.seeds, args.jobs or 1, {})
    check_options(args.opts, TAKEN)
    return args


def plan_grid(args: argparse.Namespace) -> list[Planned]:
    """All cells, dataset by dataset.

    Raises:
        UsageError: unknown trainer, dataset or key.
    """
    planned = []
    for dataset in args.datasets:
        for count in args.shots:
            flags = words(dataset=dataset, root=args.root, shots=count)
            for trainer in args.trainers:
                method = Method(trainer, ("--trainer", trainer))
                place = partial(coop_folder, args.output, (*flags, *method.flags), args.opts)
                group = f"{dataset}, {column(count)}"
                cells = plan([method], args.seeds, args.output, flags, args.opts, group=group, place=place)
                planned += [Planned(cell, [(dataset, column(count))]) for cell in cells]
    return planned


def coop_folder(output: str, flags: Sequence[str], options: Sequence[str], method: Method, seed: int) -> Path:
    """Where train.py would put that run, below another folder than "output"."""
    args = cli.parser().parse_args([*flags, "--seed", str(seed), *options])
    return Path(output, *Path(cli.build_config(args).OUTPUT_DIR).parts[1:])


def check_folders(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are not finished.

    Raises:
        UsageError: a cell's folder holds a run, finished or not, with other settings.
    """
    unfinished = [cell for cell in cells if finished(cell) is None]
    for cell in unfinished:
        record = read_record(cell.folder)
        if record:
            check_same_settings(record, settings(configure(cell)[0]), cell.folder)
    return unfinished


def local_slots(cell: Cell, args: argparse.Namespace) -> list[Slot]:
    """Processes here: each pinned to a GPU where there are some, else one for each processor."""
    devices = visible_devices() if torch.cuda.is_available() and configure(cell)[0].USE_CUDA else []
    if devices:  # each GPU gets its first before any gets its second
        slots: list[Slot] = [partial(sweep.worker, device) for device in devices * args.per_gpu]
        return slots[: args.jobs]
    return [sweep.worker] * (args.jobs or default_jobs(cuda=False))


def display(planned: Sequence[Planned], slots: int) -> Display:
    """A table that is drawn again in place on a terminal, else lines."""
    cells = [entry.cell for entry in planned]
    if not sys.stdout.isatty():
        return Lines(len(cells), starts=True)
    places = {e.cell.folder: Place(f"{e.places[0][0]} {e.cell.method.row}", e.places[0][1]) for e in planned}
    results = {cell.folder: read_result(cell.folder) for cell in cells}
    took = {folder: result["seconds"] for folder, result in results.items() if result}
    return LiveTable(cells, places, slots, took)


def main(argv: Sequence[str]) -> int:
    """Run the grid and print its table; 1 where a run failed, 128 + a signal's number after that signal."""
    args = parse(argv)
    planned = plan_grid(args)
    cells = [entry.cell for entry in planned]
    unfinished = check_folders(cells)
    if args.dry_run:
        print(command_lines(cells, [f"{len(cells) - len(unfinished)} of {len(cells)} are finished"]))
        return 0
    slurm = args.launcher == "slurm"
    slots: list[Slot] = [sweep.worker]
    threads = args.threads
    if slurm and unfinished:
        queue = Queue(Path(args.output, "slurm"), parameters(args))
        slots = [lambda: queue] * (args.jobs or len(unfinished))
        threads = threads or args.cpus or 1
    elif unfinished:
        slots = local_slots(unfinished[0], args)
    check_training_sets(configure(cell)[0] for cell in unfinished)
    shown = display(planned, 0 if slurm else len(slots))
    try:
        outcomes = finish(cells, jobs=len(slots), threads=threads, slots=slots, display=shown)
    except SystemExit as stopped:
        jobs = "; its jobs stay in the queue" if slurm else ""
        print(f"Stopped{jobs}. The same command goes on.", file=sys.stderr)
        return int(stopped.code or 0)
    return conclude(args, planned, outcomes, argv)


def conclude(
    args: argparse.Namespace, planned: Sequence[Planned], outcomes: Sequence[Outcome], argv: Sequence[str]
) -> int:
    """Print the table, leave grid.md, .tex, .csv and .json in the output folder; the exit status."""
    pairs = [(name, name.removesuffix("DHO")) for name in args.trainers if name.endswith("DHO")]
    methods = [Method(name, ("--trainer", name)) for name in args.trainers]
    blocks = [Block(dataset, dataset, methods, pairs, ()) for dataset in args.datasets]
    named = {next(iter(outcome.accuracies), "test") for outcome in outcomes} - {"test"}
    preface = [f"Accuracies are those of {', '.join(sorted(named))}."] if named else []
    # A caveat that stands in the name ("test (oracle)") is said above.
    plain = [
        o._replace(accuracies={"test": next(iter(o.accuracies.values()))}) if o.accuracies else o for o in outcomes
    ]
    job = Job("grid", "Trainers by shots", blocks, args.shots, preface)
    publish(job, planned, enter(planned, plain, args.seeds), args.output, argv)
    return report_failures([outcome for outcome in outcomes if outcome.error])
