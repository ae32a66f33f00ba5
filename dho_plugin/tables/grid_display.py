"""What a person sees of a grid that runs: one table, drawn again in place, and how long it will still take."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple, TextIO

from .cells import Cell, Outcome
from .sweep import failure

WAITING, RUNNING, FINISHED, FAILED = ".>#x"
NAMES = {RUNNING: "running", WAITING: "waiting", FINISHED: "finished", FAILED: "failed"}


class Place(NamedTuple):
    """Where a cell stands in the table: its row, and its column."""

    row: str
    column: str


class State(NamedTuple):
    """How far a cell is. since: when it was started. seconds: how long it took, None where that is not known."""

    mark: str = WAITING
    accuracy: float | None = None
    since: float = 0.0
    seconds: float | None = None


def table(places: Mapping[Path, Place], states: Mapping[Path, State]) -> list[str]:
    """A line for each row: in each column the mean accuracy so far, and a mark for each seed."""
    rows = list(dict.fromkeys(place.row for place in places.values()))
    columns = list(dict.fromkeys(place.column for place in places.values()))
    words = [["", *columns]]
    for row in rows:
        line = [row]
        for column in columns:
            found = [states[folder] for folder, place in places.items() if place == (row, column)]
            values = [state.accuracy for state in found if state.accuracy is not None]
            shown = f"{mean(values):.1f}" if values else "-"
            line.append(f"{shown} {''.join(state.mark for state in found)}" if found else "")
        words.append(line)
    widths = [max(len(line[at]) for line in words) for at in range(len(words[0]))]
    pad = [str.ljust] + [str.rjust] * len(columns)
    return [
        "  ".join(put(word, width) for put, word, width in zip(pad, line, widths, strict=True)).rstrip()
        for line in words
    ]


def remaining(places: Mapping[Path, Place], states: Mapping[Path, State], now: float, slots: int) -> float | None:
    """Seconds until all cells are through, from those of the same row and column, else of the row, else of any.

    None before the first has finished. A cell that runs longer than expected counts as about to end.
    """
    took: dict[object, list[float]] = {}
    for folder, state in states.items():
        if state.mark == FINISHED and state.seconds is not None:
            for key in (places[folder], places[folder].row, None):
                took.setdefault(key, []).append(state.seconds)
    if not took:
        return None
    left = []
    for folder, state in states.items():
        if state.mark in (WAITING, RUNNING):
            place = places[folder]
            expected = mean(next(took[key] for key in (place, place.row, None) if key in took))
            left.append(max(0.0, expected - (now - state.since if state.mark == RUNNING else 0.0)))
    # No cell is shared between slots: the longest alone is a lower bound.
    return max([sum(left) / slots, *left], default=0.0)


def headline(states: Mapping[Path, State], elapsed: float, left: float | None) -> str:
    """Counts, time passed, and the time left where that can be said."""
    marks = Counter(state.mark for state in states.values())
    counts = ", ".join(f"{marks[mark]} {name} ({mark})" for mark, name in NAMES.items() if marks[mark])
    ahead = marks[WAITING] + marks[RUNNING]
    eta = f", about {clock(left)} left" if left is not None and ahead else ""
    return f"[{len(states) - ahead}/{len(states)}] {counts}; {clock(elapsed)}{eta}"


def clock(seconds: float) -> str:
    """A duration as H:MM:SS."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


class LiveTable:
    """A display (see sweep.Display) that draws the table again in place whenever something has changed.

    Args:
        cells: all of them. places: by the cell's folder. slots: cells at a time, 0 where nobody knows (a queue).
        seconds: how long the cells that were finished before took. stream: a terminal.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        places: Mapping[Path, Place],
        slots: int,
        seconds: Mapping[Path, float],
        stream: TextIO | None = None,
    ) -> None:
        self._places, self._slots, self._seconds = places, slots, seconds
        self._states = {cell.folder: State() for cell in cells}
        self._stream = stream or sys.stdout
        self._began, self._drawn, self._lines = time.monotonic(), "", 0

    def started(self, cell: Cell) -> None:
        """Marks it."""
        self._states[cell.folder] = State(RUNNING, since=time.monotonic())

    def through(self, outcome: Outcome) -> None:
        """Marks it; an error stands above the table and stays there."""
        folder, now = outcome.cell.folder, time.monotonic()
        before = self._states[folder]
        seconds = now - before.since if outcome.fresh else self._seconds.get(folder)
        accuracy = next(iter(outcome.accuracies.values()), None)
        self._states[folder] = State(FAILED if outcome.error else FINISHED, accuracy, before.since, seconds)
        if outcome.error:
            self._erase()
            print(failure(outcome), file=self._stream)

    def tick(self) -> None:
        """Draws what has changed, the clock included."""
        now = time.monotonic()
        left = remaining(self._places, self._states, now, self._slots) if self._slots else None
        size = shutil.get_terminal_size()
        lines = [headline(self._states, now - self._began, left), *self._fitting(size.lines - 3)]
        text = "\n".join(line[: size.columns - 1] for line in lines)
        if text != self._drawn:
            self._erase()
            print(text, file=self._stream, flush=True)
            self._drawn, self._lines = text, len(lines)

    def _fitting(self, height: int) -> list[str]:
        """The table, or as many of its rows as `height` has room for: those where something runs come first."""
        header, *rows = table(self._places, self._states)
        if len(rows) <= height:
            return [header, *rows]
        kept = sorted(sorted(range(len(rows)), key=lambda at: (RUNNING not in rows[at], at))[: max(0, height - 1)])
        return [header, *(rows[at] for at in kept), f"... {len(rows) - len(kept)} more rows"]

    def _erase(self) -> None:
        if self._lines:
            self._stream.write(f"\x1b[{self._lines}A\x1b[J")
        self._drawn, self._lines = "", 0
