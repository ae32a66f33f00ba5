"""One process at a time in the folder of a run: an advisory lock, which goes with its holder, however that ends.

What is locked is log.txt, which a run leaves in any case: on network disks files can be locked, and folders cannot.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError
from .sealed import usable

_held: set[int] = set()  # open files of this process, whose locks it holds


@contextmanager
def held(log: Path) -> Iterator[None]:
    """Hold a run's folder within this context, where the file system knows locks; else nobody is kept out.

    Args:
        log: a file that stays as it is, in a folder; both are made if they are not there.

    Raises:
        UsageError: another process holds it; which one, as far as the system tells. It cannot be made or written.
    """
    with usable(log.parent, "choose an output folder"):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(file)
    try:
        if not _locked(file):
            raise UsageError(
                f"{log.parent} is in use: {_holder(file)} has a run in it. Wait for its end, and the same command goes "
                "on; or choose another folder"
            )
        yield
    finally:
        if file in _held:
            _held.remove(file)
            os.close(file)


def _locked(file: int) -> bool:
    """Lock an open file; False where another has done so."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _holder(file: int) -> str:
    """Who has locked an open file: Linux lists the locks of this machine, each with a device and a number on it."""
    status = os.fstat(file)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            words = line.split()
            if place in words[5:6] and words[1] == "FLOCK":
                return f"process {words[4]} on {platform.node()}"
    return "another process, maybe on another machine,"


def _let_go() -> None:
    """In a forked child: a loader's process that outlives its run must not hold the folder."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
