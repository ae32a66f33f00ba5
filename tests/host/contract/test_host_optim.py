"""Optimisers and learning-rate schedules, against formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch
from host_toy import learning_rates
from torch import nn

from dho_plugin import host

EPOCHS = 20
BASE = 0.5


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.95), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.8, 0.95), "amsgrad": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "dampening": 0, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7, "alpha": 0.6}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.95)}),
    ],
)
def test_optimisers_read_their_settings(config, name: str, kind: type, expected: dict) -> None:
    options = ["OPTIM.NAME", name, "OPTIM.LR", BASE, "OPTIM.WEIGHT_DECAY", 0.25, "OPTIM.MOMENTUM", 0.7]
    options += ["OPTIM.ADAM_BETA1", 0.8, "OPTIM.ADAM_BETA2", 0.95, "OPTIM.RMSPROP_ALPHA", 0.6]
    cfg = config(*options, "OPTIM.SGD_NESTEROV", True)
    model = nn.Linear(2, 3)
    optim = host.build_optimizer(model, cfg.OPTIM)
    assert type(optim) is kind
    (group,) = optim.param_groups
    assert {"lr": BASE, "weight_decay": 0.25, **expected}.items() <= group.items()
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_optimisers_take_parameters_and_groups(config) -> None:
    weight, bias = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    (group,) = host.build_optimizer([weight], config().OPTIM).param_groups
    assert [id(p) for p in group["params"]] == [id(weight)]
    groups = [{"params": [weight], "lr": 9.0}, {"params": [bias]}]
    optim = host.build_optimizer(nn.Linear(1, 1), config().OPTIM, param_groups=groups)
    assert [(len(g["params"]), g["lr"]) for g in optim.param_groups] == [(1, 9.0), (1, 0.1)]


def test_staged_learning_rates(config) -> None:
    model = nn.Sequential()
    for name, width in (("body", 2), ("neck", 3), ("head", 4)):
        model.add_module(name, nn.Linear(1, width, bias=False))
    cfg = config("OPTIM.STAGED_LR", True, "OPTIM.NEW_LAYERS", ("head",), "OPTIM.BASE_LR_MULT", 0.5)
    base, new = host.build_optimizer(model, cfg.OPTIM).param_groups
    assert ([p.numel() for p in base["params"]], base["lr"]) == ([2, 3], 0.05)
    assert ([p.numel() for p in new["params"]], new["lr"]) == ([4], 0.1)
    with pytest.raises(TypeError):
        host.build_optimizer(list(model.parameters()), cfg.OPTIM)


def test_unknown_names_are_refused(config) -> None:
    with pytest.raises(ValueError, match="sgdd"):
        host.build_optimizer(nn.Linear(1, 1), config("OPTIM.NAME", "sgdd").OPTIM)
    optim = host.build_optimizer(nn.Linear(1, 1), config().OPTIM)
    with pytest.raises(ValueError, match="cosin"):
        host.build_lr_scheduler(optim, config("OPTIM.LR_SCHEDULER", "cosin").OPTIM)
    with pytest.raises(ValueError):
        host.build_lr_scheduler(optim, config("OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "quadratic").OPTIM)
    with pytest.raises(TypeError):
        cfg = config("OPTIM.LR_SCHEDULER", "single_step", "OPTIM.STEPSIZE", (2.5,))
        host.build_lr_scheduler(optim, cfg.OPTIM)


def _decay(schedule: str, steps: tuple[int, ...], start: int, epoch: int) -> float:
    """Factor of the schedule at `epoch` of its own count, if it was at 1 at `start`."""
    passed = range(start + 1, epoch + 1)
    if schedule == "single_step":
        return 0.3 ** sum(e % steps[-1] == 0 for e in passed)
    if schedule == "multi_step":
        return 0.3 ** sum(e in steps for e in passed)
    return (1 + math.cos(math.pi * epoch / EPOCHS)) / (1 + math.cos(math.pi * start / EPOCHS))


@pytest.mark.parametrize(("schedule", "steps"), [("single_step", (4,)), ("multi_step", (3, 5, 11)), ("cosine", (-1,))])
@pytest.mark.parametrize(("warmup", "kind"), [(-1, "linear"), (1, "constant"), (3, "constant"), (3, "linear")])
@pytest.mark.parametrize("recount", [True, False])
def test_schedules(config, schedule: str, steps: tuple[int, ...], warmup: int, kind: str, recount: bool) -> None:
    options = ["OPTIM.LR", BASE, "OPTIM.LR_SCHEDULER", schedule, "OPTIM.STEPSIZE", steps, "OPTIM.GAMMA", 0.3]
    options += ["OPTIM.MAX_EPOCH", EPOCHS, "OPTIM.WARMUP_EPOCH", warmup, "OPTIM.WARMUP_TYPE", kind]
    options += ["OPTIM.WARMUP_CONS_LR", 0.01, "OPTIM.WARMUP_MIN_LR", 0.02, "OPTIM.WARMUP_RECOUNT", recount]
    held = max(warmup, 0)
    start = 0 if recount else held
    expected = [0.01 if kind == "constant" else max(0.02 * (e == 0), BASE * e / held) for e in range(held)]
    expected += [BASE * _decay(schedule, steps, start, start + e) for e in range(EPOCHS - held)]
    assert learning_rates(host, config(*options), EPOCHS) == pytest.approx(expected, rel=1e-9)


def test_a_stepsize_of_minus_one_is_the_whole_run(config) -> None:
    cfg = config("OPTIM.LR_SCHEDULER", "single_step", "OPTIM.MAX_EPOCH", 4)
    assert learning_rates(host, cfg, 5) == pytest.approx([0.1] * 4 + [0.01])
