"""Several processes that take the steps of one: each computes its part of every batch, and all hold equal weights.

torchrun starts them. Without it every function here works for the single process that is left, and costs nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from .errors import UsageError
from .launch import Place, place

# Minutes that a process waits for another that lives, by default: one may have to read a data set that the others find.
PATIENCE, MINUTES = "DHO_PATIENCE", 24 * 60
# What gloo says of a connection whose other end has gone.
GONE = ("closed by peer", "reset by peer", "Broken pipe", "pair closure", "Socket closed", "Connection refused")
LATE = "Timed out"  # what it says of one that lives, and does not come
STOPPED = "another process of this run has stopped, and this one with it: what the other says tells why"

Value = TypeVar("Value")


class PeerStopped(RuntimeError):
    """Another process of the run has ended or failed; what it says of itself tells why."""


def world_size() -> int:
    """How many processes take a step together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the one that prints and writes."""
    return rank() == 0


# Joining


@contextmanager
def joined(*, cuda: bool = True) -> Iterator[None]:
    """Within this context the processes that torchrun started are one run, in which only the first of them speaks.

    For an entry point, around all that a run does. Exceptions have to leave the context: that is how the other
    processes, which wait for this one's part, learn of them. They then raise PeerStopped.

    Args:
        cuda: whether the run uses a GPU where there is one; LOCAL_RANK says which.

    Raises:
        UsageError: more processes than GPUs on this machine; part of torchrun's environment; copies that srun started;
            a DHO_PATIENCE that is none.
        PeerStopped: another process has ended early, or has not come in time (see `patience`).
    """
    if dist.is_available() and dist.is_initialized():
        yield
        return
    here = place()
    if here is None:
        yield
        return
    cuda = cuda and torch.cuda.is_available()
    if cuda:
        _take_gpu(here)
    wait = patience()
    with _noticing():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=wait)
    whole = False
    try:
        with _noticing(), _silence() if here.rank else nullcontext():
            yield
        whole = True
    finally:
        # With a process gone, nccl could wait for it here; the end of this process frees what it holds as well.
        if whole or not cuda:
            dist.destroy_process_group()


def patience() -> timedelta:
    """How long a process waits for another that stands still without dying: DHO_PATIENCE minutes."""
    given = os.environ.get(PATIENCE) or str(MINUTES)
    try:
        wait = timedelta(minutes=float(given))
    except (ValueError, OverflowError):
        wait = timedelta()
    if wait <= timedelta():
        raise UsageError(f"{PATIENCE}={given}: expected minutes that a process waits for another, such as 30")
    return wait


def _take_gpu(here: Place) -> None:
    there = torch.cuda.device_count()
    if here.local_rank >= there:
        given = os.environ.get("LOCAL_WORLD_SIZE") or f"more than {here.local_rank}"
        raise UsageError(
            f"{given} processes on a machine that shows {there} GPUs: give --nproc_per_node {there}, or fewer"
        )
    torch.cuda.set_device(here.local_rank)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing that one process says need be said twice; errors are seen once they have left the context."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),  # progress bars
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _noticing() -> Iterator[None]:
    """Tell the end of another process from an error of this one."""
    try:
        yield
    except PeerStopped:
        raise
    except RuntimeError as error:
        if any(sign in str(error) for sign in GONE):
            raise PeerStopped(STOPPED) from error
        if LATE in str(error):
            raise PeerStopped(f"another process of this run has not come for {patience()} ({PATIENCE})") from error
        raise


# Together


@contextmanager
def main_first() -> Iterator[None]:
    """The first process runs the block before the others, which then find what it has written.

    Raises:
        PeerStopped: in the others, where the block fails in the first.
    """
    if world_size() == 1:
        yield
        return
    if is_main():
        try:
            yield
        except BaseException:
            with suppress(PeerStopped):
                _from_main(0)
            raise
        _from_main(1)
    elif _from_main(0):
        yield
    else:
        raise PeerStopped(STOPPED)


def _from_main(value: int) -> int:
    """The first process's value."""
    said = torch.tensor(value)
    with _noticing():
        dist.broadcast(said, 0)
    return int(said)


def agreed(value: int) -> int:
    """The largest of all processes' values, of at most 63 bits; returns when all have called it."""
    if world_size() == 1:
        return value
    most = torch.tensor(value, dtype=torch.int64)
    with _noticing():
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over all processes of each of these scalars, which lie on one device; no gradient flows."""
    if world_size() == 1 or not values:
        return dict(values)
    whole = torch.stack([value.detach().float() for value in values.values()])
    with _noticing():
        dist.all_reduce(whole)
    return dict(zip(values, whole / world_size(), strict=True))


def gathered(value: Value) -> list[Value]:
    """Every process's value, in their order; tensors in tuples, lists and dictionaries come on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _noticing():
        dist.all_gather_object(values, _on_cpu(value))
    return values


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # of a view, its own numbers alone travel
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_on_cpu, value))
    return type(value)(map(_on_cpu, value)) if isinstance(value, (tuple, list)) else value


# Shares


def share(size: int, what: str) -> slice:
    """This process's equal part of a batch: rows [rank * size / N, (rank + 1) * size / N) of N processes.

    Args:
        size: of the whole batch. what: its configuration key, for the error.

    Raises:
        UsageError: the parts would not be equal, and a mean of their means not the mean.
    """
    processes = world_size()
    part, rest = divmod(size, processes)
    if rest or not part:
        few = max(part, 1) * processes
        near = f"{few} or {few + processes}" if part else f"{few}"
        raise UsageError(
            f"{what} {size} is the batch of all {processes} processes, which cannot take equal parts of it: give "
            f"{near}, or start as many processes (--nproc_per_node) as divide it"
        )
    return slice(rank() * part, (rank() + 1) * part)


def shared_out(batches: DataLoader, answer: Callable[[Any], Value]) -> Iterator[Value]:
    """Answers to all batches in order, for all processes, each computed by one of them: batch i by process i % N.

    A process loads its own batches alone, and answers arrive in rounds of N, on the CPU where there are several
    processes. Nobody repeats an image, so the number of batches may be any.

    Args:
        batches: a DataLoader over a data set by index. answer: from a batch to what is wanted of it.
    """
    if world_size() == 1:
        yield from map(answer, batches)
        return
    total, own = len(batches), iter(_own(batches))
    for start in range(0, total, world_size()):
        turn = min(world_size(), total - start)
        found = answer(next(own)) if rank() < turn else None
        yield from gathered(found)[:turn]  # type: ignore[misc]


def _own(batches: DataLoader) -> DataLoader:
    whole: Iterable[list[int]] = batches.batch_sampler  # type: ignore[assignment]
    mine = list(islice(whole, rank(), None, world_size()))
    return DataLoader(
        batches.dataset,
        batch_sampler=mine,
        num_workers=min(batches.num_workers, len(mine)),
        collate_fn=batches.collate_fn,
        worker_init_fn=batches.worker_init_fn,
        generator=batches.generator,
        pin_memory=batches.pin_memory,
    )
