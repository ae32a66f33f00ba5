"""Several processes stop together: told to, killed, or by an error that only one of them meets; and the run goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import kills
import processes
import pytest
import runs
import torch
from dho_plugin.trainers.base import MethodTrainer
from dho_plugin.trainers.linear_probe import LinearProbe
from dho_plugin.trainers.resumable import Resumable
from joint_runs import Left, commands, files, log, manifest, relative
from test_joint_runs import COMPACT, both_stages, line

from dho_plugin import stopping, stored_features
from dho_plugin.distributed import joined
from dho_plugin.stopping import Stopped
from dho_plugin.stored_features import StoredFeatures

ROOT = Path(__file__).resolve().parent.parent
Plan = dict[str, tuple[int, Any, int]]


def told(plan: Plan) -> None:
    """Have processes signal themselves.

    Args:
        plan: by the name of an output folder the process, the moment ("answer", "store", or a number of steps), and the
            signal; each once.
    """

    def at(name: str, moment: Any) -> None:
        rank, wanted, number = plan.get(name, (-1, None, 0))
        if str(rank) == os.environ["RANK"] and wanted == moment:
            del plan[name]
            os.kill(os.getpid(), number)

    after, parse, add = Resumable.after_step, MethodTrainer.parse_batch_test, StoredFeatures.add

    def stepped(trainer: Any) -> None:
        at(Path(trainer.cfg.OUTPUT_DIR).name, trainer.epoch * trainer.num_batches + trainer.batch_idx + 1)
        after(trainer)

    def parsed(trainer: Any, *args: Any) -> Any:
        at(Path(trainer.cfg.OUTPUT_DIR).name, "answer")
        return parse(trainer, *args)

    def added(stored: StoredFeatures, *args: Any) -> None:
        at("filled", "store")
        add(stored, *args)

    Resumable.after_step, MethodTrainer.parse_batch_test, StoredFeatures.add = stepped, parsed, added
    stored_features.BATCH = 4


# Being told to

COMPACT_RUN, AVERAGED = ("StudentDHO", COMPACT), ("PromptSRC", "")
TERM, USR1 = signal.SIGTERM, signal.SIGUSR1
# By the name of a run: the trainer and its options, how many processes it has before it is told to stop and after; who
# is told, when, and by what.
STOPPED: dict[str, tuple[tuple[str, str], int, int, tuple[int, Any, int]]] = {
    "again": (COMPACT_RUN, 2, 2, (1, 3, TERM)),
    "averaged": (AVERAGED, 2, 2, (0, 2, TERM)),
    "evaluated": (("StudentDHO", f"{COMPACT} DATALOADER.TEST.BATCH_SIZE 5"), 2, 2, (1, "answer", TERM)),
    "fewer": (COMPACT_RUN, 2, 1, (0, 1, USR1)),
    "more": (AVERAGED, 1, 2, (0, 3, TERM)),
}


def starts(workspace: Path, folder: Path, count: int, second: bool) -> dict[str, list[str]]:
    """The commands of a number of processes, before or after they were told to stop."""
    found = {
        name: line(workspace, trainer, folder / name, options)
        for name, ((trainer, options), before, after, _) in STOPPED.items()
        if (after if second else before) == count
    }
    if not second:
        for trainer, options in (COMPACT_RUN, AVERAGED):
            found[f"{trainer} {count}"] = line(
                workspace, trainer, folder / f"{trainer} {count}".replace(" ", "_"), options
            )
    if count == 2:
        found["stages"] = both_stages(workspace, folder / "stages")
        found["filled"] = line(workspace, "LinearProbe", folder / "filled", f"STORE.DIR {folder / 'store'}")
    return found


@pytest.fixture(scope="module")
def stopped(workspace, tmp_path_factory) -> tuple[Path, dict[str, list[list[Left]]]]:
    """The folder of all runs, and what each process has of them: of the first start and of the second one; float64."""
    folder = tmp_path_factory.mktemp("stopped")
    runs.boosting(workspace)
    left: dict[str, list[list[Left]]] = {}
    plan = {name: when for name, (*_, when) in STOPPED.items()}
    plan |= {"stage_one": (1, 1, TERM), "filled": (1, "store", TERM)}
    for second in (False, True):
        for count in (1, 2):
            wanted = starts(workspace, folder, count, second)
            change = partial(told, {} if second else plan)
            found = processes.run(count, commands, list(wanted.values()), True, change)
            for name, of in zip(wanted, zip(*found, strict=True), strict=True):
                left.setdefault(name, []).append(list(of))
    return folder, left


@pytest.mark.parametrize("name", STOPPED)
def test_processes_stop_after_the_same_step_and_go_on_in_any_number(stopped, name):
    folder, left = stopped
    (trainer, _), before, after, (_, when, number) = STOPPED[name]
    first, second = left[name]
    steps = 4 if when == "answer" else when
    assert [of.status for of in first] == [128 + number] * before and [of.status for of in second] == [0] * after
    assert [len(of.losses) for of in first] == [steps] * before
    where = "in an evaluation" if when == "answer" else f"after epoch {(when + 1) // 2}, batch {2 - when % 2}/2"
    assert first[0].said.startswith(f"stopped by {signal.Signals(number).name} {where}; the same command")
    assert [of.said for of in first[1:]] == [""] * (before - 1)
    alone, whole = left[f"{trainer} 1"][0][0], left[f"{trainer} 2"][0]
    for of in second:
        assert max(relative(alone.losses, first[0].losses + of.losses)) < 1e-6
        for key, value in alone.learned.items():
            torch.testing.assert_close(of.learned[key], value, rtol=1e-6, atol=1e-6)
        if before == after == 2:
            assert of.model == whole[0].model == whole[1].model and first[0].losses + of.losses == whole[0].losses
    one, other = folder / f"{trainer}_1", folder / name
    assert files(one) == files(other) and log(one) == log(other) and manifest(one) == manifest(other)


def test_both_stages_and_a_store_stop_together(stopped):
    left = stopped[1]
    for name, where in (("stages", "after epoch 1, batch 1/1"), ("filled", "while STORE.DIR was filled")):
        first, second = left[name]
        assert [of.status for of in first] == [143, 143] and [of.status for of in second] == [0, 0], first[0].said
        assert where in first[0].said and first[1].said == ""
    assert [len(of.losses) for of in left["stages"][0]] == [1, 1]
    assert [len(of.losses) for of in left["stages"][1]] == [1 + 4] * 2


# Dropping out


def dropped(workspace: Path, folder: Path, stop: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """What this process drops in each step of a run that is stopped after some and goes on, and what it has learned."""
    found: list[torch.Tensor] = []
    after = Resumable.after_step

    def stepped(trainer: Any) -> None:
        stopping._asked = TERM if len(found) == stop else 0
        after(trainer)

    Resumable.after_step = stepped
    try:
        with joined():
            while len(found) < 6:
                options = "TRAINER.DHO.HEAD.KD nonlinear TEST.NO_TEST True"
                trainer = runs.make(workspace, "LinearProbeDHO", folder, "", options)
                (layer,) = (module for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout))
                layer.register_forward_hook(lambda module, inputs, out: found.append(out == 0))
                with suppress(Stopped):
                    trainer.train()
            return found, {key: value.clone() for key, value in trainer.model.state_dict().items()}
    finally:
        Resumable.after_step = after
        stopping._asked = 0


def test_processes_drop_out_each_by_itself_and_go_on_as_if_never_stopped(workspace, tmp_path):
    whole = processes.run(2, dropped, workspace, tmp_path / "whole", 0)
    broken = processes.run(2, dropped, workspace, tmp_path / "broken", 4)
    for (masks, learned), (again, ended) in zip(whole, broken, strict=True):
        assert len(masks) == 6 and 0 < torch.stack(masks).float().mean() < 0.3
        assert kills.unequal(masks, again) == [] and kills.unequal(learned, ended) == []
        assert not any(torch.equal(one, other) for one, other in pairwise(masks))
    assert not any(torch.equal(one, other) for one, other in zip(whole[0][0], whole[1][0], strict=True))
    assert kills.unequal(whole[0][1], whole[1][1]) == []


# Being killed, and errors that one process meets


def poisoned(step: int) -> None:
    """Have a feature of the second process's second image be no number, once."""
    features, calls = LinearProbe.features, []

    def broken(trainer: Any, batch: Any) -> Any:
        found = features(trainer, batch)
        calls.append(None)
        if os.environ["RANK"] == "1" and len(calls) >= step:
            found = found.clone()
            found[1] = torch.nan
        return found

    LinearProbe.features = broken


