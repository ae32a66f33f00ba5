"""Many cells: several at a time, none twice, each after the one that it waits for."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from ..errors import UsageError
from ..predicting import printable
from .cells import LOG, Cell, Outcome, finished, run_cell
from .summary import Record
from .workers import Interruption, begin

TICK = 0.5  # seconds between two looks at signals and at the display
INTERRUPTED = "interrupted; run again, it goes on"
Slot = Callable[[], Executor]
"""Opens a place where one cell runs at a time: an executor of one process, or one that hands cells to a queue."""


class Display(Protocol):
    """What is told how the cells get on."""

    def started(self, cell: Cell) -> None:
        """A cell was given to a slot."""

    def through(self, outcome: Outcome) -> None:
        """A cell is through, or was before."""

    def tick(self) -> None:
        """Some time has passed."""


def sweep(
    cells: Sequence[Cell], seeds: Sequence[int], *, jobs: int, threads: int = 0
) -> tuple[list[Record], list[Outcome]]:
    """Run what is not finished, and enter it in one table whose columns are the test sets.

    Args:
        cells, jobs, threads: see `finish`. seeds: those that a row without seed is entered for.

    Returns:
        One record for each column, row and seed; and the cells that failed, none of which stopped another.

    Raises:
        UsageError: as `finish`.
    """
    all_of_them = finish(cells, jobs=jobs, threads=threads)
    records = [
        Record(cell.method.row, column, seed, values[column])
        for cell, values in ((outcome.cell, outcome.accuracies) for outcome in all_of_them)
        for seed in entered(cell, seeds)
        for column in values
    ]
    return records, [outcome for outcome in all_of_them if outcome.error]


def entered(cell: Cell, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds that the result of a cell counts for."""
    return (cell.seed,) if cell.method.seeded else seeds


