"""log.txt of a run, across the processes that it takes: one file, in which no line of a step stands twice."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from .embedded.logger import Logger
from .manifest import read
from .sealed import usable
from .states import FOLDER as STATE

LOG = "log.txt"
_began: dict[Path, int] = {}  # where in a log the lines of this process begin


def open_log(folder: Path, *, fresh: bool = False) -> Logger:
    """Standard output that goes to <folder>/log.txt too; the caller puts it in place. Of nested logs the inner has it.

    The log of a run that is not over is gone on with. Any other that stands there is kept, and the new one has date and
    time in its name, as Dassl does it.

    Args:
        fresh: never go on with a log, for what is no training run.

    Raises:
        UsageError: a folder that cannot be made or written.
    """
    path = folder / LOG
    with usable(folder, "choose an output folder"):
        if (fresh and path.exists()) or (_size(path) and is_over(folder)):
            log = Logger(f"{path}{time.strftime('-%Y-%m-%d-%H-%M-%S')}")
        else:
            begin(folder)
            log = Logger(str(path), append=True)
    if isinstance(log.console, Logger):  # or the result of a stage one would stand in the log of stage two
        log.console = log.console.console
    return log


@contextmanager
def written(path: Path, *, append: bool = False) -> Iterator[Logger]:
    """Within this context what is printed goes to a file, and not to the console."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),  # for the logger to take as its console
        Logger(str(path), append=append) as log,
        redirect_stdout(log),
    ):
        yield log


def begin(folder: Path) -> None:
    """Take what is written to a run's log from here on for the lines of this process."""
    path = folder / LOG
    _began[path.absolute()] = _size(path)


def _size(path: Path) -> int:
    """Bytes of a log; 0 for none, and for one that was made only to be locked."""
    return path.stat().st_size if path.exists() else 0


def is_over(folder: Path) -> bool:
    """Whether the run that left a log has come to its end."""
    manifest = read(folder)
    if manifest:
        return manifest["finished"] is not None and not any((folder / STATE).glob("step-*.pt"))
    return "\nFinish training\n" in (folder / LOG).read_text(encoding="utf-8", errors="replace")


def length(folder: str) -> int | None:
    """Bytes of a run's log as it stands; None where this process writes none."""
    path = Path(folder, LOG).absolute()
    if path not in _began or not path.exists():
        return None
    sys.stdout.flush()
    return path.stat().st_size


def cut(folder: str, end: int) -> None:
    """Take the lines out of a run's log that the steps to come will write again.

    Args:
        end: of what stays, in bytes; the lines of this process, which follow, stay too.
    """
    path = Path(folder, LOG).absolute()
    began = _began.get(path)
    if began is None or not end < began:
        return
    sys.stdout.flush()
    with path.open("r+b") as file:
        file.seek(began)
        own = file.read()
        file.seek(end)
        file.write(own)
        file.truncate()
        os.fsync(file.fileno())
    _began[path] = end
