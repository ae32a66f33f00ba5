"""What the trainings behind a table or figure would cost: `estimate` for each kind of run, times their number."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from typing import Any, NamedTuple

from . import cli, estimate
from .tables.summary import Table

# Options in which runs of one kind may differ: their heads, and what is decided when they answer.
OF_A_KIND = ("TRAINER.DHO.ALPHA", "TRAINER.DHO.BETA", "TRAINER.DHO.CHOOSE", "TRAINER.DHO.HEAD.", "TRAINER.STUDENT.")
FOLDER_OPTION = "TRAINER.CASPL.BOOSTING"  # of a run that is not there yet
MEANING = (
    "Hours of one {gpu}: arithmetic at 40 % of its peak, or what the loader's workers take to decode the images where "
    "that is more. A number of shots costs as much here as the fewest in the table, whose epochs are the longest. "
    "Evaluations, and what is only looked at, are not counted."
)


class Cost(NamedTuple):
    """Runs of a kind: what they are in words, how many, and GPU hours of each."""

    kind: str
    runs: int
    hours: float


def costs_of(lines: Sequence[Sequence[str]], gpu: str) -> list[Cost]:
    """The costs of command lines of train.py, each run counted once; what is not trained costs nothing.

    Args:
        lines: their words. gpu: one of estimate's names.
    """
    runs = {args.output_dir: args for args in map(cli.parser().parse_args, map(list, lines)) if _trains(args)}
    kinds: dict[tuple[Any, ...], list[Any]] = {}
    for args in runs.values():
        args.teacher = runs[args.teacher].backbone if args.teacher in runs else args.teacher
        args.opts = list(_options(args.opts))
        kinds.setdefault(_kind(args), []).append(args)
    found = []
    for number, same in enumerate(kinds.values(), start=1):
        least = min(same, key=lambda args: args.shots or 0)
        print(f"estimating {number} of {len(kinds)} kinds of runs: {_name(least)}", file=sys.stderr, flush=True)
        found.append(Cost(_name(least), len(same), hours_of(least, gpu)))
    return found


def hours_of(args: Any, gpu: str) -> float:
    """GPU hours of one run."""
    given = {"gpu": gpu, "efficiency": 0.4, "decode_ms": None, "json": "", "seed": 1, "output_dir": ""}
    wanted = type(args)(**{**vars(args), **given})
    with redirect_stderr(io.StringIO()):
        found = estimate.estimate(estimate.configuration(wanted), wanted)["gpu"]
    return max(found["hours"]["live"], found["loader"]["live"]["hours"])


def costs_table(costs: Sequence[Cost]) -> Table:
    """A line for each kind of run, and their sum."""
    lines = [(one.kind, str(one.runs), f"{one.hours:.1f}", f"{one.runs * one.hours:,.0f}") for one in costs]
    lines.append(("together", str(sum(one.runs for one in costs)), "", f"{total(costs):,.0f}"))
    return Table(("runs", "number", "GPU hours each", "GPU hours"), tuple(lines))


def total(costs: Sequence[Cost]) -> float:
    """GPU hours of all runs."""
    return sum(one.runs * one.hours for one in costs)


def _trains(args: Any) -> bool:
    return not (args.eval_only or args.explain or args.no_train or args.trainer == "ZeroshotCLIP")


def _options(options: Sequence[str]) -> Iterator[str]:
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key != FOLDER_OPTION and not key.startswith(OF_A_KIND):
            yield from (key, value)


def _kind(args: Any) -> tuple[Any, ...]:
    names = ("trainer", "dataset", "backbone", "teacher", "labels", "labels_only", "config_file")
    return (*(getattr(args, name) for name in names), *args.opts)


def _name(args: Any) -> str:
    models = " <- ".join(filter(None, (args.backbone, args.teacher)))
    return ", ".join(filter(None, (f"{args.trainer} on {args.dataset}", models, "labels only" * args.labels_only)))
