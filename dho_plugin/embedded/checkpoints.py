"""Checkpoints: plain dicts, written whole or not at all, loaded without running code."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from .dataset import mkdir_if_missing


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str | Path,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write `<save_dir>/model.pth.tar-<epoch>` and name it in the text file `<save_dir>/checkpoint`.

    Args:
        state: state_dict, epoch, optimizer, scheduler, val_result; numpy scalars are stored as Python numbers.
        save_dir: folder, created if missing.
        is_best: also copy the file to `model-best.pth.tar`.
        remove_module_from_keys: drop the prefix `module.` that nn.DataParallel adds.
        model_name: file name instead of `model.pth.tar-<epoch>`.
    """
    mkdir_if_missing(save_dir)
    plain = {key: _plain(value) for key, value in state.items()}
    if remove_module_from_keys:
        plain["state_dict"] = OrderedDict((k.removeprefix("module."), v) for k, v in state["state_dict"].items())
    name = model_name or f"model.pth.tar-{state['epoch']}"
    path = os.path.join(save_dir, name)
    _replace(path, lambda temporary: torch.save(plain, temporary))
    print(f"Checkpoint saved to {path}")
    _replace(os.path.join(save_dir, "checkpoint"), lambda temporary: Path(temporary).write_text(f"{name}\n"))
    if is_best:
        best = os.path.join(save_dir, "model-best.pth.tar")
        _replace(best, lambda temporary: shutil.copy(path, temporary))
        print(f"Best checkpoint saved to {best}")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _replace(path: str, write: Callable[[str], Any]) -> None:
    # A run killed while writing must leave the previous file whole.
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


class UnsafeCheckpoint(UsageError, pickle.UnpicklingError):
    """A checkpoint that could run code if it were loaded."""


class DamagedCheckpoint(UsageError, RuntimeError):
    """A checkpoint that is cut off, or none."""


def load_checkpoint(fpath: str | Path) -> dict[str, Any]:
    """Load a checkpoint of tensors and plain values, to the CPU where there is no GPU.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpoint: the file holds other Python objects, as those written by older Dassl versions do.
        DamagedCheckpoint: the file is cut off or no checkpoint.
    """
    if fpath is None:
        raise ValueError("load_checkpoint: the path is None")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f"no checkpoint file {str(fpath)!r}")
    try:
        return torch.load(fpath, map_location=_map_location(), weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpoint(_refusal(fpath, error)) from error
    except (RuntimeError, EOFError) as error:
        raise DamagedCheckpoint(
            f"cannot read {str(fpath)!r}: cut off, damaged or not a checkpoint ({error})"
        ) from error


def _map_location() -> str | None:
    return None if torch.cuda.is_available() else "cpu"


def _refusal(fpath: str | Path, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    found = f" ({named[1]})" if named else ""
    return (
        f"{str(fpath)!r} is refused: it is a pickle of Python objects{found}, and loading such a file can run any code "
        "hidden in it. Dassl's own checkpoints of runs with warm-up are like this, since they hold the scheduler "
        "object. If you trust where the file comes from, write a plain copy once, with\n"
        f'  python -c "from dho_plugin.host import convert_trusted_checkpoint as convert; '
        f'convert({str(fpath)!r}, {f"{fpath}.converted"!r})"\n'
        "and put it in the place of the old one"
    )


def convert_trusted_checkpoint(source: str | Path, target: str | Path) -> None:
    """Rewrite a pickled Dassl checkpoint as a plain one. This RUNS any code in `source`: only for files you trust.

    Args:
        source: checkpoint with the scheduler object in it.
        target: file to write; may be `source`.
    """
    state = torch.load(source, map_location="cpu", weights_only=False)
    state = {key: _plain(value) for key, value in state.items()}
    scheduler = state.get("scheduler") or {}
    successor = scheduler.get("successor")
    if successor is not None and not isinstance(successor, dict):
        state["scheduler"] = {**scheduler, "successor": successor.state_dict()}
    _replace(str(target), lambda temporary: torch.save(state, temporary))


def resume_from_checkpoint(fdir: str | Path, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> int:
    """Load the checkpoint that `<fdir>/checkpoint` names into model, optimiser and scheduler.

    Returns:
        The number of epochs done, which is the index of the next one.
    """
    name = Path(fdir, "checkpoint").read_text().splitlines()[0]
    path = os.path.join(fdir, name)
    print(f"Loading checkpoint from {path}")
    checkpoint = load_checkpoint(path)
    model.load_state_dict(checkpoint["state_dict"])
    for key, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        if target is not None and key in checkpoint:
            target.load_state_dict(checkpoint[key])
    print(f"Resumed after epoch {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: str | Path) -> None:
    """Load those weights of a checkpoint, or of a bare state dict, that fit the model in name and shape.

    Weights that do not fit are named and left out; nothing fitting at all is a warning.
    """
    checkpoint = load_checkpoint(weight_path)
    given = {k.removeprefix("module."): v for k, v in checkpoint.get("state_dict", checkpoint).items()}
    own = model.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict({**own, **fitting})
    if not fitting:
        warnings.warn(f"{weight_path}: no weight fits the model in name and shape, so none was loaded", stacklevel=2)
        return
    print(f"Loaded {len(fitting)} weights from {weight_path}")
    unfit = [k for k in given if k not in fitting]
    if unfit:
        print(f"Left out for their name or shape: {unfit}")
