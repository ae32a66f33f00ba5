"""Evaluation on distribution shifts: other test sets of the same classes, or of some of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .distributed import is_main, main_first
from .host import build_dataset
from .run_log import LOG, written

Row = dict[str, float]
"""Accuracy in percent by column name."""


def load_shifts(cfg: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Build the test sets, so that a missing folder is said before training and not after it.

    Args:
        cfg: the run's configuration. names: registered dataset by column name.
    """
    built = {}
    for column, name in names.items():
        other = cfg.clone()
        other.defrost()
        other.DATASET.NAME = name
        other.DATASET.NUM_SHOTS = -1
        other.VERBOSE = False
        with main_first():
            built[column] = build_dataset(other)
    return built


def evaluate_shifts(trainer: Any, shifts: Mapping[str, Any], output: Path) -> Row:
    """Accuracy of a trained trainer on each shift.

    Each has a log of its own, <output>/shifts/<column>/log.txt: in the run's log.txt the result parsers of CoOp and
    PromptSRC take the last accuracy for the test set's.
    """
    row: Row = {}
    for column, dataset in shifts.items():
        folder = output / "shifts" / column
        file = folder / LOG if is_main() else Path(os.devnull)
        with written(file), trainer.testing_on(dataset, str(folder)):
            row[column] = trainer.test(split="test")
    return row