def finish(
    cells: Sequence[Cell],
    *,
    jobs: int,
    threads: int = 0,
    slots: Sequence[Slot] | None = None,
    display: Display | None = None,
) -> list[Outcome]:
    """Run what is not finished and say what became of each cell.

    Args:
        cells: see cells.plan. jobs: runs at a time, each in a process of its own.
        threads: of torch in each run; 0 for an equal share of the processors.
        slots: where to run them, in place of those processes. display: a line for each cell by default.

    Returns:
        One outcome a cell, in the order in which they were through; none that failed stopped another.

    Raises:
        UsageError: before anything is run, if a cell cannot be configured or its folder holds other settings.
        SystemExit: 128 + the number of a signal to stop, after the cells that ran have saved their state and left.
    """
    slots = [worker] * jobs if slots is None else slots
    display = Lines(len(cells)) if display is None else display
    through: list[Outcome] = []
    for outcome in outcomes(cells, slots, threads or max(1, (os.cpu_count() or 1) // len(slots)), display):
        through.append(outcome)
        display.through(outcome)
    return through


class Lines:
    """A display of one line for each cell that is through, and with `starts` for each that is started."""

    def __init__(self, count: int, *, starts: bool = False) -> None:
        self._count, self._through, self._starts, self._began = count, 0, starts, time.monotonic()

    def started(self, cell: Cell) -> None:
        """A line if it was asked for."""
        if self._starts:
            self._line(f"{cell}: started")

    def through(self, outcome: Outcome) -> None:
        """A line with the accuracies, or the error."""
        self._through += 1
        values = "  ".join(f"{column} {value:.1f}" for column, value in outcome.accuracies.items())
        again = "" if outcome.fresh else "  (finished before)"
        self._line(failure(outcome) if outcome.error else f"{outcome.cell}: {values}{again}")

    def tick(self) -> None:
        """Nothing."""

    def _line(self, text: str) -> None:
        took = time.monotonic() - self._began
        print(f"[{self._through}/{self._count}] {took:4.0f} s  {text}", flush=True)


def outcomes(cells: Sequence[Cell], slots: Sequence[Slot], threads: int, display: Display) -> Iterator[Outcome]:
    """Cells finished earlier, then the others as they finish; SystemExit after a signal, see `finish`."""
    # All, before the first is run: a mistake is said at once.
    found = [outcome for outcome in map(finished, cells) if outcome is not None]
    through = {outcome.cell.folder for outcome in found}
    before = [outcome for outcome in found if outcome.cell.after is None or outcome.cell.after in through]
    waiting = [cell for cell in cells if cell.folder not in {outcome.cell.folder for outcome in before}]
    succeeded: dict[Path, bool] = {}
    for outcome in before:
        succeeded[outcome.cell.folder] = True
        yield outcome
    with ExitStack() as stack:
        idle = [(slot, stack.enter_context(slot())) for slot in slots[: len(waiting)]]
        stop = stack.enter_context(Interruption())
        running: dict[Future[Outcome], tuple[Cell, Slot, Executor]] = {}
        while running or (waiting and not stop.signal):
            for cell in () if stop.signal else tuple(waiting):
                # True, False, or None while the one that it waits for is not through
                ready = cell.after is None or succeeded.get(cell.after)
                if ready is False:
                    waiting.remove(cell)
                    succeeded[cell.folder] = False
                    yield Outcome(cell, {}, f"not run, since {cell.method.after!r} failed")
                elif ready and idle:
                    waiting.remove(cell)
                    display.started(cell)
                    slot, place = idle.pop(0)
                    try:
                        future = place.submit(run_cell, cell, threads)
                    except BrokenExecutor:  # killed while it had nothing to do
                        place = stack.enter_context(slot())
                        future = place.submit(run_cell, cell, threads)
                    running[future] = cell, slot, place
            if stop.signal:
                stop.pass_on()
                # What only stands in a queue is left there.
                running = {future: entry for future, entry in running.items() if not future.cancel()}
            for future in wait(running, timeout=TICK, return_when=FIRST_COMPLETED).done:
                cell, slot, place = running.pop(future)
                outcome = outcome_of(future, cell, stopped=bool(stop.signal))
                broken = isinstance(future.exception(), BrokenExecutor) and not stop.signal
                idle.append((slot, stack.enter_context(slot()) if broken else place))
                succeeded[cell.folder] = not outcome.error
                yield outcome
            display.tick()
        if stop.signal:
            raise SystemExit(128 + stop.signal)


def outcome_of(future: Future[Outcome], cell: Cell, *, stopped: bool) -> Outcome:
    """What a slot came to with a cell; `stopped` where it was told to leave."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, (SystemExit, KeyboardInterrupt)) or (stopped and isinstance(error, BrokenExecutor)):
        return Outcome(cell, {}, INTERRUPTED)
    died = isinstance(error, BrokenExecutor)
    return Outcome(cell, {}, "its process died (out of memory?)" if died else f"{type(error).__name__}: {error}")


def worker(device: str = "") -> Executor:
    """One process, used for one cell after the other: where a cell brings it down, no other cell is lost with it.

    Args:
        device: see workers.begin.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=begin, initargs=(device,))


def report_failures(failed: Sequence[Outcome]) -> int:
    """Say what failed and where its log is; the exit status, 1 if anything did."""
    for outcome in failed:
        print(failure(outcome, ""), file=sys.stderr)
    return 1 if failed else 0


def failure(outcome: Outcome, word: str = "failed, ") -> str:
    """What failed, why, and where its log is."""
    log = outcome.cell.folder / LOG
    seen = f" (see {log})" if log.is_file() else ""
    return printable(f"{outcome.cell}: {'' if outcome.error == INTERRUPTED else word}{outcome.error}{seen}")


def default_jobs(*, cuda: bool) -> int:
    """One run at a time on a GPU, else one for each processor, at most eight."""
    return 1 if cuda else min(8, os.cpu_count() or 1)


def check_request(seeds: Sequence[int], jobs: int, files: Mapping[str, str]) -> None:
    """Refuse what would fail or mislead only after everything is trained.

    Args:
        files: the path given by flag, empty for none.
    """
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: at least one run at a time")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds {' '.join(map(str, seeds))}: expected different numbers from 0 on")
    for flag, file in files.items():
        if file and not Path(file).absolute().parent.is_dir():
            raise UsageError(f"{flag} {file}: there is no folder {Path(file).absolute().parent}")
