"""A run that is stopped anywhere goes on as if it had never stopped, and what stops it or keeps it from going on."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import children
import kills
import numpy as np
import pytest
import runs
import tiny
import torch
from dho_plugin.trainers.resumable import Resumable

from dho_plugin import cli, manifest, stopping
from dho_plugin.datasets.imagenet import ImageNet
from dho_plugin.errors import UsageError
from dho_plugin.host import TRAINER_REGISTRY, build_trainer
from dho_plugin.states import States
from dho_plugin.stopping import Stopped

OURS = [n for n in TRAINER_REGISTRY.registered_names() if TRAINER_REGISTRY.get(n).__module__.startswith("dho_plugin.")]
TRAINED = [name for name in OURS if name not in ("ZeroshotCLIP", "TipAdapter")]
STEPS = 3  # of an epoch, of which runs.OPTIONS has two

Build = Callable[[str], Any]
AFTER_STEP = Resumable.after_step


def ask(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """Let a signal come while a step is taken, counted from 1 over the epochs; 0 for never."""
    monkeypatch.setattr(stopping, "_asked", 0)

    def asked(trainer: Resumable) -> None:
        if trainer.epoch * trainer.num_batches + trainer.batch_idx + 1 == step:
            monkeypatch.setattr(stopping, "_asked", number)
        AFTER_STEP(trainer)

    monkeypatch.setattr(Resumable, "after_step", asked)


def everything(trainer: Any) -> dict[str, Any]:
    """All that a state holds, apart from where it stands in a log."""
    return {**trainer.state(trainer.max_epoch, 0), "log": None}


def goes_on(build: Build, monkeypatch, capsys, step: int) -> Any:
    """Check that a run stopped after a step and gone on with leaves and prints what it does if left alone."""
    whole = build("whole")
    whole.train()
    lines = kills.steps_and_results(capsys.readouterr().out)
    ask(monkeypatch, step)
    with pytest.raises(Stopped, match="stopped by SIGTERM after epoch"):
        build("broken").train()
    ask(monkeypatch, 0)
    again = build("broken")
    again.train()
    assert again.resumed
    assert kills.unequal(everything(again), everything(whole)) == []
    assert kills.steps_and_results(capsys.readouterr().out) == lines
    assert sum(line.startswith("epoch [") for line in lines) == whole.max_epoch * whole.num_batches
    return again


@pytest.mark.parametrize("name", TRAINED)
def test_every_trainer_goes_on_in_the_middle_of_an_epoch(workspace, tmp_path, monkeypatch, capsys, name):
    runs.boosting(workspace)
    capsys.readouterr()
    options = "OPTIM.WARMUP_EPOCH 1 TEST.NO_TEST True TRAINER.PROMPTSRC.GPA_MEAN 1"

    def build(folder: str) -> Any:
        return runs.make(workspace, name, tmp_path / folder, "", options)

    goes_on(build, monkeypatch, capsys, 2 * STEPS - 1)


@pytest.mark.parametrize(
    ("name", "options", "step"),
    [
        ("CoOpDHO", "TRAIN.ACCUMULATE 2", 2),
        ("LinearProbeDHO", "TRAINER.DHO.HEAD.KD nonlinear", 4),  # which has dropout
        ("PromptSRC", "TRAINER.PROMPTSRC.GPA_MEAN 1", STEPS),
        ("PromptSRC", "TRAINER.PROMPTSRC.GPA_MEAN 1", 2 * STEPS),  # where the average has been deployed
    ],
)
def test_accumulation_dropout_and_averages(workspace, tmp_path, monkeypatch, capsys, name, options, step):
    goes_on(lambda folder: runs.make(workspace, name, tmp_path / folder, "", options), monkeypatch, capsys, step)


@pytest.fixture
def own_validation(workspace, tmp_path, monkeypatch) -> Path:
    """A root with validation images of their own."""
    shutil.copytree(workspace / "imagenet", tmp_path / "data" / "imagenet")
    images = np.random.default_rng(7)
    for number, wnid in enumerate(tiny.WNIDS):
        tiny.write_image(tmp_path / "data/imagenet/images/own" / wnid / "0.JPEG", images, number)
    monkeypatch.setattr(ImageNet, "val_folder", "own")
    return tmp_path / "data"


@pytest.mark.parametrize("choice", ["TEST.FINAL_MODEL best_val", "TRAINER.DHO.CHOOSE val"])
def test_choices_on_validation_images(workspace, own_validation, tmp_path, monkeypatch, capsys, choice):
    """Stopped after the best model of the first epoch was saved."""

    def build(folder: str) -> Any:
        return runs.make(
            workspace, "LinearProbeDHO", tmp_path / folder, f"--root {own_validation}", f"{choice} OPTIM.LR 0.1"
        )

    again = goes_on(build, monkeypatch, capsys, 2 * STEPS - 1)
    if "best_val" in choice:
        assert again.best_result > 0
    else:
        assert again.interpolation.source == "val"


def test_a_kill_behind_the_first_checkpoint(workspace, tmp_path, monkeypatch):
    """Whose random states are those of the state that was saved before it."""
    options = "TRAINER.DHO.HEAD.KD nonlinear TRAIN.CHECKPOINT_FREQ 1 TEST.NO_TEST True"
    whole = runs.make(workspace, "LinearProbeDHO", tmp_path / "whole", "", options)
    whole.train()
    killed = runs.make(workspace, "LinearProbeDHO", tmp_path / "broken", "", options)
    save = killed.save_model

    def save_and_die(*args: Any) -> None:
        save(*args)
        raise ZeroDivisionError

    monkeypatch.setattr(killed, "save_model", save_and_die)
    with pytest.raises(ZeroDivisionError):
        killed.train()
    again = runs.make(workspace, "LinearProbeDHO", tmp_path / "broken", "", options)
    again.train()
    assert again.resumed and kills.unequal(everything(again), everything(whole)) == []


class Board:
    """What TensorBoard shows of a run's folder, in place of its writer."""

    shown: ClassVar[dict[str, list[tuple[str, int, float]]]] = {}
    waiting: list[tuple[str, int, float]]  # lost in a kill

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        before = [point for point in self.shown.get(log_dir, []) if purge_step is None or point[1] < purge_step]
        self.points, self.waiting = before, []
        self.shown[log_dir] = before

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.waiting.append((tag, step, value))

    def flush(self) -> None:
        self.points += self.waiting
        self.waiting.clear()

    close = flush


