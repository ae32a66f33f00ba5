"""`python -m dho_plugin reproduce`: what each table and figure of the paper stands on, run here or as a stand-in."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from . import __main__ as commands
from . import cli
from .errors import UsageError, did_you_mean
from .estimate.costs import GPUS
from .reproduce_costs import MEANING, costs_of, costs_table, total
from .reproduce_registry import ENTRIES, GPU, MEASURED, Entry
from .tables.summary import Table, markdown

SCALES = ("paper", "demo")
LIST = "list"
TRAIN = "train.py"
# Commands that print the command lines of their runs under --dry-run.
PLANNED = ("students", "ablations", "table13", "low-shot", "conflict")
MADE = ("*.md", "*.html", "*.png")


class Step(NamedTuple):
    """A command line: train.py or the name of a command, and its words."""

    command: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        program = ("python", TRAIN) if self.command == TRAIN else ("python", "-m", "dho_plugin", self.command)
        return shlex.join((*program, *self.words))

    def run(self) -> int:
        """Run it in this process; its exit status."""
        return cli.main(self.words) if self.command == TRAIN else commands.main([self.command, *self.words])

    def trainings(self) -> list[list[str]]:
        """The words of each command line of train.py that it runs."""
        if self.command == TRAIN:
            return [list(self.words)]
        if self.command not in PLANNED or self.command not in commands.COMMANDS:
            return []
        said, wrong = io.StringIO(), io.StringIO()
        with redirect_stdout(said), redirect_stderr(wrong):
            status = commands.main([self.command, *_without_table(self.words), "--dry-run"])
        if status:
            raise UsageError(f"{self}: {wrong.getvalue().strip()}")
        lines = [shlex.split(line) for line in said.getvalue().splitlines() if line.startswith(f"python {TRAIN} ")]
        return [line[2:] for line in lines]


def _without_table(words: Sequence[str]) -> list[str]:
    """The words without --table FILE, whose folder need not be there for a dry run."""
    at = list(words).index("--table") if "--table" in words else len(words)
    return [*words[:at], *words[at + 2 :]]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin reproduce", description=__doc__)
    p.add_argument("what", nargs="*", default=[LIST], help='a table or figure, as in table13 or "Figure 4"; or list')
    p.add_argument("--scale", choices=SCALES, default="paper", help="the paper's, or minutes on built-in pictures")
    p.add_argument("--root", default="", help="folder that holds the datasets")
    p.add_argument("--output-dir", default="output/reproduce", help="below it a folder for each scale")
    p.add_argument("--jobs", type=int, help="runs at a time")
    p.add_argument("--gpu", choices=tuple(GPUS), default=GPU, help="that the hours are estimated for")
    p.add_argument("--dry-run", action="store_true", help="cost and commands alone")
    p.add_argument("--yes", action="store_true", help="start trainings of the paper's scale without asking")
    p.add_argument("--markdown", action="store_true", help="the list as a table for a page")
    args = p.parse_args(argv)
    args.what = named(" ".join(args.what))
    needs = args.scale == "paper" and args.what != LIST and any("{root}" in s for s in ENTRIES[args.what].paper)
    if needs and not (args.root or args.dry_run):
        raise UsageError("no --root: give the folder that holds the datasets; or --scale demo, which needs none")
    return args


def named(what: str) -> str:
    """The key of an entry: "table13" of "Table 13" and "tab. 13".

    Raises:
        UsageError: the paper has no such table or figure.
    """
    match = re.fullmatch(r"(tab|fig)[a-z]*\.?\s*(\d+)", what.strip().casefold())
    key = f"{'table' if match[1] == 'tab' else 'figure'}{int(match[2])}" if match else what.strip().casefold()
    if key != LIST and key not in ENTRIES:
        raise UsageError(
            f"{what!r} is no table or figure of the paper, which has Tables 1 to 15 and Figures 1 to 19."
            f"{did_you_mean(key, ENTRIES)} `reproduce list` shows them"
        )
    return key


def steps_of(key: str, args: argparse.Namespace) -> list[Step]:
    """The steps of an entry, filled in from the command line."""
    output = Path(args.output_dir, args.scale)
    root = args.root or ("DATA" if args.scale == "paper" else "")
    values = {"root": root, "output": str(output), "configs": str(cli.CONFIGS), "jobs": str(args.jobs or "")}
    entry, steps, tables = ENTRIES[key], [], 0
    for line in entry.paper if args.scale == "paper" else entry.demo:
        tables += "{table}" in line
        table = output / f"{key}{f'_{tables}' if tables > 1 else ''}.md"
        command, *words = _filled(line, {**values, "table": str(table)})
        steps.append(Step(command, tuple(words)))
    return steps


def _filled(line: str, values: dict[str, str]) -> Iterator[str]:
    """The words of a line; a flag whose value is empty is left out."""
    words = shlex.split(line)
    for word, behind in zip(words, [*words[1:], ""], strict=True):
        if word.format_map(values) and (not behind.startswith("{") or behind.format_map(values)):
            yield word.format_map(values)


# What is said


def title(key: str) -> str:
    """ "Table 13" of "table13"."""
    return re.sub(r"\d", r" \g<0>", key, count=1).capitalize()


def programs(steps: Sequence[str]) -> str:
    """The commands that an entry stands on, without their words."""
    return ", ".join(dict.fromkeys(line.partition(" --")[0].partition(" {")[0] for line in steps))


def table_of_entries() -> Table:
    """All tables and figures: what they show, by which commands, and what the stand-in takes."""
    lines = [
        (
            title(key),
            entry.shows,
            programs(entry.paper),
            f"{entry.minutes:g}" if entry.minutes else "-",
        )
        for key, entry in ENTRIES.items()
    ]
    return Table(("", "shows", "commands", "demo: minutes"), tuple(lines))


def listed() -> str:
    """The same for a terminal, two lines each."""
    lines = []
    for key, entry in ENTRIES.items():
        minutes = f"; demo: {entry.minutes:g} min" if entry.minutes else ""
        lines += [f"{key:9} {entry.shows}", f"{'':9} {programs(entry.paper)}{minutes}"]
    said = f"Minutes are {MEASURED}."
    return "\n".join([*lines, "", said, "Exact commands, and GPU hours: reproduce NAME --dry-run [--scale demo]"])


def print_cost(entry: Entry, steps: Sequence[Step], args: argparse.Namespace) -> float:
    """Say what the steps cost; GPU hours at the paper's scale."""
    if args.scale == "demo":
        print(f"About {entry.minutes:g} minutes ({MEASURED})." if entry.minutes else "What it takes was not measured.")
        return 0.0
    costs = costs_of([line for step in steps for line in step.trainings()], args.gpu)
    if costs:
        print(f"{markdown(costs_table(costs))}\n\n{MEANING.format(gpu=args.gpu)}")
    else:
        print("Nothing is trained.")
    return total(costs)


