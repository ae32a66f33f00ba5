"""Checkpoints: plain dicts, written whole or not at all, loaded without running code."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..sealed import load_tensors, plain, save_tensors, sealed, write_whole
from .dataset import mkdir_if_missing


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str | Path,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write `<save_dir>/model.pth.tar-<epoch>` and name it in the text file `<save_dir>/checkpoint`.

    Its weights stand alone in `<save_dir>/model-<epoch>.safetensors`, written first. Each file is whole or not there.

    Args:
        state: state_dict, epoch, optimizer, scheduler, val_result; numpy scalars are stored as Python numbers.
        save_dir: folder, created if missing.
        is_best: also copy the files to `model-best.pth.tar` and `model-best.safetensors`.
        remove_module_from_keys: drop the prefix `module.` that nn.DataParallel adds.
        model_name: file name instead of `model.pth.tar-<epoch>`.

    Raises:
        DiskFull: it does not fit; files of that name that are there are kept.
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": OrderedDict((_own(k), v) for k, v in state["state_dict"].items())}
    path = Path(save_dir, model_name or f"model.pth.tar-{state['epoch']}")
    _save_weights(_weights_file(path), plain(state))
    save_tensors(path, state)
    print(f"Checkpoint saved to {path}")
    write_whole(path.with_name("checkpoint"), f"{path.name}\n")
    if is_best:
        best = path.with_name("model-best.pth.tar")
        for source, copy in ((_weights_file(path), _weights_file(best)), (path, best)):
            with sealed(copy, source.stat().st_size) as temporary:
                shutil.copyfile(source, temporary)
        print(f"Best checkpoint saved to {best}")


def _own(key: str) -> str:
    return key.removeprefix("module.")


def _weights_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name.replace('.pth.tar', '')}.safetensors")


def _save_weights(path: Path, state: dict[str, Any]) -> None:
    """Write the tensors of the state dict, each with memory of its own; the rest of it is JSON in the metadata."""
    tensors: dict[str, Tensor] = {}
    known: set[tuple[torch.device, int]] = set()
    for key, value in state["state_dict"].items():
        if isinstance(value, Tensor):
            tensor = value.detach().contiguous()
            memory = (tensor.device, tensor.untyped_storage().data_ptr())
            tensors[key] = tensor.clone() if memory in known else tensor
            known.add(memory)
    rest = {key: value for key, value in state["state_dict"].items() if key not in tensors}
    described = {"epoch": state.get("epoch"), "val_result": state.get("val_result"), "other_state": rest}
    # One entry: safetensors writes several in any order, and the same weights should be the same file.
    metadata = {"checkpoint": json.dumps(described, default=str)}
    with sealed(path, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(fpath: str | Path) -> dict[str, Any]:
    """Load a checkpoint of tensors and plain values, to the CPU.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpoint: the file holds other Python objects, as those written by older Dassl versions do.
        DamagedCheckpoint: the file is cut off, changed since it was written, or no checkpoint.
    """
    if fpath is None:
        raise ValueError("load_checkpoint: the path is None")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f"no checkpoint file {str(fpath)!r}")
    # Not to where it was saved from, which is the first GPU for each of several processes.
    return load_tensors(Path(fpath), "cpu")


def convert_trusted_checkpoint(source: str | Path, target: str | Path) -> None:
    """Rewrite a pickled Dassl checkpoint as a plain one. This RUNS any code in `source`: only for files you trust.

    Args:
        source: checkpoint with the scheduler object in it.
        target: file to write; may be `source`.
    """
    state = torch.load(source, map_location="cpu", weights_only=False)
    scheduler = state.get("scheduler") or {}
    successor = scheduler.get("successor")
    if successor is not None and not isinstance(successor, dict):
        state["scheduler"] = {**scheduler, "successor": successor.state_dict()}
    save_tensors(Path(target), state)


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
