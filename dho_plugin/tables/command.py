"""What the commands that print a table of the paper share: their flags, their checks, their closing words and files."""

from __future__ import annotations

import argparse
import io
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from ..datasets import SHIFTS, TEN
from ..errors import UsageError
from ..host import cfg_default
from ..labels import build_labeled_dataset
from ..pool import check_trainable, copy_policy
from ..saved import flatten
from ..shifts import load_shifts
from . import summary
from .cells import Cell, Method, configure
from .summary import Record
from .sweep import default_jobs


def table_parser(command: str, purpose: str | None) -> argparse.ArgumentParser:
    """The flags that all these commands have; a command adds its own, and reads its lists with `leading_numbers`."""
    p = argparse.ArgumentParser(
        prog=f"python -m dho_plugin {command}",
        description=purpose,
        epilog="KEY VALUE options at the end are handed to every training: OPTIM.MAX_EPOCH 1",
    )
    p.add_argument("--dataset", default="shapes", help="name of a file in configs/datasets")
    p.add_argument("--root", default="", help="folder that holds the datasets")
    p.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    p.add_argument("--backbone", default="", help="student model or file")
    p.add_argument("--rows", action="append", default=[], metavar="TEXT", help="only rows with TEXT in their label")
    p.add_argument("--jobs", type=int, default=default_jobs(cuda=torch.cuda.is_available()), help="runs at a time")
    where = f"default output/{command}/DATASET; what is finished there is kept"
    p.add_argument("--output-dir", default="", help=where)
    p.add_argument("--json", default="", metavar="FILE", help="write one record for each row, column and seed")
    p.add_argument("--table", default="", metavar="FILE", help="write the document that is printed")
    p.add_argument("--dry-run", action="store_true", help="print the command line of every run, train nothing")
    p.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return p


def leading_numbers(given: Sequence[str]) -> tuple[list[int], list[str]]:
    """The numbers that a list of words begins with, and the other words: argparse gives --seeds all up to a flag.

    Commas separate numbers too.
    """
    numbers = list(takewhile(lambda word: all(part.lstrip("-").isdigit() for part in parts(word)), given))
    return [int(part) for word in numbers for part in parts(word)], list(given[len(numbers) :])


def leading_names(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """As leading_numbers, for names: the words up to the first configuration key."""
    known = flatten(cfg_default)
    key = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")
    names = list(takewhile(lambda word: word not in known and not key.fullmatch(word), given))
    return names, list(given[len(names) :])


def parts(word: str) -> list[str]:
    """What commas separate."""
    return [part for part in word.split(",") if part]


def expanded(names: Sequence[str]) -> list[str]:
    """Names of datasets, each once, "ten" standing for CoOp's ten."""
    return list(dict.fromkeys(name for given in names for name in (TEN if given == "ten" else (given,))))


def check_options(options: Sequence[str], taken: Collection[str]) -> None:
    """Raise UsageError for an option of all rows whose key is `taken`."""
    for key in sorted(set(taken).intersection(options[::2])):
        raise UsageError(f"{key} is what the rows of this table differ in, or what a flag gives to all: see --help")


def words(**flags: object) -> tuple[str, ...]:
    """Words of a command line for the flags that have a value."""
    return tuple(word for flag, value in flags.items() if value not in (None, "") for word in (f"--{flag}", str(value)))


def chosen(methods: Sequence[Method], texts: Sequence[str]) -> list[Method]:
    """The rows with one of the texts in their label, and the rows that these start from; all for no text."""
    wanted = {m.row for m in methods if not texts or any(text.casefold() in m.row.casefold() for text in texts)}
    if not wanted:
        raise UsageError(f"--rows {' '.join(texts)}: in none of {[method.row for method in methods]}")
    for method in reversed(methods):  # what a row starts from stands above it
        wanted |= {method.after} if method.row in wanted else set()
    return [method for method in methods if method.row in wanted]


def check_data(cells: Iterable[Cell]) -> None:
    """Build each training set once, and the shifts: what is missing is said, fetched or drawn before the first run."""
    configurations = [configure(cell)[0] for cell in cells]
    check_training_sets(configurations)
    with redirect_stdout(io.StringIO()):
        for cfg in configurations[:1]:
            load_shifts(cfg, SHIFTS.get(cfg.DATASET.NAME, {}))


def check_training_sets(configurations: Iterable[Any]) -> None:
    """As check_data, without the shifts."""
    with redirect_stdout(io.StringIO()):
        for cfg in {str(cfg.DATASET): cfg for cfg in configurations}.values():
            check_trainable(build_labeled_dataset(cfg), final_model=cfg.TEST.FINAL_MODEL, copies=copy_policy(cfg))


def command_lines(cells: Iterable[Cell], notes: Iterable[str]) -> str:
    """What --dry-run prints."""
    commands = [shlex.join(["python", "train.py", *cell.words]) for cell in cells]
    return "\n".join([*(f"# {note}" for note in notes), *commands])


def star(records: Iterable[Record]) -> str:
    """What `*` means with as many seeds as the records have."""
    seeds = len({record.seed for record in records})
    if seeds < 2:
        return "One seed has no standard error, so that no difference is marked."
    chance = 100 * summary.chance_of_a_star(seeds)
    return f"`*` marks more than two of them; over {seeds} seeds noise alone earns it in {chance:.0f} % of cases."


def short_of(records: Sequence[Record], pairs: Sequence[tuple[str, str]], columns: Sequence[str]) -> list[str]:
    """Paragraphs that name each cell in which a DHO row is not clearly above its rival; none for no pairs."""
    short = summary.not_beaten(records, pairs, columns)
    if short:
        said = "DHO rows that are not above what they are compared with by more than two standard errors:"
        return [said, "\n".join(f"* {line}" for line in short)]
    return ["Every DHO row is above all that it is compared with by more than two standard errors."] if pairs else []


def write(folder: Path, name: str, texts: Mapping[str, str]) -> None:
    """Leave files <name>.<ending> in the folder, each of its text."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in texts.items():
        (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")