def test_what_is_done_again_stands_once_in_tensorboard(workspace, own_validation, tmp_path, monkeypatch):
    """Killed in the second epoch, and evaluated once more when it was over."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))

    def train(folder: str) -> None:
        flags = f"--root {own_validation}"
        runs.make(workspace, "LinearProbe", tmp_path / folder, flags, "TEST.FINAL_MODEL best_val").train()

    def die(trainer: Resumable) -> None:
        if trainer.epoch == 1 and trainer.batch_idx == 1:
            trainer._writer.points += trainer._writer.waiting[-3:]  # of the last step, by chance
            raise ZeroDivisionError

    train("whole")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Resumable, "after_step", die)
        train("broken")
    train("broken")
    train("broken")
    whole, broken = (Board.shown[str(tmp_path / name / "tensorboard")] for name in ("whole", "broken"))
    assert sorted(whole) == sorted(broken)
    places = [point[:2] for point in whole]
    assert len(set(places)) == len(places)
    assert [step for tag, step in places if tag == "train/loss"] == list(range(2 * STEPS))
    assert [step for tag, step in places if tag == "val/accuracy"] == [STEPS - 1, 2 * STEPS - 1]
    assert [step for tag, step in places if tag == "test/accuracy"] == [2 * STEPS]


def test_images_that_were_passed_over_stay_counted(workspace, tmp_path, monkeypatch, capsys):
    root = tmp_path / "data"
    shutil.copytree(workspace / "imagenet", root / "imagenet")

    def build(folder: str) -> Any:
        flags = f"--root {root} --labels-only"
        return runs.make(workspace, "CoOpDHO", tmp_path / folder, flags, "INPUT.BAD_IMAGES skip OPTIM.MAX_EPOCH 1")

    first = build("order").train_loader_x.batches.labeled
    Path(first.paths[first.order[0][0]]).write_bytes(b"")
    again = goes_on(build, monkeypatch, capsys, 2)
    assert len(again.train_loader_x.batches.unreadable()) == 1
    assert len(manifest.read(tmp_path / "broken")["skipped"]) == 1


# Seeds


def test_a_random_seed_stays_that_of_the_run(workspace, tmp_path, monkeypatch, capsys):
    """Also the shots that it drew."""
    views = iter([11, 11, 11, 11, 12])  # each start draws one for weights too, and the last nothing else
    monkeypatch.setattr("dho_plugin.trainers.resumable.secrets.randbelow", lambda top: next(views))

    def run(folder: str) -> dict[str, float]:
        return runs.run(workspace, "LinearProbeDHO", tmp_path / folder, "--seed -1")

    expected = run("whole")
    ask(monkeypatch, 4)
    with pytest.raises(Stopped):
        run("broken")
    ask(monkeypatch, 0)
    assert run("broken") == expected
    assert kills.differences(tmp_path / "broken", tmp_path / "whole", logs=False) == []


def final(workspace: Path, output: Path, flags: str, ambient: int) -> Any:
    """A trained trainer, in a process whose random state was anything before."""
    torch.manual_seed(ambient)
    random.seed(ambient)
    args = cli.parser().parse_args(
        runs.words(workspace, "LinearProbeDHO", output, flags, "TRAINER.DHO.HEAD.KD nonlinear TEST.NO_TEST True")
    )
    built = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_trainer", lambda cfg: built.append(build_trainer(cfg)) or built[0])
        cli.run(cli.build_config(args), args)
    return built[0]


def test_the_same_seed_is_the_same_run_with_any_number_of_workers(workspace, tmp_path):
    """Seed 0 too. The head starts and drops out by torch's generator."""
    one = final(workspace, tmp_path / "one", "--seed 0", ambient=1)
    for folder, flags in (("again", "--seed 0"), ("workers", "--seed 0 DATALOADER.NUM_WORKERS 2")):
        other = final(workspace, tmp_path / folder, flags, ambient=2)
        assert kills.unequal(everything(one), everything(other)) == []
        splits = [(tmp_path / name / "split.json").read_text() for name in ("one", folder)]
        assert splits[0] == splits[1]
    assert manifest.read(tmp_path / "one")["view_seed"] == 0
    another = final(workspace, tmp_path / "another", "--seed 3", ambient=1)
    assert kills.unequal(everything(one)["models"], everything(another)["models"])


