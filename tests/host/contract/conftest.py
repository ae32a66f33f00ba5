"""The toy dataset and trainers on the chosen host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import host_toy
import pytest

from dho_plugin import host


@pytest.fixture(scope="session", autouse=True)
def toys() -> None:
    host_toy.define(host)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return host_toy.write_images(tmp_path / "data")


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Callable[..., Any]:
    """Call with alternating keys and values; returns the frozen configuration of the toy run."""
    return lambda *options: host_toy.config(host, root, tmp_path / "out", *options)
