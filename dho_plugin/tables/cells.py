"""A cell of a table, a row at one seed: which train.py command line it is, running it, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import cli
from .._version import __version__
from ..errors import UsageError
from ..locks import held
from ..predicting import printable
from ..run_log import LOG, begin, written
from ..saved import check_same_settings, settings
from ..sealed import usable, write_whole
from ..shifts import Row
from ..stopping import Stopped, listening

RESULT = "result.json"
AFTER = "{after}"


class Method(NamedTuple):
    """A row of a table.

    Attributes:
        row: its label. flags: words of its train.py command line. options: KEY VALUE pairs, which stand behind them.
        control: the row that it is compared with. seeded: False where nothing depends on the seed; such a row is run
            once and entered for every seed.
        after: a row above whose run of the same seed must be finished first; "{after}" in flags and options stands for
            the output folder of that run.
        same_for: what else changes nothing in this row, in a table that has it: "shots", "block" (see by_shots.Block).
    """

    row: str
    flags: tuple[str, ...]
    options: tuple[str, ...] = ()
    control: str = ""
    seeded: bool = True
    after: str = ""
    same_for: tuple[str, ...] = ()


class Cell(NamedTuple):
    """A row at one seed, with its output folder and the whole of its train.py command line; group: what it is called
    after beside row and seed."""

    method: Method
    seed: int
    folder: Path
    words: tuple[str, ...]
    after: Path | None = None  # folder of the cell that it waits for
    group: str = ""

    def __str__(self) -> str:
        return f"{f'{self.group}, ' if self.group else ''}{self.method.row}, seed {self.seed}"


class Outcome(NamedTuple):
    """What became of a cell: accuracies by column, or an error. fresh: whether it was run just now."""

    cell: Cell
    accuracies: Row
    error: str = ""
    fresh: bool = True


def cell_folder(output: str | Path, row: str, seed: int) -> Path:
    """A row's folder at a seed, below the table's output folder."""
    return Path(output) / folder_name(row) / f"seed{seed}"


def folder_name(label: str) -> str:
    """A label in letters that need no quotes."""
    return re.sub(r"[^\w.-]+", "_", label).strip("_")


def plan(
    methods: Sequence[Method],
    seeds: Sequence[int],
    output: str | Path,
    flags: Sequence[str] = (),
    options: Sequence[str] = (),
    *,
    group: str = "",
    above: Sequence[Cell] = (),
    place: Callable[[Method, int], Path] | None = None,
) -> list[Cell]:
    """All cells, row by row.

    Args:
        methods: the rows. seeds: each row is run with each. output: where their folders stand.
        flags, options: shared by all rows; a row's own win over them.
        group: what the cells are called after. above: cells planned before that a row may start from too.
        place: the folder of a row at a seed; by default cell_folder's.
    """
    cells: list[Cell] = []
    for method in methods:
        folders = {(cell.method.row, cell.seed): cell.folder for cell in (*above, *cells)}
        for seed in seeds if method.seeded else seeds[:1]:
            after = folders.get((method.after, seed))
            if method.after and after is None:
                raise ValueError(f"{method.row!r} waits for {method.after!r}, which does not stand above it")
            own, last = ([w.replace(AFTER, str(after)) for w in part] for part in (method.flags, method.options))
            folder = place(method, seed) if place else cell_folder(output, method.row, seed)
            words = (*flags, *own, "--seed", str(seed), "--output-dir", str(folder), *options, *last)
            cells.append(Cell(method, seed, folder, words, after, group))
    return cells


def configure(cell: Cell) -> tuple[Any, Any]:
    """The cell's configuration and its parsed command line; UsageError as cli.build_config."""
    args = cli.parser().parse_args(list(cell.words))
    return cli.build_config(args), args


def finished(cell: Cell) -> Outcome | None:
    """The result of an earlier run, if there is one.

    Raises:
        UsageError: the cell cannot be configured; or its folder holds the result of other settings.
    """
    cfg, _ = configure(cell)
    result = read_result(cell.folder)
    if not result:
        return None
    check_same_settings(result["settings"], settings(cfg), cell.folder)
    if result.get("after") != started_from(cell):
        return None  # the trainer then says whether what it started from is still the same
    return Outcome(cell, result["accuracies"], fresh=False)


def started_from(cell: Cell) -> str | None:
    """What tells the result of the cell that this one waits for from that of another run; None for none."""
    result = read_result(cell.after) if cell.after is not None else {}
    if not result:
        return None
    return hashlib.sha256(json.dumps([result["settings"], result["accuracies"]]).encode()).hexdigest()


def environment(cfg: Any) -> str:
    """What a run depends on beside its settings."""
    device = "CUDA" if cfg.USE_CUDA and torch.cuda.is_available() else "CPU"
    return f"dho_plugin {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {device}"


def made_by(cells: Iterable[Cell]) -> list[str]:
    """The environments that finished cells were run in, which need not be the one at hand."""
    return sorted({result["made_by"] for result in (read_result(cell.folder) for cell in cells) if result})


def read_result(folder: Path) -> dict[str, Any]:
    """What a cell has left; empty where it has left none, or half of one, which is no mark of its end.

    Raises:
        UsageError: a folder that cannot be.
    """
    with usable(folder, "choose an output folder"):
        try:
            return json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}


def run_cell(cell: Cell, threads: int) -> Outcome:
    """Train and evaluate one cell in this process; what is printed goes to its log.txt, its end to result.json.

    A cell whose folder another process holds is not run, nor one that another has finished meanwhile.
    """
    torch.set_num_threads(threads)
    try:
        with held(cell.folder / LOG):
            return finished(cell) or _run(cell)
    except UsageError as error:
        return Outcome(cell, {}, f"error: {error}")


def _run(cell: Cell) -> Outcome:
    started = time.monotonic()
    begin(cell.folder)
    with written(cell.folder / LOG, append=True) as log, redirect_stderr(log):
        try:
            cfg, args = configure(cell)
            with listening():
                accuracies = cli.run(cfg, args)
        except Stopped as stop:
            print(stop)
            raise SystemExit(stop.status) from None  # not an outcome: the cell is not through
        except UsageError as error:
            print(f"error: {printable(str(error))}")
            return Outcome(cell, {}, f"error: {error}")
        except Exception as error:  # whatever it was, it is reported, and the other cells go on
            traceback.print_exc()
            return Outcome(cell, {}, f"{type(error).__name__}: {error}")
    result = {
        "row": cell.method.row,
        "seed": cell.seed,
        "accuracies": accuracies,
        "seconds": round(time.monotonic() - started, 1),
        "made_by": environment(cfg),
        "settings": settings(cfg),
        "after": started_from(cell),
    }
    write_whole(cell.folder / RESULT, json.dumps(result, indent=1) + "\n")
    return Outcome(cell, accuracies)