def test_batches_are_the_same_with_any_number_of_workers(workspace, tmp_path):
    def batches(workers: int) -> list[dict]:
        options = f"DATALOADER.NUM_WORKERS {workers}"
        loader = runs.make(workspace, "CoOpDHO", tmp_path / str(workers), "", options).train_loader_x
        loader.set_epoch(1)
        return list(loader)

    alone, helped = batches(0), batches(2)
    assert len(alone) == len(helped) == STEPS
    assert all(kills.unequal(one, other) == [] for one, other in zip(alone, helped, strict=True))


# Signals


def test_the_first_ctrl_c_asks_and_the_second_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stopping.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.requested() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before and stopping.requested() == 0


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_signal_to_the_whole_group_leaves_the_workers(workspace, tmp_path, kind):
    trainer = runs.make(workspace, "CoOp", tmp_path, "", "DATALOADER.NUM_WORKERS 1 DATALOADER.TEST.BATCH_SIZE 1")
    loader = trainer.train_loader_x if kind == "training" else trainer.test_loader
    batches = iter(loader)
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        for number in stopping.SIGNALS:
            os.kill(worker.pid, number)
    assert len(list(batches)) == len(loader) - 1


def slurm(folder: Path, monkeypatch, status: int = 0) -> Path:
    """A job of Slurm that was started twice before; the file to which scontrol writes what it is told."""
    told = folder / "told"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {told}\necho no such job >&2\nexit {status}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    return told


