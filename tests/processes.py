"""Running a function in several processes at once, in the environment that torchrun gives them.

They are forked from one process that has imported what is slow to import, and has done nothing else.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from unittest.mock import patch

SLOW = ["torch", "torch.distributed", "torch.nn.parallel", "dho_plugin.cli"]
SECONDS = 120.0  # for all processes of a call


class Outcome(NamedTuple):
    """What became of a process.

    Attributes:
        value: what the function returned. error: its exception's traceback, or how the process ended; empty for none.
        printed: on standard output, as far as the function did not redirect it. warned: on standard error.
    """

    value: Any = None
    error: str = ""
    printed: str = ""
    warned: str = ""


def run(count: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """Call `function(*args)` in `count` processes; what each returned.

    Args:
        function, args: can be pickled; the function is one of a module. seconds: for all of them together.

    Raises:
        AssertionError: one has failed, with its traceback.
        TimeoutError: not all have ended in time; all are killed.
    """
    found = outcomes(count, function, *args, seconds=seconds)
    failed = [f"process {rank}: {outcome.error}" for rank, outcome in enumerate(found) if outcome.error]
    assert not failed, "\n".join(failed)
    return [outcome.value for outcome in found]


def outcomes(count: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Outcome]:
    """As `run`, for processes that are to fail."""
    context, port, until = _context(), _free_port(), time.monotonic() + seconds
    ends, processes = [], []
    for rank in range(count):
        here, there = context.Pipe(duplex=False)
        place = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        place |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        own = multiprocessing.get_start_method()  # of what these start in turn
        process = context.Process(target=_call, args=(there, environment, own, function, args))
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    try:
        late = [rank for rank, end in enumerate(ends) if not end.poll(max(0.0, until - time.monotonic()))]
        found = [None if rank in late else _outcome(ends[rank], processes[rank]) for rank in range(count)]
        if late:
            raise TimeoutError(f"processes {late} have not ended in {seconds} s; of the others: {found}")
        return [outcome for outcome in found if outcome is not None]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _outcome(end: Connection, process: Any) -> Outcome:
    try:
        return Outcome(*pickle.loads(end.recv_bytes()))
    except EOFError:
        process.join()
        return Outcome(error=f"ended with status {process.exitcode}")


def _call(
    end: Connection, environment: dict[str, str], own: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    multiprocessing.set_start_method(own, force=True)
    os.environ.clear()
    os.environ.update(environment)
    printed, warned = io.StringIO(), io.StringIO()
    value, error = pickle.dumps(None), ""
    try:
        with redirect_stdout(printed), redirect_stderr(warned):
            value = pickle.dumps(function(*args))
    except BaseException:
        error = traceback.format_exc()
    end.send_bytes(pickle.dumps((pickle.loads(value), error, printed.getvalue(), warned.getvalue())))


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW)
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    return context


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
