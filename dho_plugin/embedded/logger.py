"""Copy of standard output in `log.txt`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ..sealed import NO_ROOM, disk_full
from .dataset import mkdir_if_missing


class Logger:
    """A stand-in for standard output that writes to the console and to a file.

    Args:
        fpath: file to write; None for the console alone. append: go on with what the file holds.
    """

    def __init__(self, fpath: str | None = None, *, append: bool = False) -> None:
        self.console: TextIO = sys.stdout
        self.file: TextIO | None = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath) or ".")
            # Line by line, so that the log of a killed run is complete.
            self.file = open(fpath, "a" if append else "w", buffering=1, encoding="utf-8")  # noqa: SIM115

    def write(self, msg: str) -> int:
        """Write to both.

        Raises:
            DiskFull: the file does not fit; from then on there is the console alone.
        """
        count = self.console.write(msg)
        self._on_file(lambda file: file.write(msg))
        return count

    def flush(self) -> None:
        """Flush both; raises as `write`."""
        self.console.flush()
        self._on_file(lambda file: file.flush())

    def close(self) -> None:
        """Close the file; the console belongs to the process and stays open."""
        self._on_file(lambda file: file.close())
        self.file = None

    def _on_file(self, act: Callable[[TextIO], Any]) -> None:
        if self.file is None:
            return
        try:
            act(self.file)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            file, self.file = self.file, None
            with suppress(OSError):  # it tries once more to write what is left
                file.close()
            raise disk_full(Path(file.name), error.errno, "what was saved of the run stays") from error

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        # isatty(), fileno(), encoding: whatever else libraries ask of standard output.
        if name == "console":
            raise AttributeError(name)
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Send standard output to `<output>/log.txt` too (or to `output`, if it ends in .txt or .log).

    A file that exists is kept: the date and time are then added to the new file's name.
    """
    if output is None:
        return
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(path):
        path += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(path)
