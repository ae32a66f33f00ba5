"""Many cells: several at a time, none twice, each after the one that it waits for."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from .cells import LOG, Cell, Outcome, finished, run_cell
from .errors import UsageError
from .report import Record


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


def finish(cells: Sequence[Cell], *, jobs: int, threads: int = 0) -> list[Outcome]:
    """Run what is not finished and print a line for each cell.

    Args:
        cells: see cells.plan. jobs: runs at a time.
        threads: of torch in each run; 0 for an equal share of the processors.

    Returns:
        One outcome a cell, in the order in which they were through; none that failed stopped another.

    Raises:
        UsageError: before anything is run, if a cell cannot be configured or its folder holds other settings.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    through: list[Outcome] = []
    started = time.monotonic()
    for outcome in outcomes(cells, jobs, threads):
        through.append(outcome)
        values = "  ".join(f"{column} {value:.1f}" for column, value in outcome.accuracies.items())
        shown = "failed" if outcome.error else values
        again = "" if outcome.fresh else "  (finished before)"
        took = time.monotonic() - started
        print(f"[{len(through)}/{len(cells)}] {took:4.0f} s  {outcome.cell}: {shown}{again}", flush=True)
    return through


def outcomes(cells: Sequence[Cell], jobs: int, threads: int) -> Iterator[Outcome]:
    """Cells finished earlier, then the others as they finish."""
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
        idle = [stack.enter_context(worker()) for _ in range(min(jobs, len(waiting)))]
        running: dict[Future[Outcome], tuple[Cell, Executor]] = {}
        while waiting or running:
            for cell in tuple(waiting):
                # True, False, or None while the one that it waits for is not through
                ready = cell.after is None or succeeded.get(cell.after)
                if ready is False:
                    waiting.remove(cell)
                    succeeded[cell.folder] = False
                    yield Outcome(cell, {}, f"not run, since {cell.method.after!r} failed")
                elif ready and idle:
                    waiting.remove(cell)
                    process = idle.pop()
                    running[process.submit(run_cell, cell, threads)] = cell, process
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, process = running.pop(future)
                died = isinstance(future.exception(), BrokenExecutor)
                outcome = Outcome(cell, {}, "its process died (out of memory?)") if died else future.result()
                idle.append(stack.enter_context(worker()) if died else process)
                succeeded[cell.folder] = not outcome.error
                yield outcome


def worker() -> Executor:
    """One process, used for one cell after the other: where a cell brings it down, no other cell is lost with it."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def report_failures(failed: Sequence[Outcome]) -> int:
    """Say what failed and where its log is; the exit status, 1 if anything did."""
    for outcome in failed:
        log = outcome.cell.folder / LOG
        print(f"{outcome.cell}: {outcome.error}{f' (see {log})' if log.is_file() else ''}", file=sys.stderr)
    return 1 if failed else 0


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
