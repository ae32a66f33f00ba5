"""A finished run as a model: build its trainer from what it left in its output folder, and load its weights."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import UsageError
from .host import build_trainer, get_cfg_default, set_random_seed
from .labels import build_labeled_dataset
from .saved import RECORD, assign, flatten, read_record


def is_run(name: str) -> bool:
    """Whether a name is that of a run's output folder."""
    return bool(name) and (Path(name).expanduser() / RECORD).is_file()


def run_config(folder: str | Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The frozen configuration of a run, as it left it.

    The list of labelled images is left out: a trained model needs its classes only. What its teacher learned from was
    checked when it was trained.

    Args:
        folder: the run's output folder. changes: values by dotted key that replace the run's own.

    Raises:
        UsageError: no run in that folder, or a run with keys that are unknown here.
    """
    folder = Path(folder).expanduser()
    record = {**read_record(folder), "DATASET.LABELS": "", "TRAINER.DHO.TEACHER.OTHER_LABELS": True}
    if not is_run(str(folder)):
        raise UsageError(f"no run in {folder}: expected the output folder of a training run, with its {RECORD}")
    cfg = get_cfg_default()
    unknown = sorted(set(record) - set(flatten(cfg)))
    if unknown:
        raise UsageError(f"{folder / RECORD} has the key {unknown[0]!r}, which is unknown here: is a package missing?")
    for key, value in {**record, **(changes or {})}.items():
        assign(cfg, key, value)
    cfg.freeze()
    return cfg


def load_run(folder: str | Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The trainer of a finished run with its weights, ready to answer (`model_inference`, `test`).

    Args:
        folder: the run's output folder. changes: see run_config; other DATASET keys load the model for the classes of
            another dataset, as far as it knows them.

    Raises:
        UsageError: as run_config; no checkpoint; classes that cannot be mapped.
    """
    with _as_it_began(run_config(folder, changes)) as cfg:
        trainer = build_trainer(cfg)
        trainer.load_model(str(Path(folder).expanduser()))
    trainer.set_model_mode("eval")
    return trainer


def run_dataset(folder: str | Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The Dassl dataset of a run, with the labelled and validation images that its seed draws; see load_run."""
    with _as_it_began(run_config(folder, changes)) as cfg:
        return build_labeled_dataset(cfg)


@contextmanager
def _as_it_began(cfg: Any) -> Iterator[Any]:
    """Within this context what a run draws is what its seed gave it: K-shot splits are drawn and not kept."""
    with generators_kept():
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        yield cfg


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the random states of Python, numpy and torch alone: a run must not depend on what its teacher drew."""
    state, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
