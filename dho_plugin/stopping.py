"""Being told to stop: SIGTERM, SIGINT or SIGUSR1 sets a flag, and loops ask for it where nothing would be lost.

Under Slurm, `sbatch --signal=USR1@120` sends SIGUSR1 before the time is up; the job is then put back into the queue.
A second SIGINT (Ctrl-C) stops at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .distributed import agreed

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
REQUEUE = getattr(signal, "SIGUSR1", None)  # asks for the job to be put back into the queue as well
LAST_SECONDS = 20  # of a loader's worker that was told to end
_asked = 0  # the signal that has come, 0 for none


class Stopped(Exception):
    """A run has stopped because it was told to, with all that it had done saved.

    Attributes:
        number: of the signal. status: the exit status of a process that it ends, 128 + number as shells have it: 143
            for SIGTERM, 130 for SIGINT, 138 for SIGUSR1.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; the same command goes on from there")
        self.number, self.status = number, 128 + number


def requested() -> int:
    """The signal that has come to this process, 0 for none."""
    return _asked


def check(where: str, *, alone: bool = False) -> None:
    """Raise Stopped if a signal has come, in all processes if it has come to one.

    Args:
        where: what is being done, for the message: "in the evaluation". alone: other processes may not come here.
    """
    number = requested() if alone else agreed(requested())
    if number:
        raise Stopped(number, where)


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    if number == signal.SIGINT and _asked:
        raise KeyboardInterrupt
    _asked = _asked or number


@contextmanager
def listening() -> Iterator[None]:
    """Within this context the signals set the flag; in a thread that is not the main one they stay what they are."""
    global _asked
    if threading.current_thread() is not threading.main_thread() or _listening():
        yield
        return
    _asked = 0
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = 0  # what runs next in this process was not asked to stop


def _listening() -> bool:
    return signal.getsignal(signal.SIGTERM) is _note


def deaf(_: int = 0) -> None:
    """Let a loader's worker leave signals to the process that it works for (worker_init_fn).

    A scheduler, and Ctrl-C in a terminal, signal the whole group: a worker that died of it would take the step with it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Python ends a worker that is left over by SIGTERM, and waits for it: it stays as long as a step may take.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_SECONDS))


def requeue() -> str:
    """Put this Slurm job back into the queue; what to tell people, empty outside of Slurm and under submitit.

    submitit puts back its jobs itself, and a job put back twice would be ended as soon as it has begun again.
    """
    job, scontrol = os.environ.get("SLURM_JOB_ID", ""), shutil.which("scontrol")
    if not job or scontrol is None or "SUBMITIT_EXECUTOR" in os.environ:
        return ""
    again = f"restart {int(os.environ.get('SLURM_RESTART_COUNT') or 0) + 1} of Slurm job {job}"
    done = subprocess.run([scontrol, "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{again}: scontrol requeue failed ({done.stderr.strip()}): submit it again"
    return f"{again} is in the queue"
