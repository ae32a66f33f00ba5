"""Children of the test process, forked so that they import nothing anew: killed at a chosen moment, or held short."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def child(target: Callable[..., Any], *args: Any) -> Any:
    """A child that calls `target(*args)` when it is started."""
    return multiprocessing.get_context("fork").Process(target=target, args=args)


def killed(work: Callable[[Callable[[], None]], Any]) -> None:
    """Run `work(reached)` in a child, and end the child with kill -9 where it first calls `reached`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def reached() -> None:
        sender.send("here")
        threading.Event().wait()

    process = child(work, reached)
    process.start()
    assert receiver.poll(60) and receiver.recv() == "here"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def error_of(work: Callable[[], Any], file_bytes: int) -> BaseException | None:
    """What `work()` raises in a child whose files may have so many bytes."""
    import resource

    receiver, sender = multiprocessing.Pipe(duplex=False)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
        try:
            work()
            sender.send(None)
        except BaseException as error:
            sender.send(error)

    process = child(limited)
    process.start()
    assert receiver.poll(60)
    raised = receiver.recv()
    process.join()
    return raised