def deliver(monkeypatch, number: int) -> None:
    """A signal to this process in its first step."""

    def sent(trainer: Resumable) -> None:
        os.kill(os.getpid(), number)
        AFTER_STEP(trainer)

    monkeypatch.setattr(Resumable, "after_step", sent)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_slurms_signal_puts_the_job_back_into_the_queue_once(workspace, tmp_path, monkeypatch, capsys, number):
    told = slurm(tmp_path / "bin", monkeypatch)
    deliver(monkeypatch, number)
    assert cli.main(runs.words(workspace, "CoOp", tmp_path / "out")) == 128 + number
    said = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name} after epoch 1, batch 1/3" in said
    assert States(tmp_path / "out" / "state").newest()["batch"] == 1
    queued = number == signal.SIGUSR1
    assert (told.read_text() if told.exists() else "") == "requeue 4711\n" * queued
    assert ("restart 3 of Slurm job 4711 is in the queue" in said) == queued


def test_a_queue_that_does_not_take_it_and_one_that_submitit_keeps(tmp_path, monkeypatch):
    told = slurm(tmp_path / "bin", monkeypatch, status=1)
    assert "requeue failed (no such job): submit it again" in stopping.requeue()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert stopping.requeue() == ""
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert stopping.requeue() == "" and told.read_text() == "requeue 4711\n"


# What is not gone on with


@pytest.fixture
def interrupted(workspace, tmp_path, monkeypatch) -> Path:
    """The output folder of a run of CoOp that was stopped after its second step."""
    ask(monkeypatch, 2)
    with pytest.raises(Stopped):
        runs.make(workspace, "CoOp", tmp_path / "out").train()
    ask(monkeypatch, 0)
    return tmp_path / "out"


def test_other_settings_are_named_unless_they_are_forced(workspace, interrupted, capsys):
    other = "OPTIM.LR 0.1 TRAINER.COOP.N_CTX 4"
    assert cli.main(runs.words(workspace, "CoOp", interrupted, "", other)) == 2
    said = capsys.readouterr().err
    assert "OPTIM.LR: 0.002 there, 0.1 now" in said and "TRAINER.COOP.N_CTX: 16 there, 4 now" in said
    assert said.startswith("error: ") and "--resume-force" in said and said.count("\n") == 1
    assert States(interrupted / "state").newest()["batch"] == 2
    assert cli.main(runs.words(workspace, "CoOp", interrupted, "--resume-force", "OPTIM.LR 0.1")) == 0
    said = capsys.readouterr().out
    assert "--resume-force: " in said and "at epoch 1, after batch 2/3" in said


def test_another_optimiser_can_be_forced_in_the_middle_of_an_epoch(workspace, interrupted, capsys):
    words = runs.words(workspace, "CoOp", interrupted, "--resume-force", "OPTIM.NAME adamw")
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("the optimiser of prompt_learner: what was saved does not fit; started anew, at epoch 1\n") == 1
    assert "at epoch 1, after batch 2/3" in said and said.count("epoch [1/2]") == 1 and said.count("epoch [2/2]") == 3


