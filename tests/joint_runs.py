"""Command lines run by several processes, and what each of them and their folder is left with."""

from __future__ import annotations

import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import kills
import torch
from dho_plugin.trainers import base, caspl, section, stepping, student
from open_clip.transformer import LayerNormFp32
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from dho_plugin import cli, vlm
from dho_plugin.distributed import joined


class Left(NamedTuple):
    """What a process has of a command.

    Attributes:
        status: its exit status. losses: of each step, by name. learned: weights by name. model: a checksum of each
            tensor in the models, frozen ones too. said: on standard error. reductions: how often
            gradients were sent around, counted where steps are in parts.
    """

    status: int
    losses: list[dict[str, float]]
    learned: dict[str, Tensor]
    model: dict[str, int]
    said: str
    reductions: int


def commands(lines: Sequence[Sequence[str]], exact: bool, change: Callable[[], None] | None = None) -> list[Left]:
    """Run train.py's command lines one after the other in this process, which is one of a pair or alone.

    Args:
        exact: compute in float64. change: called before, to break something.
    """
    load_once(exact)
    if exact:
        compute_in_double()
    if change is not None:
        change()
    cli.collect_env_info = lambda: "not asked for"  # which takes longer than a run
    os.fsync = lambda _: None  # nor does the power fail
    cli.STAGE_TWO_ALONE = tuple(key for key in cli.STAGE_TWO_ALONE if key != "OPTIM.")  # so that stage one is short
    with joined():
        return [_command(list(line)) for line in lines]


def _command(line: list[str]) -> Left:
    counted = []
    with watching() as (trainers, losses), sharing(counted if "TRAIN.ACCUMULATE" in line else None):
        said, sys.stderr = sys.stderr, io.StringIO()
        try:
            status = cli.main(line)
        finally:
            said, sys.stderr = sys.stderr, said
    last = trainers[-1] if trainers else None
    parts = last.learned() if last is not None else {}
    learned = {f"{name}.{key}": value for name, part in parts.items() for key, value in tensors(part).items()}
    return Left(status, losses, learned, digest(last), said.getvalue(), len(counted))


@contextmanager
def watching() -> Iterator[tuple[list[Any], list[dict[str, float]]]]:
    """The trainers that are built within this context, and the losses of their steps."""
    trainers: list[Any] = []
    losses: list[dict[str, float]] = []
    build, step = cli.build_trainer, base.MethodTrainer.forward_backward

    def kept(cfg: Any) -> Any:
        trainers.append(build(cfg))
        return trainers[-1]

    def noted(trainer: Any, batch: Any) -> Any:
        summary = step(trainer, batch)
        losses.append({name: float(value) for name, value in summary.items()})
        return summary

    cli.build_trainer, base.MethodTrainer.forward_backward = kept, noted
    try:
        yield trainers, losses
    finally:
        cli.build_trainer, base.MethodTrainer.forward_backward = build, step


@contextmanager
def sharing(counted: list[None] | None) -> Iterator[None]:
    """Note within this context each time that the processes share gradients; None for not looking."""
    joint = stepping.joint

    def watched(*args: Any) -> Any:
        step = joint(*args)
        if isinstance(step, DistributedDataParallel):
            step.register_comm_hook(None, lambda _, bucket: (counted.append(None), allreduce_hook(None, bucket))[1])
        return step

    stepping.joint = joint if counted is None else watched
    try:
        yield
    finally:
        stepping.joint = joint


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def digest(trainer: Any) -> dict[str, int]:
    """Of all that a trainer's models hold, to the bit."""
    held = vars(trainer) if trainer is not None else {}
    modules = [value for name, value in held.items() if isinstance(value, nn.Module) and name != "joint"]
    each: dict[tuple[int, torch.Size], tuple[str, Tensor]] = {}
    for module in modules:
        for key, value in module.state_dict().items():
            if isinstance(value, Tensor):  # what several modules share is looked at once
                each.setdefault((value.data_ptr(), value.shape), (f"{len(each)} {key}", value.detach()))
    return {name: zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy()) for name, value in each.values()}


def compute_in_double() -> None:
    """Have this process compute in float64 what it would in float32, whatever it never does again."""
    torch.set_default_dtype(torch.float64)
    LayerNormFp32.forward = nn.LayerNorm.forward
    Tensor.float, nn.Module.float = Tensor.double, nn.Module.double  # type: ignore[method-assign]
    backbone = student.load_backbone
    student.load_backbone = lambda *args: backbone(*args).double()


def load_once(exact: bool) -> None:
    """Have this process read each CLIP model once."""
    original = vlm.load_vlm
    read = cache(original)

    def load(name: str) -> Any:
        known = read(name)
        model = deepcopy(known, {id(known._tokenizer): known._tokenizer})
        return model.double() if exact else model

    for module in (base, caspl, section, student):
        if getattr(module, "load_vlm", None) is original:
            module.load_vlm = load


# What a folder holds


def files(folder: Path) -> list[str]:
    """Names below a folder, TensorBoard's without time and process."""
    names = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return sorted(name.partition(".tfevents.")[0] for name in names)


def log(folder: Path) -> list[str]:
    """The lines of steps and results, without times."""
    return kills.steps_and_results((folder / "log.txt").read_text())


def manifest(folder: Path) -> dict[str, Any]:
    """Without times and commands."""
    known = json.loads((folder / "manifest.json").read_text())
    return {key: value for key, value in known.items() if key not in ("started", "resumed", "finished")}


def relative(one: Sequence[dict[str, float]], other: Sequence[dict[str, float]]) -> list[float]:
    """The largest relative difference of the losses of each step; the accuracies are equal."""
    found = []
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() and abs(a["acc"] - b["acc"]) < 1e-3
        found.append(max(abs(a[key] - b[key]) / max(abs(a[key]), 1e-9) for key in a if key != "acc"))
    return found