def test_a_process_that_is_killed_takes_the_others_with_it_and_costs_nothing(workspace, tmp_path):
    words = line(workspace, "LinearProbe", tmp_path / "killed", "TRAIN.SAVE_MINUTES 0")
    plan = {"killed": (1, 3, signal.SIGKILL)}
    first, second = processes.outcomes(2, commands, [words], False, partial(told, plan), seconds=60)
    assert second.error == "ended with status -9"
    assert first.value[0].status == 1 and "another process of this run has stopped" in first.value[0].said
    assert all(
        file.startswith(("state/step-", "tensorboard", "config", "log", "split", "manifest"))
        for file in files(tmp_path / "killed")
    )
    again, whole = commands_alone([words, line(workspace, "LinearProbe", tmp_path / "whole")])
    assert again.status == 0 and 0 < len(again.losses) < 4
    assert max(relative(whole.losses[-len(again.losses) :], again.losses)) < 1e-5
    assert files(tmp_path / "whole") == files(tmp_path / "killed") and log(tmp_path / "whole") == log(
        tmp_path / "killed"
    )


def commands_alone(lines: list[list[str]]) -> list[Left]:
    return processes.run(1, commands, lines, False)[0]


def test_a_loss_that_is_not_finite_in_one_process_stops_all_before_the_step(workspace, tmp_path):
    before = line(workspace, "LinearProbe", tmp_path / "before")
    words = line(workspace, "LinearProbe", tmp_path / "broken")
    plan = {"before": (0, 2, TERM)}
    (expected,), _ = processes.run(2, commands, [before], False, partial(told, plan))
    found = [of[0] for of in processes.run(2, commands, [words], False, partial(poisoned, 3), seconds=40)]
    assert [of.status for of in found] == [2, 2]
    for of in found:
        assert "epoch 2, batch 1/2: loss nan" in of.said
        assert "the student's features of 1 of 2 images (" in of.said and ".JPEG" in of.said
        for key, value in expected.learned.items():
            assert torch.equal(of.learned[key], value)


