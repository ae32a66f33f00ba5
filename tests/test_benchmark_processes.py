"""The benchmark of one process against two: what they compute is compared and shared; times are not tested."""

from __future__ import annotations

import json
import os
import signal
from math import isnan
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from dho_plugin import benchmark
from dho_plugin.benchmark import processes as benchmark_processes
from dho_plugin.benchmark.processes import QUICK, Shared, Time, Worker, compared, measure, rows, table
from dho_plugin.benchmark.steps import Bench
from dho_plugin.benchmark.team import Team
from dho_plugin.distributed import agreed, rank, world_size
from dho_plugin.errors import UsageError


class Server:
    """Says where it is, and fails when told to."""

    def __init__(self, name: str) -> None:
        self.name = name

    def where(self) -> tuple[str, int, int, int]:
        return self.name, world_size(), rank(), torch.get_num_threads()

    def fail(self, how: str) -> int:
        if rank() == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank() == 1:
            raise (UsageError if how == "usage" else ValueError)("its own disk is full")
        return agreed(0)  # for ever, if nobody says that the other has gone


def test_processes_of_a_team_are_one_run_of_a_thread_each(tmp_path):
    with Team(1, Server, "alone") as one, Team(2, Server, "both") as two:
        for _ in range(2):
            assert one.call("where") == [("alone", 1, 0, 1)]
            assert two.call("where") == [("both", 2, 0, 1), ("both", 2, 1, 1)]
    assert [process.exitcode for team in (one, two) for process in team.processes] == [0, 0, 0]


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("usage", UsageError, "disk is full"),
        ("error", RuntimeError, "disk is full"),
        ("killed", RuntimeError, "status -9"),
    ],
)
def test_a_process_that_fails_ends_the_call(how, kind, message):
    with pytest.raises(kind, match=message), Team(2, Server, "both") as team:
        team.call("fail", how)
    assert not any(process.is_alive() for process in team.processes)


class Counting(Worker):
    """Tells, in place of memory, how many images its step has looked at."""

    def __init__(self, *args: Any) -> None:
        ready = Bench.ready
        with patch.object(Bench, "ready", lambda *of, **options: self.watch(ready(*of, **options))):
            super().__init__(*args)

    def watch(self, trainer: Any) -> Any:
        labels, self.seen = trainer.labels, []
        trainer.labels = lambda batch: self.seen.append(len(batch["label"])) or labels(batch)
        return trainer

    def peak(self) -> int:
        return self.seen[-1]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_processes, "Worker", Counting)
    out = tmp_path / "b.json"
    line = ["--quick", "--parts", "processes", "--only", "LinearProbeDHO, live", "--json", str(out)]
    assert benchmark.main(line) == 0
    said = capsys.readouterr()
    assert said.out.count("| step of LinearProbeDHO, live, C = 4, B = 2") == 1
    assert "peers" not in said.out and "Loading" not in said.out + said.err
    (row,) = json.loads(out.read_text())["processes"]
    assert row["peaks"] == [2, 1]  # a batch, and the half of each process
    assert 0 < row["difference"] < 1e-5  # other partial sums
    assert [len(row[way]) for way in ("one", "two")] == [1, 1] and row["two"][0].keys() == {"wall", "busy"}


def test_the_two_share_an_evaluation_and_a_store(tmp_path):
    """Here one after the other in this process: what each row does where nothing is shared."""
    work = QUICK._replace(images=2)
    for number, name in enumerate(name for name in rows(work) if "evaluation" in name or "filling" in name):
        worker = Worker(name, tmp_path / str(number), work)
        first, second = worker.result(), worker.result()
        assert len(first) > 0 and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_process_is_compared_with_the_one():
    right, wrong = [np.ones(3)], [np.array([1.0, 1.0, 1.1])]
    assert compared(right, [right, right]) == 0
    assert compared(right, [right, wrong]) == pytest.approx(0.1 / 3**0.5)
    assert isnan(compared([], [[], []]))


def test_the_slower_of_two_and_the_larger_count():
    class Fake:
        def __init__(self, *each: Time) -> None:
            self.answers = {"result": [[]] * len(each), "times": list(each), "peak": [10 * len(each), 5][: len(each)]}

        def call(self, method: str) -> list:
            return self.answers[method]

    found = measure("a resnet18", Fake(Time(6.0, 4.0)), Fake(Time(2.0, 1.0), Time(3.0, 0.5)), 3)
    assert found.ratios("wall") == [2.0] * 3 and found.ratios("busy") == [4.0] * 3 and found.peaks == (10, 20)
    words = table([found._replace(peaks=None)]).lines[0]
    assert words[1:] == ("2.00 - 2.00 - 2.00", "4.00 - 4.00 - 4.00", "-", "-")


def test_results_that_differ_are_an_error(monkeypatch, capsys):
    once = [Time(1.0, 1.0)]
    found = [Shared("near", 1e-4, 1e-5, once, once, None), Shared("far", 1e-4, 1e-3, once, once, None)]
    monkeypatch.setattr(benchmark_processes, "measured", lambda *_: iter(found))
    assert benchmark.main(["--parts", "processes"]) == 1
    said = capsys.readouterr().err
    assert "far: the results differ by more than 0.0001" in said and "near" not in said


def test_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="measured on the CPU"):
        benchmark.main(["--parts", "processes", "--cuda"])
