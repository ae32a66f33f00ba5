from __future__ import annotations

import json
import os
import shlex
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pytest
import runs
import torch

from dho_plugin import cli
from dho_plugin.errors import UsageError
from dho_plugin.tables import sweep
from dho_plugin.tables.cells import LOG, RESULT, Method, Outcome, cell_folder, finished, made_by, plan, run_cell
from dho_plugin.tables.sweep import check_request, report_failures

FLAGS = ("--dataset", "shapes")
ZERO_SHOT = Method("zero-shot", ("--trainer", "ZeroshotCLIP"), seeded=False)
COOP = Method("CoOp, plain (16)", ("--trainer", "CoOp"), control="zero-shot")
PROBE = Method("LP", ("--trainer", "LinearProbe"))
STAGES = (
    Method("one", ("--trainer", "CoOp")),
    Method("two", ("--trainer", "LinearProbe"), ("RESUME", "{after}/checkpoints"), after="one"),
)


@pytest.fixture
def trained(monkeypatch):
    """Trainings that do nothing, in this process: (trainer, seed) in their order; those in `broken` fail."""
    trained = SimpleNamespace(done=[], broken={}, offset=0.0)

    def train(cfg, args):
        trained.done.append((cfg.TRAINER.NAME, cfg.SEED))
        if trained.done[-1] in trained.broken:
            raise trained.broken[trained.done[-1]]
        print(f"training on {torch.get_num_threads()}")
        return {"test": 50.0 + cfg.SEED + trained.offset, "V2": 40.0}

    monkeypatch.setattr(cli, "run", train)
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    return trained


def run(cells, seeds=(1, 2)):
    return sweep.sweep(cells, seeds, jobs=1, threads=torch.get_num_threads())


def test_a_cell_is_a_command_line_of_train_py(tmp_path):
    shared = ("OPTIM.MAX_EPOCH", "1")
    cells = plan([ZERO_SHOT, COOP], [3, 4], tmp_path, FLAGS, shared)
    assert [(cell.method.row, cell.seed) for cell in cells] == [("zero-shot", 3), (COOP.row, 3), (COOP.row, 4)]
    assert cells[2].folder == tmp_path / "CoOp_plain_16" / "seed4"
    expected = f"--dataset shapes --trainer CoOp --seed 4 --output-dir {cells[2].folder} OPTIM.MAX_EPOCH 1"
    assert cells[2].words == tuple(shlex.split(expected))


def test_a_rows_own_words_win_over_shared_ones(tmp_path):
    own = Method("own", ("--trainer", "ZeroshotCLIP", "--backbone", "shapes-teacher"), ("OPTIM.LR", "2.0"))
    (cell,) = plan([own], [1], tmp_path, (*FLAGS, "--backbone", "shapes-student"), ("OPTIM.LR", "1.0"))
    cfg = cli.build_config(cli.parser().parse_args(list(cell.words)))
    assert (cfg.MODEL.BACKBONE.NAME, cfg.OPTIM.LR) == ("shapes-teacher", 2.0)


def test_rows_without_a_seed_run_once_and_count_for_each(trained, tmp_path):
    records, failed = run(plan([ZERO_SHOT, PROBE], [1, 2], tmp_path, FLAGS))
    assert trained.done == [("ZeroshotCLIP", 1), ("LinearProbe", 1), ("LinearProbe", 2)] and not failed
    tests = {(record.row, record.seed): record.accuracy for record in records if record.column == "test"}
    assert tests == {("zero-shot", 1): 51.0, ("zero-shot", 2): 51.0, ("LP", 1): 51.0, ("LP", 2): 52.0}


def test_what_is_finished_is_not_run_again(trained, tmp_path, capsys):
    cells = plan([COOP, PROBE], [1, 2], tmp_path, FLAGS)
    first = run(cells)
    assert "finished before" not in capsys.readouterr().out
    assert run(cells) == first and len(trained.done) == 4
    assert capsys.readouterr().out.count("finished before") == 4
    (cells[1].folder / RESULT).unlink()
    assert sorted(run(cells)[0]) == sorted(first[0]) and trained.done[4:] == [("CoOp", 2)]


