"""Processes that wait for calls, one thread each: on their own, or together as torchrun would have started them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..distributed import PeerStopped, joined
from ..errors import UsageError

FORKED = "forkserver" in multiprocessing.get_all_start_methods()  # one process imports for all
SLOW = ["torch.distributed", "torch.nn.parallel", "dho_plugin.cli"]  # to import
PATIENCE = 10.0  # seconds for the end of a process that has nothing more to do


class Team:
    """Processes that live as long as a context; several of them are one run, see distributed.joined.

    Args:
        size: how many. make: called as make(*args) in each of them, gives the object whose methods are called; both
            can be pickled.
    """

    def __init__(self, size: int, make: Callable[..., Any], *args: Any) -> None:
        context: Any = multiprocessing.get_context("forkserver" if FORKED else "spawn")
        if FORKED:
            context.set_forkserver_preload(SLOW)
        self.ends: list[Connection] = []
        self.processes = []
        port = _free_port()
        for rank in range(size):
            end, there = context.Pipe()
            given = (there, _environment(size, rank, port), make, args)
            self.processes.append(context.Process(target=_serve, args=given, daemon=True))
            self.processes[-1].start()
            there.close()
            self.ends.append(end)

    def call(self, method: str, *args: Any) -> list[Any]:
        """What the method returns in each process; all of them run it at the same time.

        Raises:
            UsageError: as one of them.
            RuntimeError: one of them has failed or ended, with its traceback.
        """
        for rank, end in enumerate(self.ends):
            try:
                end.send((method, args))
            except OSError:
                raise self._ended(rank) from None
        found: dict[int, Any] = {}
        while len(found) < len(self.ends):
            some = wait([end for rank, end in enumerate(self.ends) if rank not in found])
            for rank, end in enumerate(self.ends):
                if end in some:
                    try:
                        found[rank] = self._answer(rank)
                    except PeerStopped as stopped:  # another is about to say why
                        found[rank] = stopped
        for one in found.values():
            if isinstance(one, PeerStopped):
                raise one
        return [found[rank] for rank in range(len(self.ends))]

    def _answer(self, rank: int) -> Any:
        try:
            kind, value = self.ends[rank].recv()
        except (EOFError, OSError):
            raise self._ended(rank) from None
        if kind is not None:
            raise kind(value)
        return value

    def _ended(self, rank: int) -> RuntimeError:
        self.processes[rank].join(PATIENCE)
        return RuntimeError(f"process {rank} has ended with status {self.processes[rank].exitcode}")

    def __enter__(self) -> Team:
        return self

    def __exit__(self, failed: Any, *rest: Any) -> None:
        for end in self.ends:
            end.close()
        for process in self.processes:
            if failed is None:
                process.join(PATIENCE)
            process.kill()
            process.join()


def _environment(size: int, rank: int, port: int) -> dict[str, str]:
    """That of this process, with what torchrun would set on one machine."""
    place: dict[str, object] = {
        "WORLD_SIZE": size,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": port,
    }
    place |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
    return {**os.environ, **{name: str(value) for name, value in place.items()}}


def _serve(end: Connection, environment: dict[str, str], make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Answer calls until nobody can make any more; an answer is the kind of error, or None, and a value or message.

    What a run says of itself is nobody's concern here.
    """
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
            joined(cuda=False),
        ):
            server = make(*args)
            while True:
                method, given = end.recv()
                end.send((None, getattr(server, method)(*given)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        plain = isinstance(error, (UsageError, PeerStopped))
        with suppress(OSError):  # nobody listens any more
            end.send((type(error), str(error)) if plain else (RuntimeError, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
