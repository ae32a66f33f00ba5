from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import grid_cells
import pytest
import runs
import yaml

from dho_plugin import cli
from dho_plugin.__main__ import main as command
from dho_plugin.errors import UsageError
from dho_plugin.launch import TORCHRUN
from dho_plugin.tables import grid, slurm, sweep
from dho_plugin.tables.cells import LOG, RESULT, Cell, Method, Outcome, run_cell
from dho_plugin.tables.grid import local_slots, parse, plan_grid
from dho_plugin.tables.grid_display import FINISHED, RUNNING, LiveTable, Place, State, headline, remaining, table
from dho_plugin.tables.slurm import JOB, CellJob, minutes
from dho_plugin.tables.workers import visible_devices

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--trainers", "LinearProbe", "--datasets", "shapes", "--shots", "1", "--seeds", "1,2"]


def cells_of(words: str) -> list[Cell]:
    return [entry.cell for entry in plan_grid(parse(shlex.split(words)))]


@pytest.fixture
def trained(monkeypatch):
    """Trainings that do nothing, in this process: (trainer, dataset, shots, seed); those in `broken` fail."""
    trained = SimpleNamespace(done=[], broken=set())

    def train(cfg, args):
        trained.done.append((cfg.TRAINER.NAME, args.dataset, cfg.DATASET.NUM_SHOTS, cfg.SEED))
        if trained.done[-1] in trained.broken:
            raise RuntimeError("no such device")
        return {"test (oracle)" if "oracle" in args.opts else "test": 50.0 + cfg.SEED + len(cfg.TRAINER.NAME)}

    monkeypatch.setattr(cli, "run", train)
    monkeypatch.setattr(sweep, "worker", lambda *device: ThreadPoolExecutor(1))
    monkeypatch.setattr(grid, "check_training_sets", lambda configurations: list(configurations))
    monkeypatch.setattr(grid, "default_jobs", lambda cuda: 1)  # threads share standard output
    return trained


# What is run


def test_every_combination_is_a_command_line_in_coops_folders():
    words = "--trainers CoOp,CoOpDHO --datasets shapes,digits --shots 1 16 --seeds 1 2,3 OPTIM.LR 0.1 --output o"
    found = cells_of(words)
    assert len(found) == len({cell.folder for cell in found}) == 24
    assert found[0].folder == Path("o/shapes/CoOp/shapes_1shots/nctx16_cscFalse_ctpend/seed1")
    assert str(found[-1]) == "digits, 16-shot, CoOpDHO, seed 3"
    for cell in found:
        cfg = cli.build_config(cli.parser().parse_args(list(cell.words)))
        assert (str(cell.folder), 0.1, cell.seed) == (cfg.OUTPUT_DIR, cfg.OPTIM.LR, cfg.SEED)
    unplaced = [word for word in found[5].words if word not in ("--output-dir", str(found[5].folder))]
    there = cli.build_config(cli.parser().parse_args(unplaced)).OUTPUT_DIR
    assert Path(there).relative_to("output") == found[5].folder.relative_to("o")