def test_a_result_says_what_it_is_the_result_of(trained, tmp_path):
    cells = plan([COOP], [2], tmp_path, FLAGS)
    run(cells)
    result = json.loads((cells[0].folder / RESULT).read_text())
    assert (result["row"], result["seed"], result["accuracies"]) == (COOP.row, 2, {"test": 52.0, "V2": 40.0})
    assert (result["settings"]["TRAINER.NAME"], result["settings"]["INPUT.SIZE"]) == ("CoOp", [32, 32])
    assert result["seconds"] >= 0
    assert (cells[0].folder / LOG).read_text() == f"training on {torch.get_num_threads()}\n"
    assert f"torch {torch.__version__}" in result["made_by"]
    (cells[0].folder / RESULT).write_text(json.dumps({**result, "made_by": "torch 1.0"}))
    run(plan([PROBE], [2], tmp_path, FLAGS))
    both = [*cells, *plan([PROBE], [2, 3], tmp_path, FLAGS)]
    assert made_by(both) == [result["made_by"], "torch 1.0"]


def test_processors_are_shared(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(sweep, "run_cell", lambda cell, threads: given.append(threads) or Outcome(cell, {}))
    for jobs, threads in ((3, 0), (16, 0), (3, 1)):
        sweep.sweep(plan([PROBE], [1], tmp_path, FLAGS), [1], jobs=jobs, threads=threads)
    assert given == [2, 1, 1]
    assert (sweep.default_jobs(cuda=True), sweep.default_jobs(cuda=False)) == (1, 8)


def test_a_run_takes_the_threads_it_is_given(trained, tmp_path, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(cli, "run", lambda cfg, args: {"test": float(torch.get_num_threads())})
    try:
        (cell,) = plan([PROBE], [1], tmp_path, FLAGS)
        assert run_cell(cell, before + 2).accuracies == {"test": before + 2}
    finally:
        torch.set_num_threads(before)


def test_a_folder_with_other_settings_is_refused_before_anything_runs(trained, tmp_path):
    run(plan([PROBE], [2], tmp_path, FLAGS))
    del trained.done[:]
    with pytest.raises(UsageError, match=r"OPTIM.LR: 0.001 there, 0.5 now.*--output-dir, or delete the folder"):
        run(plan([COOP, PROBE], [1, 2], tmp_path, FLAGS, ("OPTIM.LR", "0.5")))
    assert trained.done == []


def test_where_the_data_lie_is_no_other_setting(trained, tmp_path):
    run(plan([PROBE], [1], tmp_path, FLAGS))
    (cell,) = plan([PROBE], [1], tmp_path, (*FLAGS, "--root", "elsewhere"), ("DATALOADER.NUM_WORKERS", "3"))
    assert finished(cell) == Outcome(cell, {"test": 51.0, "V2": 40.0}, fresh=False)


def test_an_unknown_key_in_the_last_cell_is_said_before_the_first_runs(trained, tmp_path):
    with pytest.raises(UsageError, match=r"Did you mean 'TRAINER\.DHO\.LAMBDA'"):
        run(plan([PROBE, COOP._replace(options=("TRAINER.DHO.LAMDA", "1"))], [1], tmp_path, FLAGS))
    assert trained.done == []


def test_a_failing_cell_leaves_the_others(trained, tmp_path, capsys):
    trained.broken.update({("CoOp", 1): RuntimeError("no such device"), ("LinearProbe", 1): UsageError("no such file")})
    cells = plan([COOP, PROBE], [1, 2], tmp_path, FLAGS)
    records, failed = run(cells)
    assert {(record.row, record.seed) for record in records} == {(COOP.row, 2), ("LP", 2)}
    assert "CoOp, plain (16), seed 1: failed" in capsys.readouterr().out
    assert report_failures(failed) == 1 and report_failures([]) == 0
    log = cells[0].folder / LOG
    assert capsys.readouterr().err.splitlines() == [
        f"CoOp, plain (16), seed 1: RuntimeError: no such device (see {log})",
        f"LP, seed 1: error: no such file (see {cells[2].folder / LOG})",
    ]
    assert "Traceback" in log.read_text() and "Traceback" not in (cells[2].folder / LOG).read_text()
    trained.broken.clear()
    del trained.done[:]
    assert not run(cells)[1] and trained.done == [("CoOp", 1), ("LinearProbe", 1)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_on_a_full_disk_costs_its_cell_alone_and_is_named(trained, tmp_path):
    cells = plan([PROBE], [1, 2], tmp_path, FLAGS)
    cells[0].folder.mkdir(parents=True)
    (cells[0].folder / LOG).symlink_to("/dev/full")
    records, failed = run(cells)
    assert {(record.row, record.seed) for record in records} == {("LP", 2)}
    assert failed[0].error.startswith(f"error: cannot write {cells[0].folder / LOG} (No space left on device): ")


def test_stage_two_reads_the_folder_of_stage_one_of_its_seed(tmp_path):
    cells = plan(STAGES, [1, 2], tmp_path, FLAGS)
    assert cells[3].words[-2:] == ("RESUME", f"{cell_folder(tmp_path, 'one', 2)}/checkpoints")
    with pytest.raises(ValueError, match="'two' waits for 'one'"):
        plan(STAGES[::-1], [1], tmp_path, FLAGS)


def test_stage_two_runs_as_soon_as_stage_one_of_its_seed_is_finished(monkeypatch, tmp_path):
    """Two at a time: seed 1 of stage one ends only after stage two of seed 2 has run."""
    order, through = [], Event()

    def slow(cell, threads):
        if (cell.method.row, cell.seed) == ("one", 1):
            assert through.wait(60)
        order.append((cell.method.row, cell.seed))
        if order[-1] == ("two", 2):
            through.set()
        return Outcome(cell, {"test": 1.0})

    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(sweep, "run_cell", slow)
    sweep.sweep(plan(STAGES, [1, 2], tmp_path, FLAGS), [1, 2], jobs=2)
    assert order == [("one", 2), ("two", 2), ("one", 1), ("two", 1)]


def test_stage_two_is_not_run_where_stage_one_failed(trained, tmp_path, capsys):
    trained.broken["CoOp", 1] = RuntimeError("broken")
    records, failed = run(plan(STAGES, [1, 2], tmp_path, FLAGS))
    assert trained.done == [("CoOp", 1), ("CoOp", 2), ("LinearProbe", 2)]
    assert [str(outcome.cell) for outcome in failed] == ["one, seed 1", "two, seed 1"]
    report_failures(failed)
    assert capsys.readouterr().err.splitlines()[1] == "two, seed 1: not run, since 'one' failed"
    assert {(record.row, record.seed) for record in records} == {("one", 2), ("two", 2)}


def test_stage_two_runs_on_a_stage_one_of_earlier(trained, tmp_path):
    run(plan(STAGES[:1], [1], tmp_path, FLAGS))
    assert not run(plan(STAGES, [1], tmp_path, FLAGS), [1])[1]
    assert trained.done == [("CoOp", 1), ("LinearProbe", 1)]


def test_stage_two_of_another_stage_one_is_not_finished(trained, tmp_path):
    cells = plan(STAGES, [1], tmp_path, FLAGS)
    run(cells)
    run(cells)
    assert trained.done == [("CoOp", 1), ("LinearProbe", 1)]
    (cells[0].folder / RESULT).unlink()  # so that stage one runs again, and ends elsewhere
    trained.offset = 7.0
    run(cells)
    assert trained.done[2:] == [("CoOp", 1), ("LinearProbe", 1)]
    assert finished(cells[1]) is not None
    result = json.loads((cells[0].folder / RESULT).read_text())
    (cells[0].folder / RESULT).write_text(json.dumps({**result, "accuracies": {"test": 1.0}}))
    assert finished(cells[1]) is None


def die_or_answer(cell, threads):
    """Stands for two runs, of which the system kills the first."""
    if cell.method.row == COOP.row:
        os._exit(9)
    return Outcome(cell, {"test": float(threads)})


def test_a_run_that_takes_its_process_down_takes_no_other_with_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "run_cell", die_or_answer)
    records, failed = sweep.sweep(plan([COOP, PROBE], [1], tmp_path, FLAGS), [1], jobs=1, threads=5)
    assert [(outcome.cell.method.row, outcome.error) for outcome in failed] == [
        (COOP.row, "its process died (out of memory?)")
    ]
    assert [(record.row, record.accuracy) for record in records] == [("LP", 5.0)]


def test_what_a_worker_raises_costs_its_cell_alone(monkeypatch, tmp_path):
    """A disk that is full before the log is open; a signal that only the worker got."""
    raised = {COOP.row: OSError("No space left on device"), "one": SystemExit(143)}

    def fail(cell, threads):
        if cell.method.row in raised:
            raise raised[cell.method.row]
        return Outcome(cell, {"test": 5.0})

    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(sweep, "run_cell", fail)
    records, failed = sweep.sweep(plan([COOP, STAGES[0], PROBE], [1], tmp_path, FLAGS), [1], jobs=1)
    assert [outcome.error for outcome in failed] == ["OSError: No space left on device", sweep.INTERRUPTED]
    assert [record.row for record in records] == ["LP"]


def test_a_worker_that_dies_while_it_has_nothing_to_do_is_replaced(monkeypatch, tmp_path):
    class Dead(ThreadPoolExecutor):
        def submit(self, *args):
            raise BrokenExecutor

    workers = iter([Dead, ThreadPoolExecutor])
    monkeypatch.setattr(sweep, "worker", lambda: next(workers)(1))
    monkeypatch.setattr(sweep, "run_cell", lambda cell, threads: Outcome(cell, {"test": 5.0}))
    assert not sweep.sweep(plan([PROBE], [1, 2], tmp_path, FLAGS), [1, 2], jobs=1)[1]


@pytest.mark.parametrize(
    ("seeds", "jobs", "files", "message"),
    [
        ([1], 0, {}, "--jobs 0"),
        ([1, 1], 1, {}, "--seeds 1 1"),
        ([-1], 1, {}, "--seeds -1"),
        ([], 1, {}, "--seeds"),
        ([1], 1, {"--json": "nowhere/r.json"}, "--json nowhere/r.json"),
    ],
)
def test_requests_that_cannot_end_well_are_refused(seeds, jobs, files, message):
    with pytest.raises(UsageError, match=message):
        check_request(seeds, jobs, files)


def test_a_run_that_was_stopped_goes_on_from_its_checkpoints(workspace, tmp_path):
    """The real trainer; its result is taken away, as if it had been killed in the evaluation."""
    words = runs.words(workspace, "LinearProbe", tmp_path)
    start = words.index("OPTIM.MAX_EPOCH")
    flags = [word for word in words[:start] if word not in ("--output-dir", str(tmp_path))]
    (cell,) = plan([Method("LP", ())], [1], tmp_path, flags, words[start:])
    first = run_cell(cell, torch.get_num_threads())
    log = (cell.folder / LOG).read_text()
    assert "epoch [2/2]" in log
    (cell.folder / RESULT).unlink()
    again = run_cell(cell, torch.get_num_threads())
    assert again.accuracies == first.accuracies and not again.error
    whole = (cell.folder / LOG).read_text()
    continued = whole.removeprefix(log)
    assert whole.startswith(log) and "accuracy" in continued and "epoch [" not in continued
    assert finished(cell) == first._replace(fresh=False)
