"""A run that is interrupted after an epoch and resumed is the same run."""

from __future__ import annotations

import os

import pytest
import torch

from dho_plugin import host

SCHEDULES = [
    (schedule, warmup, kind, recount)
    for schedule in ("single_step", "multi_step", "cosine")
    for warmup, kind, recount in (
        (-1, "constant", True),
        (1, "constant", True),
        (3, "linear", True),
        (3, "linear", False),
    )
]


@pytest.mark.parametrize(("schedule", "warmup", "kind", "recount"), SCHEDULES)
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_rates_and_weights_after_resuming_are_those_of_the_unbroken_run(
    config, tmp_path, schedule: str, warmup: int, kind: str, recount: bool, stop: int
) -> None:
    """With Dassl alone the schedule after a warm-up drives a copy of the optimiser: the true rate stands still."""
    options = ["OPTIM.MAX_EPOCH", 8, "OPTIM.LR_SCHEDULER", schedule, "OPTIM.GAMMA", 0.5, "TEST.NO_TEST", True]
    options += ["OPTIM.STEPSIZE", (2,) if schedule == "single_step" else (2, 4, 6), "TRAIN.CHECKPOINT_FREQ", stop]
    options += ["OPTIM.WARMUP_EPOCH", warmup, "OPTIM.WARMUP_TYPE", kind, "OPTIM.WARMUP_RECOUNT", recount]
    options += ["VERBOSE", False, "DATALOADER.TRAIN_X.SAMPLER", "SequentialSampler", "INPUT.TRANSFORMS", ()]
    unbroken = host.build_trainer(config(*options))
    unbroken.train()

    folder = os.path.join(unbroken.output_dir, "toy")
    with open(os.path.join(folder, "checkpoint"), "w") as pointer:
        pointer.write(f"model.pth.tar-{stop}\n")
    output = str(tmp_path / "resumed")
    resumed = host.build_trainer(config(*options, "RESUME", unbroken.output_dir, "OUTPUT_DIR", output))
    resumed.train()

    assert resumed.start_epoch == stop
    assert len(set(unbroken.rates)) > 2
    assert resumed.rates == unbroken.rates[2 * stop :]
    assert torch.equal(resumed.model[1].weight, unbroken.model[1].weight)


def test_the_output_folder_is_resumed_without_being_asked(config) -> None:
    first = host.build_trainer(config("OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True))
    first.train()
    second = host.build_trainer(config("OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True))
    second.train()
    assert second.start_epoch == 1
    assert second.hooks.count("run_epoch") == 2


def test_without_a_checkpoint_training_starts_at_zero(config, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = host.build_trainer(config())
    capsys.readouterr()
    assert trainer.resume_model_if_exist(trainer.output_dir) == 0
    assert capsys.readouterr().out == "No checkpoint found, train from scratch\n"


def test_resuming_needs_neither_optimiser_nor_schedule(config, tmp_path) -> None:
    trainer = host.build_trainer(config())
    trainer.save_model(4, trainer.output_dir)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3))
    assert host.resume_from_checkpoint(os.path.join(trainer.output_dir, "toy"), model) == 5
    assert torch.equal(model[1].weight, trainer.model[1].weight)
