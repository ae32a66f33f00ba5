"""Finished runs side by side: which row of a table each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError
from ..runs import run_config


class Run(NamedTuple):
    """A finished run: its output folder, the row that it belongs to, and its seed."""

    folder: Path
    row: str
    seed: int

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"


def find_runs(folders: Sequence[str]) -> list[Run]:
    """The runs; those of a trainer that differ in their seeds share a row of its name, others have a row each.

    Raises:
        UsageError: no run; the same one twice; runs on several datasets.
    """
    configurations = {Path(folder).expanduser(): run_config(folder) for folder in folders}
    if len(configurations) < len(folders):
        raise UsageError(f"a run stands twice among {' '.join(folders)}")
    datasets = sorted({(cfg.DATASET.NAME, cfg.DATASET.SUBSAMPLE_CLASSES) for cfg in configurations.values()})
    if len(datasets) > 1:
        raise UsageError(f"runs on different classes cannot be compared: {datasets}; give runs on one dataset")
    by_trainer: dict[str, list[Any]] = {}
    for cfg in configurations.values():
        by_trainer.setdefault(cfg.TRAINER.NAME, []).append(cfg)
    joined = {trainer for trainer, of in by_trainer.items() if _differ_in_seeds(of)}
    return [
        Run(folder, cfg.TRAINER.NAME if cfg.TRAINER.NAME in joined else str(folder), cfg.SEED)
        for folder, cfg in configurations.items()
    ]


def _differ_in_seeds(configurations: Sequence[Any]) -> bool:
    seeds = {cfg.SEED for cfg in configurations}
    others = {(cfg.MODEL.BACKBONE.NAME, cfg.DATASET.NUM_SHOTS) for cfg in configurations}
    return len(seeds) == len(configurations) and len(others) == 1