def confirm(hours: float) -> bool:
    """Ask on a terminal whether to start.

    Raises:
        UsageError: there is nobody to ask.
    """
    said = f"This would train for about {hours:,.0f} GPU hours"
    if not sys.stdin.isatty():
        raise UsageError(f"{said}: --yes starts it, --dry-run shows the commands, --scale demo is a small stand-in")
    return input(f"{said}. Start? [y/N] ").strip().casefold() in ("y", "yes")


def made(steps: Sequence[Step]) -> list[Path]:
    """Tables, pages and pictures in the steps' output folders."""
    folders = [Path(step.words[step.words.index("--output-dir") + 1]) for step in steps if "--output-dir" in step.words]
    tables = [Path(step.words[step.words.index("--table") + 1]) for step in steps if "--table" in step.words]
    found = [path for folder in folders for pattern in MADE for path in sorted(folder.glob(pattern))]
    return list(dict.fromkeys([*(path for path in tables if path.is_file()), *found]))


def main(argv: Sequence[str]) -> int:
    """Say what it costs, then how it is done, then do it; the exit status of the step that failed, else 0."""
    args = parse(argv)
    if args.what == LIST:
        print(markdown(table_of_entries()) if args.markdown else listed())
        return 0
    entry, steps = ENTRIES[args.what], steps_of(args.what, args)
    print(f"{title(args.what)}, {args.scale} scale: {entry.shows}.{f' {entry.note}' if entry.note else ''}\n")
    hours = print_cost(entry, steps, args)
    output = Path(args.output_dir, args.scale)
    print("", shlex.join(["mkdir", "-p", str(output)]), *steps, sep="\n", flush=True)
    if args.dry_run or (hours and not args.yes and not confirm(hours)):
        return 0
    output.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {step}", flush=True)
        status = step.run()
        if status:
            print(f"{title(args.what)}: step {number} of {len(steps)} ended with {status}; the same command goes on")
            return status
    files = made(steps)
    print(f"\n{title(args.what)} is done. Tables and figures:" if files else f"\n{title(args.what)} is done.")
    print(*files, sep="\n")
    return 0
