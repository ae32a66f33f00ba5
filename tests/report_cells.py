"""Cells of tables without training: folders with what a finished run leaves, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dho_plugin import cli
from dho_plugin.manifest import OPEN
from dho_plugin.report.collect import Run, read
from dho_plugin.saved import settings

PART = {"images": 12, "sha256": "ab" * 32}
MANIFEST: dict[str, Any] = {
    **OPEN,
    **dict.fromkeys(("labeled", "unlabeled", "test"), PART),
    "validation": {**PART, "a_class": [2, 2], "is_the_test_set": False, "protocol": "full"},
    "in_two_sets": {"labeled & test": 0},
    "packed": None,
    "transductive": False,
    "teacher": None,
    "student": {"name": "shapes-student", "weights_sha256": None},
    "view_seed": 1,
    "host": "embedded",
    "versions": {"python": "3.11", "torch": "2.14"},
    "started": {"time": "2026-01-01T00:00:00+00:00", "command": ["train.py", "--seed", "1"]},
    "resumed": [],
    "finished": "2026-01-01T00:01:00+00:00",
}


def cell(
    folder: Path,
    accuracies: Mapping[str, float],
    *,
    trainer: str = "CoOp",
    row: str = "",
    seed: int = 1,
    flags: str = "--dataset shapes",
    **manifest: Any,
) -> Run:
    """A folder like that of a finished run.

    Args:
        row: a label, for a cell of a table; empty for a run of train.py. flags: of its command line. manifest: what
            is other than in MANIFEST; `manifest=None` for a cell that trains nothing.
    """
    folder.mkdir(parents=True)
    own = ["--trainer", trainer, "--root", str(folder), "--seed", str(seed), "--output-dir", str(folder)]
    values = settings(cli.build_config(cli.parser().parse_args([*own, *flags.split()])))
    if row:
        result = {"row": row, "seed": seed, "accuracies": accuracies, "settings": values, "made_by": "torch, CPU"}
        (folder / "result.json").write_text(json.dumps(result))
    if "manifest" not in manifest:
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "results": accuracies, **manifest}))
    run, _ = read(folder)
    assert run is not None
    return run
