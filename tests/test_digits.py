"""The paper's claim, end to end on real images: scripts/digits.py."""

from __future__ import annotations

import runpy
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("sklearn")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "digits.py"


@pytest.fixture(scope="module")
def compare():
    return runpy.run_path(str(SCRIPT))["compare"]


def test_with_a_systematically_confused_teacher_two_heads_beat_one_and_labels_alone(compare):
    runs = [compare("confused", seed) for seed in range(4)]
    assert mean(r["DHO"] - r["single head CE+KD"] for r in runs) > 2
    assert mean(r["DHO"] - r["CE"] for r in runs) > 4
    assert mean(r["DHO"] - r["teacher"] for r in runs) > 4


def test_with_a_clean_teacher_they_do_not(compare):
    runs = [compare("clean", seed) for seed in range(3)]
    assert mean(r["DHO"] - r["single head CE+KD"] for r in runs) < 1
