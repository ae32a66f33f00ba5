"""log.txt, random seeds and the description of the machine."""

from __future__ import annotations

import io
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dho_plugin import host


def _log(monkeypatch: pytest.MonkeyPatch, line: str, output: Path | None) -> str:
    """Print a line after setup_logger(output); return what the console got."""
    # A console of our own: Dassl's logger closes what it takes for the console.
    console = io.StringIO()
    monkeypatch.setattr(sys, "stdout", console)
    host.setup_logger(None if output is None else str(output))
    assert (sys.stdout is console) == (output is None)
    print(line)
    sys.stdout.flush()
    return console.getvalue()


def test_output_goes_to_the_console_and_to_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _log(monkeypatch, "hello", tmp_path / "new") == "hello\n"
    assert (tmp_path / "new" / "log.txt").read_text() == "hello\n"


def test_a_second_run_keeps_the_first_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _log(monkeypatch, "first", tmp_path)
    _log(monkeypatch, "second", tmp_path)
    old, new = sorted(path.name for path in tmp_path.iterdir())
    assert old == "log.txt"
    assert re.fullmatch(r"log\.txt-\d{4}(-\d\d){5}", new)
    assert (tmp_path / old).read_text() == "first\n"
    assert (tmp_path / new).read_text() == "second\n"


def test_a_file_name_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _log(monkeypatch, "hello", tmp_path / "run.log")
    assert (tmp_path / "run.log").read_text() == "hello\n"


def test_no_folder_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _log(monkeypatch, "hello", None) == "hello\n"


def test_seeds_reach_python_numpy_and_torch() -> None:
    def draw() -> tuple[float, float, float]:
        host.set_random_seed(3)
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    first = draw()
    assert draw() == first
    host.set_random_seed(4)
    assert all(a != b for a, b in zip(first, (random.random(), np.random.rand(), torch.rand(1).item()), strict=True))


def test_the_environment_names_the_torch_version() -> None:
    assert torch.__version__.split("+")[0] in host.collect_env_info()