def test_another_optimiser_can_be_forced_behind_the_last_epoch(workspace, tmp_path, capsys):
    """Where the states are gone, and checkpoints are what is gone on from."""
    assert cli.main(runs.words(workspace, "CoOp", tmp_path)) == 0
    before = torch.load(tmp_path / "prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]
    options = "OPTIM.NAME adamw OPTIM.MAX_EPOCH 3 OPTIM.LR 0.0001"
    with pytest.MonkeyPatch.context() as patch:
        started = []
        patch.setattr(Resumable, "after_step", lambda trainer: started or started.append(weights(trainer)))
        patch.setattr(torch.optim.AdamW, "step", lambda *_: None)
        assert cli.main(runs.words(workspace, "CoOp", tmp_path, "--resume-force", options)) == 0
    said = capsys.readouterr().out
    assert "the optimiser of prompt_learner, the schedule of prompt_learner: what was saved does not fit" in said
    assert said.count("epoch [3/3]") == 3
    assert all(torch.equal(value, before[key]) for key, value in started[0].items())


def weights(trainer: Resumable) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer._models["prompt_learner"].state_dict().items()}


def test_other_shapes_cannot_be_forced(workspace, interrupted):
    with pytest.raises(UsageError, match="does not fit this model"):
        runs.run(workspace, "CoOp", interrupted, "--resume-force", "TRAINER.COOP.N_CTX 4")


def test_data_of_another_number_of_steps(workspace, interrupted):
    with pytest.raises(UsageError, match="a run of 3 steps an epoch, which would be 2 with the images"):
        runs.run(workspace, "CoOp", interrupted, "--resume-force", "TRAINER.DHO.STEPS_PER_EPOCH 2")


# What a kill or a signal leaves of the log and of the steps


def test_a_kill_before_the_first_state_begins_anew_in_the_same_log(workspace, tmp_path, monkeypatch):
    def die(trainer: Resumable) -> None:
        if trainer.batch_idx == 1:
            raise ZeroDivisionError

    line = runs.words(workspace, "CoOp", tmp_path)
    monkeypatch.setattr(Resumable, "after_step", die)
    with pytest.raises(ZeroDivisionError):
        cli.main(line)
    assert (tmp_path / "log.txt").read_text().count("\nepoch [") == 2
    ask(monkeypatch, 0)
    assert cli.main(line) == 0
    assert (tmp_path / "log.txt").read_text().count("\nepoch [") == 2 * STEPS
    assert not list(tmp_path.glob("log.txt-*")) and not (tmp_path / "state").exists()


@children.fork
def test_a_log_that_may_not_grow_stops_the_run_with_one_line_and_the_same_command_goes_on(workspace, tmp_path, capsys):
    """Behind a megabyte of what was there before, so that the states have room where the log has none."""
    words = [runs.words(workspace, "LinearProbe", tmp_path / name, "", "TRAIN.SAVE_MINUTES 0") for name in "ab"]
    assert cli.main(words[0]) == 0
    whole = (tmp_path / "a" / "log.txt").read_text()
    before = 1_000_000
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.txt").write_text("." * (before - 1) + "\n")

    def start() -> None:
        with redirect_stderr(io.StringIO()) as said:
            raise RuntimeError(cli.main(words[1]), said.getvalue())

    until = before + whole.index("batch [2/3]") + 200
    status, said = children.error_of(start, until).args
    assert status == 2 and said.count("\n") == 1 and "Traceback" not in said
    assert said.startswith(f"error: cannot write {tmp_path / 'b' / 'log.txt'} (") and "what was saved" in said
    assert States(tmp_path / "b" / "state").newest()["batch"] >= 1
    capsys.readouterr()
    assert cli.main(words[1]) == 0 and "Going on in " in capsys.readouterr().out
    log = (tmp_path / "b" / "log.txt").read_text()
    assert kills.steps_and_results(log) == kills.steps_and_results(whole)


def test_a_signal_in_an_evaluation_between_epochs_loses_no_step(workspace, own_validation, tmp_path, monkeypatch):
    ask(monkeypatch, 0)
    trainer = runs.make(
        workspace, "LinearProbe", tmp_path / "out", f"--root {own_validation}", "TEST.FINAL_MODEL best_val"
    )
    test = trainer.test

    def interrupted(split: str) -> float:
        monkeypatch.setattr(stopping, "_asked", signal.SIGTERM if trainer.epoch == 1 else 0)
        return test(split)

    monkeypatch.setattr(trainer, "test", interrupted)
    with pytest.raises(Stopped, match="in an evaluation"):
        trainer.train()
    last = States(tmp_path / "out" / "state").newest()
    assert (last["epoch"], last["batch"]) == (1, STEPS)


