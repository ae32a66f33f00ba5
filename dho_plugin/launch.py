"""What the environment says of how this process was started."""

from __future__ import annotations

import os
from typing import NamedTuple

from .errors import UsageError

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """size: number of processes. rank: which of them this is. local_rank: which of those on this machine."""

    size: int
    rank: int
    local_rank: int


def place() -> Place | None:
    """Where torchrun has put this process; None for a process on its own.

    Raises:
        UsageError: a part of torchrun's environment; copies that srun started.
    """
    if "WORLD_SIZE" not in os.environ:
        _check_slurm()
        return None
    given = {name: os.environ.get(name, "") for name in TORCHRUN}
    lacking = [name for name in TORCHRUN[1:] if not given[name]]
    try:
        size, *ranks = (int(given[name] or 0) for name in TORCHRUN[:3])
    except ValueError:
        raise UsageError(f"WORLD_SIZE, RANK or LOCAL_RANK is no number: {given}; start with torchrun") from None
    if size <= 1:
        return None
    if lacking:
        raise UsageError(
            f"WORLD_SIZE is {size}, but {', '.join(lacking)} not set: start with torchrun --nproc_per_node N, which "
            "sets them all, or unset WORLD_SIZE for a single process"
        )
    return Place(size, *ranks)


def check_alone(command: str) -> None:
    """Refuse to be one of several copies of a command that starts runs itself.

    Raises:
        UsageError: torchrun or srun has started them.
    """
    starter, copies = "srun", _copies()
    if copies == 1 and (here := place()) is not None:
        starter, copies = "torchrun", here.size
    if copies > 1:
        raise UsageError(
            f"{starter} has started {copies} copies of {command}, each of which would start all runs: start it once "
            "(srun --ntasks 1, no torchrun). It takes several runs at a time by itself (--jobs), and grid --launcher "
            "slurm makes each a job. Where the copies do different things: env -u SLURM_STEP_NUM_TASKS before python"
        )


def _copies() -> int:
    """How many equal processes srun has started, of which this is one. A shell of srun's is no such copy."""
    copies = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return int(copies) if copies.isdecimal() and "SLURM_PTY_PORT" not in os.environ else 1


def _check_slurm() -> None:
    """Refuse to be one of several equal runs, which would write into one folder."""
    copies = _copies()
    if copies > 1:
        raise UsageError(
            f"srun has started {copies} processes that know nothing of each other and would write into one folder. For "
            "one run on all of them: srun --ntasks-per-node 1 torchrun --nproc_per_node N ...; for different runs: "
            "srun --ntasks 1 for each, or env -u SLURM_STEP_NUM_TASKS before python"
        )
