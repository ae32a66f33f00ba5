"""log.txt across the processes of a run: one file, cut where a state goes on, and never somebody else's."""

from __future__ import annotations

import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from dho_plugin import run_log
from dho_plugin.sealed import DiskFull
from dho_plugin.states import FOLDER

ENDED = "epoch [1/1]\nFinish training\n* accuracy: 50.0%\n"


@pytest.fixture(autouse=True)
def another_process(monkeypatch) -> None:
    monkeypatch.setattr(run_log, "_began", {})


def write(folder: Path, text: str, finished: str | None = "", state: bool | None = None) -> Path:
    """A run's log; with a manifest where `finished` says so ("" for none), and a folder of states, empty for False."""
    log = folder / "log.txt"
    log.write_text(text)
    if finished != "":
        (folder / "manifest.json").write_text(json.dumps({"finished": finished}))
    if state is not None:
        (folder / FOLDER).mkdir()
    if state:
        (folder / FOLDER / "step-000000001.pt").touch()
    return log


def say(folder: Path, *lines: str, cut: int | None = None, fresh: bool = False) -> None:
    with run_log.open_log(folder, fresh=fresh) as log, redirect_stdout(log):
        print(lines[0])
        if cut is not None:
            run_log.cut(str(folder), cut)
        for line in lines[1:]:
            print(line)


@pytest.mark.parametrize(
    ("finished", "state", "over"),
    [("now", None, True), ("now", True, False), ("now", False, True), (None, None, False), ("", None, True)],
    ids=["finished", "its states still there", "killed while they went", "begun", "of an older version"],
)
def test_a_finished_runs_log_is_kept_and_another_is_gone_on_with(tmp_path, finished, state, over):
    log = write(tmp_path, ENDED, finished, state)
    say(tmp_path, "again")
    assert log.read_text() == (ENDED if over else f"{ENDED}again\n")
    dated = list(tmp_path.glob("log.txt-*"))
    assert [file.read_text() for file in dated] == ["again\n"] * over


def test_an_evaluation_never_goes_on_with_a_log(tmp_path):
    log = write(tmp_path, "epoch [1/2]\n", None)
    say(tmp_path, "evaluated", fresh=True)
    assert log.read_text() == "epoch [1/2]\n" and len(list(tmp_path.glob("log.txt-*"))) == 1


def test_lines_behind_the_state_are_cut_and_those_of_this_process_stay(tmp_path):
    log = write(tmp_path, "head\nstep 1\nstep 2\nhalf a st", None)
    say(tmp_path, "head again", "step 2", "step 3", cut=len("head\nstep 1\n"))
    assert log.read_text() == "head\nstep 1\nhead again\nstep 2\nstep 3\n"
    write(tmp_path, "killed before the first state\n", None)
    say(tmp_path, "head", "step 1", cut=0)
    assert log.read_text() == "head\nstep 1\n"


def test_what_is_not_this_processs_log_or_not_behind_the_state_is_not_cut(tmp_path):
    log = write(tmp_path, "another's\n", None)
    run_log.cut(str(tmp_path), 0)
    assert log.read_text() == "another's\n" and run_log.length(str(tmp_path)) is None
    say(tmp_path, "mine", cut=len("another's\n"))
    assert log.read_text() == "another's\nmine\n"
    say(tmp_path, "mine", cut=1000)
    assert log.read_text() == "another's\nmine\nmine\n"


def test_the_length_is_that_of_what_was_printed(tmp_path):
    with run_log.open_log(tmp_path) as log, redirect_stdout(log):
        print("five")
        assert run_log.length(str(tmp_path)) == 5


def test_of_nested_logs_the_inner_has_the_lines(tmp_path, capsys):
    (tmp_path / "stage_one").mkdir()
    with run_log.open_log(tmp_path) as log, redirect_stdout(log):
        say(tmp_path / "stage_one", "Finish training")
        print("stage two")
    assert (tmp_path / "log.txt").read_text() == "stage two\n"
    assert (tmp_path / "stage_one" / "log.txt").read_text() == "Finish training\n"
    assert capsys.readouterr().out == "Finish training\nstage two\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_once_and_the_console_still_hears(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(DiskFull) as error, run_log.open_log(tmp_path) as log, redirect_stdout(log):
        try:
            print("epoch [1/2]")
        finally:
            print("going down", flush=True)
    said = str(error.value)
    assert said.startswith(f"cannot write {tmp_path / 'log.txt'} ({os.strerror(28)}): ") and "\n" not in said
    assert " bytes are free in its folder; what was saved of the run stays. Make room" in said
    assert capsys.readouterr().out == "epoch [1/2]\ngoing down\n"
    with pytest.raises(DiskFull), run_log.written(tmp_path / "log.txt", append=True):
        print("a cell's")
    assert capsys.readouterr().out == ""