def test_a_run_from_another_folder_goes_on_in_its_own(workspace, tmp_path, monkeypatch, capsys):
    """Killed and started again by the same command, it does not begin again in the folder that it came from."""
    options = "TEST.NO_TEST True OPTIM.MAX_EPOCH 3"
    runs.make(workspace, "LinearProbe", tmp_path / "whole", "", options).train()
    capsys.readouterr()
    folders = (("old", ""), ("new", f"--resume {tmp_path / 'old'}"))
    for step, (folder, flags) in zip((2, 5), folders, strict=True):
        ask(monkeypatch, step)
        with pytest.raises(Stopped):
            runs.make(workspace, "LinearProbe", tmp_path / folder, flags, options).train()
    ask(monkeypatch, 0)
    capsys.readouterr()
    runs.make(workspace, "LinearProbe", tmp_path / "new", folders[1][1], options).train()
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch [")]
    assert len(steps) == 3 * STEPS - 5
    files = [torch.load(tmp_path / name / "ce_head/model.pth.tar-3", weights_only=True) for name in ("whole", "new")]
    assert kills.unequal(*files) == []
    assert manifest.read(tmp_path / "new")["started"] == manifest.read(tmp_path / "old")["started"]
    assert len(manifest.read(tmp_path / "new")["resumed"]) == 2


def test_other_images_are_refused_before_anything_is_written(workspace, tmp_path, monkeypatch):
    ask(monkeypatch, 2)
    with pytest.raises(Stopped):
        runs.make(workspace, "LinearProbe", tmp_path / "out").train()
    record = manifest.read(tmp_path / "out")
    record["labeled"]["sha256"] = "others"
    manifest.write(tmp_path / "out", record)
    (tmp_path / "out" / "split.json").write_text("as it was")
    for folder, flags in (("out", ""), ("new", f"--resume {tmp_path / 'out'}")):
        with pytest.raises(UsageError, match="labeled images"):
            runs.make(workspace, "LinearProbe", tmp_path / folder, flags).train()
    assert (tmp_path / "out" / "split.json").read_text() == "as it was"


def test_an_evaluation_of_a_finished_run_that_is_stopped_leaves_it_finished(workspace, tmp_path, monkeypatch):
    line = runs.words(workspace, "LinearProbe", tmp_path / "out")
    assert cli.main(line) == 0
    log, record = (tmp_path / "out" / "log.txt").read_text(), manifest.read(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "requested", lambda: signal.SIGTERM)
        assert cli.main(line) == 128 + signal.SIGTERM
    stopped = manifest.read(tmp_path / "out")
    assert {name: stopped[name] for name in manifest.OPEN} == {name: record[name] for name in manifest.OPEN}
    assert cli.main(line) == 0
    assert (tmp_path / "out" / "log.txt").read_text() == log


def test_a_state_of_another_trainer_is_named(workspace, tmp_path, monkeypatch):
    ask(monkeypatch, 2)
    with pytest.raises(Stopped):
        runs.make(workspace, "CoOp", tmp_path / "out").train()
    with pytest.raises(UsageError, match="saved by another trainer"):
        runs.make(workspace, "LinearProbe", tmp_path / "out", "--resume-force").train()


def test_processes_that_wait_for_others_die_of_a_signal(monkeypatch):
    """Joining is a call that no flag interrupts: while it lasts, signals do what they do without us."""
    heard = []

    @contextmanager
    def joined(**_: bool) -> Iterator[None]:
        heard.append(signal.getsignal(signal.SIGTERM))
        yield

    def run(_: Any) -> int:
        heard.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "joined", joined)
    monkeypatch.setattr(cli, "_main", run)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["--trainer", "CoOp", "--dataset", "shapes"]) == 130
    assert heard[0] is before and heard[1] is not before