def test_all_labels_have_a_folder_and_a_column_of_their_own():
    (cell,) = cells_of("--trainers LinearProbe --datasets shapes --shots -1 --seeds 0")
    assert cell.folder == Path("output/shapes/LinearProbe/shapes_all/seed0") and cell.group == "shapes, all"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--trainers CoOp,CoOpDOH --datasets shapes", "Did you mean 'CoOpDHO'"),
        ("--trainers CoOp --datasets shapez", "Did you mean 'shapes'"),
        ("--trainers CoOp,CoOp --datasets shapes", "expected different names"),
        ("--trainers CoOp --datasets shapes --shots 0", "--shots 0: expected"),
        ("--trainers CoOp --datasets shapes --shots 1,1", "--shots 1 1: expected"),
        ("--trainers CoOp --datasets shapes --seeds 1,1", "--seeds 1 1: expected"),
        ("--trainers CoOp --datasets shapes --jobs 0", "--jobs 0"),
        ("--trainers CoOp --datasets shapes --per-gpu 0", "--per-gpu 0"),
        ("--trainers CoOp --datasets shapes OUTPUT_DIR x", "OUTPUT_DIR is what"),
        ("--trainers CoOp --datasets shapes OPTIM.LRR 1", "Did you mean 'OPTIM.LR'"),
        ("--trainers CoOp --datasets imagenet", "no --root"),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, message, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(["grid", *words.split()]) == 2
    assert message in capsys.readouterr().err and not trained.done


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 copies of grid"),
        ({"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "8"}, "srun has started 4 copies of grid"),
        ({name: "2" for name in TORCHRUN}, "torchrun has started 2 copies of grid"),
    ],
)
def test_copies_of_a_grid_are_refused(environment, message, trained, tmp_path, monkeypatch, capsys):
    words = ["grid", *SMALL, "--output", str(tmp_path)]
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert command(words) == 2
    said = capsys.readouterr().err
    assert message in said and "srun --ntasks 1" in said and not trained.done and not list(tmp_path.iterdir())
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert command(words) == 0


