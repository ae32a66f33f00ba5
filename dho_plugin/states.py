"""The exact state of a run, from which it goes on after any step: its files, and the random generators' part of it.

The files are `step-<step>.pt` in a folder of their own. The one before the last is kept, for a disk that gives back
something else than it was given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .predicting import printable
from .sealed import DamagedCheckpoint, load_tensors, plain, remove_stale, save_tensors

FOLDER = "state"  # below a run's output folder
_FILE = re.compile(r"step-(\d+)\.pt")
_PLAIN = (bool, int, float, str, bytes, type(None))


class States:
    """The states of one run.

    Args:
        folder: theirs alone, such as <output folder>/state; made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._damaged: set[Path] = set()

    def save(self, state: dict[str, Any], step: int) -> None:
        """Write the state after a step; only when it is whole on the disk, those before the last one are removed.

        Args:
            state: nested dicts, lists and tuples of tensors, numbers, strings, bytes and None; numpy's scalars become
                Python's. step: steps done since training began.

        Raises:
            TypeError: the state holds something else, which could not be loaded again; the first is named.
            DiskFull: it does not fit; the states that are there are kept.
        """
        odd = next(_not_plain(plain(state), "state"), None)
        if odd:
            raise TypeError(f"{odd}: expected tensors and plain values")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}.pt"
        save_tensors(path, state)
        self._damaged.discard(path)
        # A file of a later step was passed over, or is left from a run that this one does not continue.
        earlier = [file for number, file in self._files() if number < step and file not in self._damaged]
        for _, file in self._files():
            if file not in (path, *earlier[:1]):
                file.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest whole state, its tensors on the CPU; None if none was saved. Damaged ones are named in print.

        Raises:
            UsageError: no state is whole.
            UnsafeCheckpoint: a file with a checksum that holds other Python objects.
        """
        if not self.folder.is_dir():
            return None
        remove_stale(self.folder)
        problems = []
        for _, file in self._files():
            try:
                state = load_tensors(file, "cpu", seal_needed=True)
            except DamagedCheckpoint as error:
                problems.append(str(error))
                self._damaged.add(file)
                continue
            for problem in problems:
                print(f"{problem}; going on from {file.name}")
            return state
        if problems:
            raise UsageError(
                f"no state in {printable(str(self.folder))} is whole: {'; '.join(problems)}. Delete this folder to go "
                "on from the last epoch's checkpoint"
            )
        return None

    def clear(self) -> None:
        """Remove the states, and their folder unless it holds something else."""
        if self.folder.is_dir():
            remove_stale(self.folder)
        for _, file in self._files():
            file.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[tuple[int, Path]]:
        """(step, file) of what is there, newest first."""
        named = ((_FILE.fullmatch(file.name), file) for file in self.folder.glob("step-*.pt"))
        return sorted(((int(name[1]), file) for name, file in named if name), reverse=True)


def _not_plain(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_plain(key, f"a key of {name}")
            yield from _not_plain(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from _not_plain(item, f"{name}[{index}]")
    elif not isinstance(value, Tensor) and type(value) not in _PLAIN:
        yield f"{name} is a {type(value).__qualname__}"


def random_states() -> dict[str, Any]:
    """States of the generators of torch (CPU and, if in use, every CUDA device), Python and numpy, as plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        # Asking would start CUDA in a run that does not use it.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *plain(rest)),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the generators to what random_states gave; CUDA devices in their order, as far as there are as many."""
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
