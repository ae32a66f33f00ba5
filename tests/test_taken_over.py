"""What --resume-force takes over: moments of the same kind of optimiser, and a schedule that is where it would be."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import kills
import pytest
import torch
from torch import nn

from dho_plugin.host import build_lr_scheduler, build_optimizer, get_cfg_default
from dho_plugin.taken_over import take_over

EPOCHS = 4  # done before


def settings(**options: Any) -> Any:
    cfg = get_cfg_default().OPTIM
    cfg.defrost()
    defaults = {"MAX_EPOCH": 9, "LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 2, "WARMUP_TYPE": "linear"}
    for key, value in {"NAME": "sgd", "LR": 0.1, **defaults, **options}.items():
        cfg[key] = value
    return cfg


class Learner:
    """A module with its optimiser and schedule."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(3, 2)
        self.optimizer = build_optimizer(self.module, settings(**options))
        self.schedule = build_lr_scheduler(self.optimizer, settings(**options))

    def train(self, epochs: int) -> Learner:
        for _ in range(epochs):
            for _ in range(2):
                self.optimizer.zero_grad()
                self.module(torch.ones(4, 3)).square().mean().backward()
                self.optimizer.step()
            self.schedule.step()
        return self

    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return copy.deepcopy((self.optimizer.state_dict(), self.schedule.state_dict()))

    def rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]


def taken_over(before: dict[str, Any], now: dict[str, Any]) -> Learner:
    optimizer, schedule = Learner(**before).train(EPOCHS).states()
    learner = Learner(**now)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = {"head": learner.optimizer, "frozen": None}, {"head": learner.schedule, "frozen": None}
        take_over(*parts, ({"head": optimizer, "frozen": None}, {"head": schedule, "frozen": None}), EPOCHS)
    return learner


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adamw", "rmsprop"])
@pytest.mark.parametrize("schedule", ["cosine", "single_step", "multi_step"])
def test_with_the_same_settings_all_is_as_it_was(name, schedule, capsys):
    options = {"NAME": name, "LR_SCHEDULER": schedule, "STEPSIZE": (3, 5) if schedule == "multi_step" else (3,)}
    learner = taken_over(options, options)
    assert kills.unequal(learner.states(), Learner(**options).train(EPOCHS).states()) == []
    assert capsys.readouterr().out == ""


KINDS = [("sgd", "adamw"), ("adamw", "sgd"), ("adam", "amsgrad"), ("sgd", "rmsprop"), ("rmsprop", "adam")]


@pytest.mark.parametrize(("before", "now"), KINDS)
def test_an_optimiser_of_another_kind_starts_anew_at_the_rate_of_its_epoch(before, now, capsys):
    learner, expected = taken_over({"NAME": before}, {"NAME": now}), Learner(NAME=now).train(EPOCHS)
    assert capsys.readouterr().out == (
        "--resume-force: the optimiser of head: what was saved does not fit; started anew, at epoch 5\n"
    )
    assert learner.optimizer.state_dict()["state"] == {} and learner.rate() == expected.rate() != 0.1
    groups = [one.optimizer.state_dict()["param_groups"] for one in (learner, expected)]
    assert groups[0] == groups[1]
    learner.train(3)
    assert learner.rate() == expected.train(3).rate()


@pytest.mark.parametrize(
    "now", [{"LR_SCHEDULER": "single_step", "STEPSIZE": (3,)}, {"MAX_EPOCH": 20}, {"LR": 0.3}, {"WARMUP_EPOCH": 0}]
)
def test_another_schedule_is_where_it_would_be_and_the_moments_stay(now, capsys):
    learner, expected = taken_over({}, now), Learner(**now).train(EPOCHS)
    assert "the schedule of head: what was saved does not fit" in capsys.readouterr().out
    assert learner.rate() == expected.rate() != Learner().train(EPOCHS).rate()
    moments = [one.optimizer.state_dict()["state"] for one in (learner, Learner().train(EPOCHS))]
    assert moments[0] and kills.unequal(*moments) == []
    learner.train(3)
    assert learner.rate() == expected.train(3).rate()


def test_the_options_are_those_of_now(capsys):
    (group,) = taken_over({}, {"WEIGHT_DECAY": 0.5, "MOMENTUM": 0.1}).optimizer.param_groups
    assert (group["weight_decay"], group["momentum"]) == (0.5, 0.1)
    assert group["lr"] == Learner().train(EPOCHS).rate() and capsys.readouterr().out == ""
