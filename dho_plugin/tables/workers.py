"""The processes that cells run in: which GPU each sees, and that they end with the command that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import wait
from threading import Thread, current_thread, main_thread
from types import TracebackType
from typing import Any

import torch

from ..stopping import SIGNALS

DEVICES = "CUDA_VISIBLE_DEVICES"


def begin(device: str = "") -> None:
    """The first thing that a worker does, before anything asks for a GPU.

    Args:
        device: the entry of CUDA_VISIBLE_DEVICES that it is to see; empty for all that its parent sees.
    """
    if device:
        os.environ[DEVICES] = device
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the command alone, which passes it on once
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()


def end_with(sentinel: int) -> None:
    """Wait for the end of the parent process, then end this one and all that it started, at once.

    A command that is started again would otherwise write in the same folders as the worker of the one that was killed.
    """
    wait([sentinel])
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), signal.SIGKILL)  # its loaders' processes too
    os._exit(1)


def visible_devices() -> list[str]:
    """GPUs that this process may use, in the words of CUDA_VISIBLE_DEVICES; as CUDA does, up to the first "-1"."""
    given = os.environ.get(DEVICES)
    if given is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    names = [name.strip() for name in given.split(",")]
    return names[: next((at for at, name in enumerate(names) if name in ("", "-1")), len(names))]


class Interruption:
    """Notes a signal to stop in place of dying of it, and passes it on to the worker processes started inside.

    Attributes:
        signal: the first signal that came; 0 for none. The second Ctrl-C kills the workers.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._hurry = False
        self._told: set[int] = set()
        self._others: set[int | None] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._others = {child.pid for child in multiprocessing.active_children()}
        if current_thread() is main_thread():  # nowhere else may a handler be set
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is not None:
            self.pass_on()  # nobody is left to enter what they come to

    def _note(self, number: int, frame: Any) -> None:
        self._hurry = bool(self.signal) and number == signal.SIGINT
        self.signal = self.signal or number

    def pass_on(self) -> None:
        """Send SIGTERM to each worker, once, whatever came: a cell finishes its step, saves and leaves."""
        for child in multiprocessing.active_children():
            if child.pid is None or child.pid in self._others:
                continue
            if self._hurry:
                child.kill()
            elif child.pid not in self._told:
                self._told.add(child.pid)
                child.terminate()
