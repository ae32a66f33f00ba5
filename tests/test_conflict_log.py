"""conflict.csv: lines are added, read and cut, whatever a kill has left of the last one."""

from __future__ import annotations

import math

from dho_plugin.analysis.conflict_log import FILE, MEASURES, Observation, append, cut, read


def line(step: int, value: float = 0.5) -> Observation:
    return Observation(1 + (step - 1) // 3, step, *[value] * len(MEASURES))


def written(folder, *steps: int) -> str:
    for step in steps:
        append(folder, line(step))
    return (folder / FILE).read_text()


def test_what_is_added_is_read(tmp_path):
    lines = [line(1), line(4, math.nan), line(5, -1.25e-7)]
    for one in lines:
        append(tmp_path / "run", one)
    found = read(tmp_path / "run")
    assert [one[:2] for one in found] == [(1, 1), (2, 4), (2, 5)]
    assert all(math.isnan(value) for value in found[1][2:]) and found[2] == lines[2]
    assert read(tmp_path / "elsewhere") == []


def test_a_run_that_goes_on_from_a_step_writes_the_later_lines_once(tmp_path):
    whole = written(tmp_path / "whole", 1, 2, 4, 6)
    written(tmp_path / "broken", 1, 2, 4)
    cut(tmp_path / "broken", 3)
    assert written(tmp_path / "broken", 4, 6) == whole


def test_half_a_line_is_no_line(tmp_path):
    whole = written(tmp_path / "whole", 1, 2)
    with (tmp_path / "whole" / FILE).open("a") as file:
        file.write("1,3,0.25,0.1")
    assert [one.step for one in read(tmp_path / "whole")] == [1, 2]
    cut(tmp_path / "whole", 10)
    assert (tmp_path / "whole" / FILE).read_text() == whole


def test_a_number_cut_short_is_no_number(tmp_path):
    whole = written(tmp_path, 1)
    path = tmp_path / FILE
    path.write_text(whole + whole.splitlines()[1][:-1])
    assert [one.step for one in read(tmp_path)] == [1]


def test_a_run_that_begins_anew_leaves_no_earlier_line_and_no_empty_file(tmp_path):
    written(tmp_path, 1, 2)
    cut(tmp_path, 0)
    assert not (tmp_path / FILE).exists()
    cut(tmp_path, 0)


def test_a_file_of_other_columns_is_not_gone_on_with(tmp_path):
    (tmp_path / FILE).write_text("epoch,step,loss\n1,1,0.5\n")
    assert read(tmp_path) == []
    cut(tmp_path, 5)
    assert not (tmp_path / FILE).exists()
