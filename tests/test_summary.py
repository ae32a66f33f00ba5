from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dho_plugin.tables import demo
from dho_plugin.tables.summary import (
    Paper,
    Record,
    Table,
    chance_of_a_star,
    comma_separated,
    details_table,
    differences_table,
    latex,
    markdown,
    not_beaten,
    paired_difference,
    results_table,
    write_json,
)

VALUES = {"A": [70.0, 72.0, 77.0], "B": [71.0, 73.5, 78.0]}
RECORDS = [Record(row, "test", seed, v) for row, values in VALUES.items() for seed, v in enumerate(values, start=1)]
PAPER = Paper(("Val", "V2"), {"A": (72.5, 64.25), "B": (73.1, None)})


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
    table = markdown(results_table(RECORDS, ["A", "B"], ["test", "V2"]))
    assert f"73.0 ±{np.std(VALUES['A'], ddof=1):.1f}" in table
    assert "missing" in table
    differences = markdown(differences_table(RECORDS, [("B", "A"), ("A", "B")], ["test"]))
    assert "+1.2 ±0.2*" in differences and "-1.2 ±0.2*" in differences


def test_a_difference_within_two_standard_errors_has_no_star():
    noisy = [Record("A", "test", s, 70.0) for s in (1, 2, 3)]
    noisy += [Record("B", "test", s, v) for s, v in ((1, 69.0), (2, 71.0), (3, 72.0))]
    assert "*" not in markdown(differences_table(noisy, [("B", "A")], ["test"]))


def test_the_papers_numbers_stand_beside_ours():
    table = results_table(RECORDS, ["A", "B", "C"], ["test", "V2"], PAPER)
    assert table.header == ("top-1, %", "test", "V2", "paper Val", "paper V2")
    assert [line[3:] for line in table.lines] == [("72.5", "64.2"), ("73.1", "-"), ("-", "-")]
    (line,) = differences_table(RECORDS, [("B", "A")], ["test", "V2"], PAPER).lines
    assert line == ("B minus A", "+1.2 ±0.2* (+0.6)", "missing")


def test_details_against_a_slow_computation():
    rng = np.random.default_rng(0)
    values = {row: rng.normal(70, 3, 5) for row in "AB"}
    records = [Record(row, "test", seed, float(v)) for row in "AB" for seed, v in enumerate(values[row])]
    table = details_table(records[1:], [("A", ""), ("B", "A")], ["test"], PAPER)  # A lacks the first seed
    assert table.header == ("row", "column", "mean", "sd", "n", "paper", "control", "difference", "se")
    a, b = table.lines
    assert a[:2] == ("A", "test") and a[4:] == ("4", "72.5", "", "", "")
    gaps = [values["B"][seed] - values["A"][seed] for seed in range(1, 5)]
    error = math.sqrt(sum((gap - sum(gaps) / 4) ** 2 for gap in gaps) / 3) / 2
    total = sum(values["B"])
    spread = math.sqrt(sum((v - total / 5) ** 2 for v in values["B"]) / 4)
    assert (b[4], b[6]) == ("5", "A")
    assert [float(b[i]) for i in (2, 3, 5, 7, 8)] == pytest.approx(
        [total / 5, spread, 73.1, sum(gaps) / 4, error], rel=1e-5
    )


def test_latex_is_a_booktabs_tabular_with_its_marks_escaped():
    table = Table(("top-1, %", "test", "paper Val"), (("A_1 & {B} #2 ~^\\ $", "70.0 ±0.1", "-"), ("C", "71.0", "72.5")))
    assert (
        latex(table)
        == r"""\begin{tabular}{lrr}
\toprule
top-1, \% & test & paper Val \\
\midrule
A\_1 \& \{B\} \#2 \textasciitilde{}\textasciicircum{}\textbackslash{} \$ & 70.0 $\pm$0.1 & - \\
C & 71.0 & 72.5 \\
\bottomrule
\end{tabular}"""
    )


def test_csv_has_one_line_for_each_row_and_column():
    assert (
        comma_separated(details_table(RECORDS, [("A", ""), ("B", "A")], ["test", "V2"], PAPER))
        == """\
row,column,mean,sd,n,paper,control,difference,se
A,test,73,3.60555,3,72.5,,,
A,V2,,,0,64.25,,,
B,test,74.1667,3.5473,3,73.1,A,1.16667,0.166667
B,V2,,,0,,A,,
"""
    )
    assert comma_separated(Table(("row", "n"), (("LP, 16", "1"),))) == 'row,n\n"LP, 16",1\n'


def test_columns_without_a_clear_gain_are_named():
    records = [Record("A", column, seed, 70.0) for column in ("test", "V2", "R") for seed in (1, 2, 3)]
    records += [Record("B", "test", seed, 71.0 + seed / 10) for seed in (1, 2, 3)]
    records += [Record("B", "V2", seed, v) for seed, v in ((1, 69.0), (2, 71.0), (3, 72.0))]
    records += [Record("B", "R", seed, 69.0 - seed / 10) for seed in (1, 2, 3)]
    assert not_beaten(records, [("B", "A")], ["test"]) == []
    assert not_beaten(records, [("B", "A")], ["test", "V2", "R", "X"]) == [
        "B v A: V2 +0.7 ±0.9, R -1.2 ±0.1* (clearly below), X missing"
    ]


@pytest.mark.parametrize(
    ("seeds", "chance"),
    [(2, 1 - 2 / math.pi * math.atan(2)), (3, 1 - 2 / math.sqrt(6)), (10_000, math.erfc(math.sqrt(2)))],
)
def test_how_often_noise_earns_a_star_in_closed_form(seeds, chance):
    assert chance_of_a_star(seeds) == pytest.approx(chance, abs=1e-4)


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


def test_a_bar_in_a_name_makes_no_column():
    table = Table(("row", "value"), (("a|b", "1"),))
    assert markdown(table).splitlines()[2] == "| a\\|b |     1 |"
