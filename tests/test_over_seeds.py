"""Numbers of several seeds as tables: means and deviations, missing cells as missing."""

from __future__ import annotations

import math

from dho_plugin.analysis.over_seeds import details, in_percent, values_table

MEASURED = [
    {"a": {"top-1, %": 50.0, "ECE": 0.1, "images": 20}, "b": {"top-1, %": 10.0, "ECE": math.nan, "images": 20}},
    {"a": {"top-1, %": 60.0, "ECE": 0.2, "images": 20}, "b": {"top-1, %": 10.0, "ECE": math.nan, "images": 20}},
]


def test_means_and_deviations_in_the_digits_of_their_column():
    table = values_table("predictor", MEASURED)
    assert table.header == ("predictor", "top-1, %", "ECE", "images")
    assert table.lines == (("a", "55.0 ±7.1", "0.150 ±0.071", "20"), ("b", "10.0", "missing", "20"))


def test_one_run_has_no_deviation():
    assert values_table("", MEASURED[:1]).lines[0] == ("a", "50.0", "0.100", "20")
    assert details(MEASURED[:1]).lines[0] == ("a", "top-1, %", "50", "", "1")


def test_details_to_compute_with():
    assert details(MEASURED).header == ("row", "column", "mean", "sd", "n")
    assert details(MEASURED).lines[:2] == (
        ("a", "top-1, %", "55", "7.07107", "2"),
        ("a", "ECE", "0.15", "0.0707107", "2"),
    )
    assert details(MEASURED).lines[4] == ("b", "ECE", "", "", "0")


def test_units_in_the_names():
    assert in_percent({"a": {"test": 1.0}}) == {"a": {"test, %": 1.0}}