def test_an_image_that_one_process_cannot_read_ends_all(workspace, tmp_path):
    root = tmp_path / "workspace"
    shutil.copytree(workspace, root, symlinks=True)
    words = line(root, "LinearProbe", tmp_path / "run")
    trainer = runs.make(root, "LinearProbe", tmp_path / "look", "", "OPTIM.MAX_EPOCH 2 TRAINER.DHO.STEPS_PER_EPOCH 2")
    batch = trainer.train_loader_x.batches[2]
    read = {
        path for step in (0, 1) for path in trainer.train_loader_x.batches.paths(trainer.train_loader_x.batches[step])
    }
    path = next(path for path in trainer.train_loader_x.batches.paths(batch) if path not in read)
    rank = trainer.train_loader_x.batches.paths(batch).index(path) // 2
    Path(path).write_bytes(Path(path).read_bytes()[:100])
    found = processes.run(2, commands, [words], False)
    assert found[rank][0].status == 2 and Path(path).name in found[rank][0].said
    assert found[1 - rank][0].status == 1 and "another process of this run has stopped" in found[1 - rank][0].said


SCRIPT = """
import os, signal, sys
from dho_plugin import cli
from dho_plugin.trainers.resumable import Resumable

after = Resumable.after_step

def stepped(trainer):
    if os.environ["RANK"] == "0" and trainer.batch_idx == trainer.epoch == 1:
        os.kill(os.getppid(), signal.SIGTERM)
    after(trainer)

Resumable.after_step = stepped
sys.exit(cli.main())
"""


def test_torchrun_hands_its_signal_on_and_the_run_goes_on_without_it(workspace, tmp_path):
    """As a scheduler does it: SIGTERM to torchrun alone, of which each process learns some steps later."""
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    words = runs.words(workspace, "LinearProbe", folder, "", "OPTIM.MAX_EPOCH 400")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 1 and "closing signal SIGTERM" in done.stderr, done.stderr
    assert done.stderr.count("stopped by SIGTERM after epoch ") == 1
    (state,) = (folder / "state").iterdir()
    steps = int(state.stem.partition("-")[2])
    assert log(folder)[-1].startswith(f"epoch [{(steps + 2) // 3}/400] batch [{(steps - 1) % 3 + 1}/3]")
    assert done.stdout.count(f"epoch [{(steps + 2) // 3}/400] batch [{(steps - 1) % 3 + 1}/3]") == 1
