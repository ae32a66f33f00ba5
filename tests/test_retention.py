"""What is left on shifts, by hand."""

from __future__ import annotations

import math

import pytest

from dho_plugin.analysis.predictors import CONTROL
from dho_plugin.analysis.retention import beyond, retained, retention_section

ACCURACY = {"test": 80.0, "V2": 60.0, "A": 20.0}


def test_what_is_left_by_hand():
    assert retained(ACCURACY) == {"V2": 75.0, "A": 25.0}
    assert beyond(ACCURACY, {"test": 50.0, "V2": 40.0, "R": 10.0}) == {"V2": -5.0}
    assert math.isnan(retained({"test": 0.0, "V2": 0.0})["V2"])


def test_the_tables_of_two_seeds():
    other = {"test": 60.0, "V2": 60.0, "A": 6.0}
    control = {"test": 50.0, "V2": 40.0, "A": 20.0}
    section = retention_section(
        [{"CE head": ACCURACY, CONTROL: control}, {"CE head": other, CONTROL: control}], ["packed"]
    )
    plain, left, more = section.tables
    assert plain.lines[0] == ("CE head", "70.0 ±14.1", "60.0", "13.0 ±9.9")
    assert left.header == ("left of the test set's (packed)", "V2, %", "A, %")
    assert left.lines[0] == ("CE head", "87.5 ±17.7", "17.5 ±10.6")
    assert more.lines == (("CE head", "7.5 ±17.7", "-22.5 ±10.6"),)
    rows = {line[:2]: line[2:] for line in section.details.lines}
    assert rows["CE head, left", "V2, %"] == ("87.5", "17.6777", "2")
    assert float(rows["control, top-1", "A, %"][0]) == pytest.approx(20)


def test_without_shifts_it_is_said_that_there_are_none():
    section = retention_section([{"CE head": {"test": 80.0}}])
    assert len(section.tables) == 1 and section.text == ("No shift of this dataset was looked at.",)
