from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dho_plugin import demo
from dho_plugin.report import Record, differences_table, paired_difference, results_table, write_json

VALUES = {"A": [70.0, 72.0, 77.0], "B": [71.0, 73.5, 78.0]}
RECORDS = [Record(row, "test", seed, v) for row, values in VALUES.items() for seed, v in enumerate(values, start=1)]


def test_paired_difference_against_numpy():
    difference = paired_difference(RECORDS, "B", "A", "test")
    gaps = np.array(VALUES["B"]) - np.array(VALUES["A"])
    assert difference.mean == pytest.approx(gaps.mean())
    assert difference.standard_error == pytest.approx(gaps.std(ddof=1) / np.sqrt(3))
    assert difference.clear  # although the rows' own deviations are over 3 points


def test_only_shared_seeds_are_paired():
    extra = [*RECORDS, Record("B", "test", 9, 0.0)]
    assert paired_difference(extra, "B", "A", "test") == paired_difference(RECORDS, "B", "A", "test")
    alone = paired_difference(RECORDS[:1] + RECORDS[3:4], "B", "A", "test")
    assert alone.mean == 1.0 and math.isnan(alone.standard_error) and not alone.clear


def test_tables_show_mean_deviation_sign_and_what_is_missing():
    table = results_table(RECORDS, ["A", "B"], ["test", "V2"])
    assert f"73.0 ±{np.std(VALUES['A'], ddof=1):.1f}" in table
    assert "missing" in table
    differences = differences_table(RECORDS, [("B", "A"), ("A", "B")], ["test"])
    assert "+1.2 ±0.2*" in differences and "-1.2 ±0.2*" in differences


def test_a_difference_within_two_standard_errors_has_no_star():
    noisy = [Record("A", "test", s, 70.0) for s in (1, 2, 3)]
    noisy += [Record("B", "test", s, v) for s, v in ((1, 69.0), (2, 71.0), (3, 72.0))]
    assert "*" not in differences_table(noisy, [("B", "A")], ["test"])


def test_json_has_one_record_for_each_cell_and_seed(tmp_path):
    write_json(RECORDS, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())[0] == {
        "row": "A",
        "column": "test",
        "seed": 1,
        "accuracy": 70.0,
    }


def test_the_demo_command_runs_its_rows_as_train_py_would(monkeypatch, tmp_path, capsys):
    """Two rows of the real command, on the real pictures and models."""
    monkeypatch.setattr(demo, "METHODS", (demo.METHODS[0], demo.METHODS[2]))
    out = tmp_path / "d.json"
    assert demo.main(["--seeds", "1", "2", "--json", str(out), "--output-dir", str(tmp_path), "--jobs", "2"]) == 0
    records = [Record(**record) for record in json.loads(out.read_text())]
    assert {record.row for record in records} == {"student, zero-shot", "LP"}
    assert len(records) == 2 * 5 * 2
    assert "LP minus student, zero-shot" in capsys.readouterr().out
    assert paired_difference(records, "LP", "student, zero-shot", "test").mean > 0
    assert (tmp_path / "LP" / "seed2" / "log.txt").is_file()