def test_a_dry_run_prints_the_commands_and_how_many_are_finished(trained, tmp_path, capsys):
    words = ["grid", *SMALL, "--output", str(tmp_path)]
    assert command([*words, "--seeds", "1"]) == 0
    capsys.readouterr()
    assert command([*words, "--dry-run"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "# 1 of 2 are finished" and len(lines) == 2 and len(trained.done) == 1
    assert all(line.startswith("python train.py --dataset shapes --shots 1 --trainer LinearProbe") for line in lines)


# What is not run again


def test_finished_cells_are_skipped_by_their_mark_alone(trained, tmp_path, capsys):
    words = ["grid", *SMALL, "--output", str(tmp_path)]
    one, two = cells_of(shlex.join(words[1:]))
    one.folder.mkdir(parents=True)  # as a killed run leaves it
    (one.folder / LOG).write_text("epoch [1/5]\n")
    assert command(words) == 0 and len(trained.done) == 2
    assert command(words) == 0 and len(trained.done) == 2
    (two.folder / RESULT).unlink()
    assert command(words) == 0 and trained.done[2:] == [("LinearProbe", "shapes", 1, 2)]
    (one.folder / RESULT).write_text((one.folder / RESULT).read_text()[:60])  # half of a mark is none
    assert command(words) == 0 and trained.done[3:] == [("LinearProbe", "shapes", 1, 1)]
    assert (one.folder / LOG).read_text().startswith("epoch [1/5]\n")
    assert "shapes, 1-shot, LinearProbe, seed 2: started" in capsys.readouterr().out


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_folder_with_other_settings_is_refused_before_anything_runs(interrupted, trained, tmp_path, capsys):
    words = ["grid", *SMALL, "--output", str(tmp_path)]
    assert command([*words, "--seeds", "2"]) == 0
    if interrupted:
        (_, cell) = cells_of(shlex.join(words[1:]))
        result = json.loads((cell.folder / RESULT).read_text())
        (cell.folder / RESULT).unlink()
        (cell.folder / "config.yaml").write_text(yaml.safe_dump(result["settings"]))
    del trained.done[:]
    assert command([*words, "OPTIM.LR", "0.5"]) == 2
    assert "OPTIM.LR: 0.001 there, 0.5 now" in capsys.readouterr().err and not trained.done
    assert command(words) == 0


def test_an_output_folder_that_cannot_be_is_said_before_anything_runs(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert command(["grid", *SMALL, "--output", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot use ") and "choose an output folder" in said and not trained.done


def test_a_failing_cell_is_shown_with_its_log_and_missing_in_the_table(trained, tmp_path, capsys):
    trained.broken.add(("CoOpDHO", "shapes", 16, 1))
    words = "--trainers CoOp,CoOpDHO --datasets shapes,digits --shots 1,16 --seeds 1"
    assert command(["grid", *shlex.split(words), "--output", str(tmp_path), "TRAINER.DHO.CHOOSE", "oracle"]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(r"shapes, 16-shot, CoOpDHO, seed 1: RuntimeError: no such device \(see .*log.txt\)\n", said.err)
    assert "CoOpDHO, seed 1: failed, RuntimeError" in said.out and "are those of test (oracle)" in said.out
    lines = (tmp_path / "grid.md").read_text().splitlines()
    assert "| CoOpDHO  |   58.0 | missing |" in lines and "| CoOpDHO  |   58.0 |    58.0 |" in lines
    assert "| CoOpDHO minus CoOp                             |   +3.0 | missing |" in lines
    with (tmp_path / "grid.csv").open() as file:
        assert {(row["block"], row["row"], row["column"], row["mean"]) for row in csv.DictReader(file)} >= {
            ("shapes", "CoOpDHO", "16-shot", ""),
            ("digits", "CoOp", "1-shot", "55"),
        }
    assert len(json.loads((tmp_path / "grid.json").read_text())) == 7


# The table that is drawn again


def sheet() -> tuple[dict[Path, Place], dict[Path, State]]:
    marks = {"a 1": ("##.", 60.0), "a 16": (">..", None), "b 1": ("#x#", 58.5), "b 16": ("...", None)}
    places, states = {}, {}
    for name, (seeds, value) in marks.items():
        for seed, mark in enumerate(seeds):
            row, shots = name.split()
            places[Path(name, str(seed))] = Place(f"shapes {row}", f"{shots}-shot")
            values = {FINISHED: State(mark, value, 0.0, 100.0), RUNNING: State(mark, None, 30.0)}
            states[Path(name, str(seed))] = values.get(mark, State(mark))
    return places, states


def test_the_table_shows_each_seed_by_a_mark():
    places, states = sheet()
    assert table(places, states) == [
        "            1-shot  16-shot",
        "shapes a  60.0 ##.    - >..",
        "shapes b  58.5 #x#    - ...",
    ]
    assert (
        headline(states, 3725.0, 700.0)
        == "[5/12] 1 running (>), 6 waiting (.), 4 finished (#), 1 failed (x); 1:02:05, about 0:11:40 left"
    )
    assert headline(states, 59.6, None).endswith("failed (x); 0:01:00")


def test_the_time_left_is_that_of_like_cells_shared_by_the_slots():
    places, states = sheet()
    assert remaining(places, states, 40.0, 1) == 6 * 100 + 90
    assert remaining(places, states, 40.0, 3) == (6 * 100 + 90) / 3
    assert remaining(places, states, 40.0, 50) == 100  # the longest alone
    assert remaining(places, states, 900.0, 1) == 600  # late, but not negative
    slow = {**states, Path("b 1", "0"): State(FINISHED, 1.0, 0.0, 500.0)}
    assert remaining(places, slow, 40.0, 1) == 100 + 90 + 2 * 100 + 3 * 300
    assert remaining(places, {folder: State() for folder in states}, 0.0, 1) is None


def test_a_terminal_gets_the_table_in_place_and_errors_above_it(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((90, 24)))
    found = [Cell(Method(row, ()), seed, tmp_path / row / str(seed), (), group="g") for row in "abc" for seed in (1, 2)]
    stream = io.StringIO()
    shown = LiveTable(
        found, {c.folder: Place(c.method.row, "1-shot") for c in found}, 1, {found[0].folder: 9.0}, stream
    )
    shown.through(Outcome(found[0], {"test": 70.0}, fresh=False))
    shown.started(found[1])
    shown.tick()
    drawn = stream.getvalue().splitlines()
    assert drawn[0].startswith("[1/6] 1 running (>), 4 waiting (.), 1 finished (#); 0:00:00, about 0:00:45 left")
    assert drawn[1:] == ["    1-shot", "a  70.0 #>", "b     - ..", "c     - .."]
    stream.truncate(stream.seek(0))
    shown.through(Outcome(found[1], {}, "broken\x1b"))
    shown.tick()
    erase, table_again = stream.getvalue().split("g, a, seed 2: failed, broken")
    assert erase == "\x1b[5A\x1b[J" and "\x1b" not in table_again and "a  70.0 #x" in table_again
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((90, 5)))
    stream.truncate(stream.seek(0))
    shown.started(found[2])
    shown.tick()
    assert stream.getvalue().splitlines()[-2:] == ["b     - >.", "... 2 more rows"]


# GPUs


def test_each_visible_gpu_has_so_many_at_a_time(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc,-1,5")
    assert visible_devices() == ["3", "GPU-abc"]
    monkeypatch.setattr(grid.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweep, "worker", lambda device="": device)

    def slots(more: str) -> list[str]:
        args = parse([*SMALL, *more.split()])
        return [slot() for slot in local_slots(plan_grid(args)[0].cell, args)]

    assert slots("") == ["3", "GPU-abc"]
    assert slots("--per-gpu 2") == ["3", "GPU-abc", "3", "GPU-abc"]
    assert slots("--per-gpu 2 --jobs 3") == ["3", "GPU-abc", "3"]
    assert slots("--jobs 3 USE_CUDA False") == ["", "", ""]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots("--jobs 2") == ["", ""]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(grid.torch.cuda, "device_count", lambda: 2)
    assert slots("") == ["0", "1"]


def test_a_worker_sees_its_gpu_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    with sweep.worker("GPU-abc") as process:
        assert process.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "GPU-abc"


# Deaths and signals


class Waiting:
    """Cells that wait for a file, see grid_cells.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def words(self, *flags: str) -> list[str]:
        return ["grid", *SMALL, "--output", str(self.folder / "out"), *flags]

    def cell(self, seed: int) -> Path:
        return self.folder / "out" / "shapes" / "LinearProbe" / "shapes_1shots" / f"seed{seed}"

    def runs(self, seed: int) -> list[int]:
        """Process ids of the runs of a cell so far."""
        file = self.cell(seed) / "runs"
        return [int(line) for line in file.read_text().split()] if file.is_file() else []

    def go(self, *seeds: int) -> None:
        for seed in seeds:
            (self.folder / f"go{seed}").touch()

    def has_saved(self, seed: int) -> bool:
        return (self.cell(seed) / "saved").exists()


def until(condition) -> None:
    """Wait for another process."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited for a minute")


def is_gone(pid: int) -> bool:
    """Whether a process runs no more; it may wait to be collected."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture
def waiting(tmp_path, monkeypatch) -> Iterator[Waiting]:
    monkeypatch.setattr(sweep, "run_cell", partial(grid_cells.hold, str(tmp_path)))
    monkeypatch.setattr(grid, "check_training_sets", lambda configurations: None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests", os.getenv("PYTHONPATH", "")))))
    yield Waiting(tmp_path)
    Waiting(tmp_path).go(1, 2, 3)  # whatever a failing test leaves ends now


@contextmanager
def meanwhile(step):
    """Do this while the grid runs in this process."""
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(step)
        yield
        done.result()


def test_the_death_of_the_grid_ends_its_cells_and_another_does_the_rest(waiting, trained, tmp_path, capsys):
    waiting.go(1)
    script = [sys.executable, str(ROOT / "tests" / "grid_cells.py"), str(tmp_path)]
    first = subprocess.Popen([*script, *waiting.words("--jobs", "2", "--seeds", "1,2,3")], cwd=ROOT)
    try:
        until(lambda: (waiting.cell(1) / RESULT).is_file() and waiting.runs(2) and waiting.runs(3))
    finally:
        first.kill()
        first.wait()
    until(lambda: is_gone(waiting.runs(2)[0]) and is_gone(waiting.runs(3)[0]))
    assert not waiting.has_saved(2)
    sweep.run_cell = run_cell  # waiting puts it back
    assert command(waiting.words("--seeds", "1,2,3", "--jobs", "1")) == 0
    assert [seed for *_, seed in trained.done] == [2, 3]
    assert "seed 1: test 51.0  (finished before)" in capsys.readouterr().out


def test_the_death_of_a_cell_is_its_own_and_a_signal_is_passed_on(waiting, capsys):
    def interfere() -> None:
        until(lambda: waiting.runs(1) and waiting.runs(2))
        os.kill(waiting.runs(1)[0], signal.SIGKILL)
        shown = ""
        while "seed 1: failed" not in shown:
            shown += capsys.readouterr().out
        os.kill(os.getpid(), signal.SIGTERM)
        assert "its process died (out of memory?) (see " in shown

    before = signal.getsignal(signal.SIGTERM)
    with meanwhile(interfere):
        assert command(waiting.words("--jobs", "2")) == 128 + signal.SIGTERM
    shown = capsys.readouterr()
    assert "The same command goes on" in shown.err
    assert "seed 2: interrupted; run again, it goes on (see " in shown.out
    assert [waiting.has_saved(seed) for seed in (1, 2)] == [False, True]
    assert all(is_gone(pid) for seed in (1, 2) for pid in waiting.runs(seed))
    assert signal.getsignal(signal.SIGTERM) == before


# Slurm


def test_jobs_outlive_the_grid_and_no_cell_has_two(waiting, monkeypatch, capsys):
    """submitit's own local executor in place of Slurm: the grid is stopped, started again, a time limit comes."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    waiting.go(1)

    def stop() -> None:
        until(lambda: (waiting.cell(1) / RESULT).is_file() and waiting.runs(2))
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(stop):
        assert command(waiting.words("--launcher", "slurm")) == 128 + signal.SIGINT
    assert "its jobs stay in the queue" in capsys.readouterr().err
    (job,) = waiting.runs(2)
    assert not is_gone(job) and (waiting.cell(2) / JOB).is_file()

    def limit() -> None:
        os.kill(job, signal.SIGUSR1)
        until(lambda: len(waiting.runs(2)) == 2)
        waiting.go(2)

    with meanwhile(limit):
        assert command(waiting.words("--launcher", "slurm")) == 0
    assert "| LinearProbe | 51.5 ±0.7 |" in capsys.readouterr().out
    assert [len(waiting.runs(seed)) for seed in (1, 2)] == [1, 2] and waiting.has_saved(2)
    assert not (waiting.cell(2) / JOB).exists()
    assert len(list((waiting.folder / "out" / "slurm").glob("*_submitted.pkl"))) == 2


def fake_slurm(folder: Path, state: str, monkeypatch) -> None:
    """sbatch that keeps the script and runs nothing, and sacct that knows one state."""
    scripts = {
        "srun": "",
        "sbatch": f"cp $1 {folder}/script; echo Submitted batch job 7",
        "sacct": f"printf 'JobID|State|NodeList\\n7|{state}|n1\\n'",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(slurm.POLL, "slurm", 0.01)


def test_slurm_is_told_what_a_cell_needs_and_what_it_says_is_shown(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    fake_slurm(tmp_path, "OUT_OF_MEMORY", monkeypatch)
    asked = "--partition gpu --time 1-12 --mem 16G --cpus 4 --slurm constraint=a100 --seeds 1"
    words = ["grid", *SMALL, "--output", str(tmp_path / "out"), "--launcher", "slurm", *asked.split()]
    assert command(words) == 1
    assert "seed 1: job 7 ended as OUT_OF_MEMORY; its output is" in capsys.readouterr().err
    flags = set(re.findall(r"#SBATCH --(\S+)", (tmp_path / "script").read_text()))
    assert flags >= {"signal=USR1@120", "partition=gpu", "time=2160", "mem=16G", "gpus-per-node=1", "constraint=a100"}
    assert "cpus-per-task=4" in flags and "nodes=1" in flags and not trained.done
    assert "export SUBMITIT_PREEMPT_SIGNAL=USR1" in (tmp_path / "script").read_text()
    (cell,) = cells_of(shlex.join(words[1:]))
    assert json.loads((cell.folder / JOB).read_text())["id"] == "7"


@pytest.mark.parametrize(("status", "again"), [(128 + signal.SIGUSR1, True), (128 + signal.SIGTERM, False)])
def test_a_job_at_its_time_limit_is_queued_again_after_its_cell_has_saved(status, again, tmp_path, monkeypatch):
    """A job that is cancelled (SIGTERM) is not."""
    order = []

    def cell_that_leaves(cell, threads):
        order.append("saved")
        raise SystemExit(status)

    (cell,) = cells_of(f"--trainers LinearProbe --datasets shapes --seeds 1 --output {tmp_path}")
    cell.folder.mkdir(parents=True)
    environment = SimpleNamespace(cluster="local", job_id="5", paths=SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr("submitit.JobEnvironment", lambda: environment)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: order.append("requeued"))
    try:
        with pytest.raises(SystemExit):
            CellJob(cell_that_leaves, cell, 1)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert order == ["saved", "requeued"][: 1 + again]
    environment.job_id = "6"
    assert CellJob(cell_that_leaves, cell, 1)().error == "job 5 runs it"


def test_durations_are_slurms():
    given = {"90": 90, "1:30": 2, "2:00:00": 120, "1-0": 1440, "1-02:30": 1590, "0-0:0:61": 2}
    assert {text: minutes(text) for text in given} == given
    for text in ("", "0", "1h", "1:2:3:4"):
        with pytest.raises(UsageError, match="--time"):
            minutes(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--slurm constraint", "expected KEY=VALUE"),
        ("--slurm nodes=2", "nodes is settled here"),
        ("--time soon", "--time soon"),
        ("", 'Could not detect "srun"'),
    ],
)
def test_slurm_that_cannot_be_is_refused(words, message, trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    line = ["grid", *SMALL, "--output", str(tmp_path), "--launcher", "slurm", *words.split()]
    assert command(line) == 2
    assert message in capsys.readouterr().err and not trained.done


def test_a_missing_submitit_is_said(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert command(["grid", *SMALL, "--output", str(tmp_path), "--launcher", "slurm"]) == 2
    assert "pip install 'dho_plugin[slurm]'" in capsys.readouterr().err


# For real


def test_a_small_grid_for_real(workspace, tmp_path, capsys):
    """Trainers, processes and files as they are; CoOp's parser takes the last accuracy behind the end of training."""
    words = runs.words(workspace, "LinearProbe", tmp_path)
    options = words[words.index("OPTIM.MAX_EPOCH") :]
    models = ["MODEL.BACKBONE.NAME", f"{workspace}/student.safetensors", "USE_CUDA", "False"]
    what = f"--trainers LinearProbe,TipAdapter --datasets imagenet --root {workspace} --shots 1,2 --seeds 1 --jobs 1"
    line = ["grid", *what.split(), "--output", str(tmp_path), *options, *models]
    assert command(line) == 0
    out = capsys.readouterr().out
    records = json.loads((tmp_path / "grid.json").read_text())
    assert len(records) == 4 and (tmp_path / "grid.md").read_text() in out
    for record in records:
        (log,) = tmp_path.glob(f"imagenet/{record['row']}/*_{record['column'][0]}shots/seed1/{LOG}")
        after = log.read_text().partition("Finish training\n")[2] or log.read_text()
        assert float(re.findall(r"\* accuracy: ([\d.]+)%", after)[-1]) == pytest.approx(record["accuracy"], abs=0.1)
    assert command(line) == 0
    assert capsys.readouterr().out.count("finished before") == 4
