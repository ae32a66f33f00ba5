"""One run at a time in a folder, and nothing of it left when its process is gone."""

from __future__ import annotations

import errno
import json
import os
import platform
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import children
import processes
import pytest
import runs

from dho_plugin import cli
from dho_plugin.distributed import joined
from dho_plugin.errors import UsageError
from dho_plugin.locks import held
from dho_plugin.tables import cells
from dho_plugin.tables.cells import LOG, RESULT, Method, plan, run_cell

fcntl = pytest.importorskip("fcntl")


def test_a_second_start_is_refused_until_the_first_has_ended(tmp_path):
    log = tmp_path / "out" / LOG
    with held(log), pytest.raises(UsageError) as error, held(log):
        pytest.fail("two at once")
    me = f"process {os.getpid()} on {platform.node()}" if Path("/proc/locks").exists() else "another process"
    assert f"out is in use: {me}" in str(error.value) and "choose another folder" in str(error.value)
    with held(log):
        pass
    assert [path.name for path in log.parent.iterdir()] == [LOG] and log.read_bytes() == b""


@children.fork
def test_the_lock_of_a_killed_process_is_gone_though_its_worker_lives(tmp_path):
    log, end = tmp_path / LOG, tmp_path / "end"

    def work(reached: Callable[[], None]) -> None:
        with held(log):
            children.child(wait_for, end).start()
            with pytest.raises(UsageError), held(log):  # the worker has let go of its copy alone
                pass
            reached()

    try:
        children.killed(work)
        with held(log):
            pass
    finally:
        end.touch()


def wait_for(file: Path) -> None:
    while not file.exists():
        threading.Event().wait(0.01)


def test_where_files_cannot_be_locked_nobody_is_kept_out(tmp_path, monkeypatch):
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with held(tmp_path / LOG), held(tmp_path / LOG):
        pass


def test_a_run_that_finds_another_in_its_folder_writes_nothing(workspace, tmp_path, capsys):
    words = runs.words(workspace, "ZeroshotCLIP", tmp_path)
    looking = runs.words(workspace, "ZeroshotCLIP", tmp_path, "--eval-only")
    with held(tmp_path / LOG):
        assert cli.main(words) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path} is in use: ")
        assert (tmp_path / LOG).read_bytes() == b"" and len(list(tmp_path.iterdir())) == 1
        assert cli.main(looking) == 0
    assert cli.main(words) == 0 and (tmp_path / LOG).stat().st_size


def together(folder: Path) -> bool:
    with joined(), cli.logged(folder):
        return True


def test_the_processes_of_a_run_are_one(tmp_path):
    assert processes.run(2, together, tmp_path) == [True, True]
    with held(tmp_path / LOG):
        first, second = processes.outcomes(2, together, tmp_path, seconds=30)
    assert "is in use" in first.error and not second.value == first.value is True


def test_a_cell_in_use_is_said_and_one_finished_meanwhile_is_not_run_again(tmp_path, monkeypatch):
    (cell,) = plan([Method("LP", ("--trainer", "LinearProbe"))], [1], tmp_path, ("--dataset", "shapes"))
    run = []
    monkeypatch.setattr(cells.cli, "run", lambda cfg, args: run.append(cfg) or {"test": 50.0})
    take = partial(run_cell, cell, cells.torch.get_num_threads())
    with held(cell.folder / LOG):
        assert "is in use: " in take().error and not run
    first = take()
    result = json.loads((cell.folder / RESULT).read_text())
    assert take() == first._replace(fresh=False) and len(run) == 1
    assert json.loads((cell.folder / RESULT).read_text()) == result
