"""What --resume-force takes over of the optimisers and schedules of a run whose settings may have been others.

Moments are kept where the optimiser is of the same kind. Its options are those of now, and so is the schedule.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

# Of a group of parameters: what says nothing of the kind of its optimiser.
FREE = ("params", "lr", "initial_lr", "fused", "foreach", "capturable", "differentiable")
# Of a schedule: where it is, and not what it is.
MOVING = ("last_epoch", "_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step")

States = Mapping[str, Mapping[str, Any] | None]


def take_over(
    optimizers: Mapping[str, Any], schedules: Mapping[str, Any], theirs: tuple[States, States], epochs: int
) -> None:
    """Bring optimisers and schedules to where a run was; a line is printed if any of them has to start anew.

    Args:
        optimizers, schedules: as they were built, by part of the model; None for a part that is not trained.
        theirs: their states in the run. epochs: that it has done.
    """
    anew = []
    for name, optimizer in optimizers.items():
        if optimizer is not None:
            found = _part(optimizer, schedules[name], theirs[0][name] or {}, theirs[1][name] or {}, epochs)
            anew += [f"the {kind} of {name}" for kind in found]
    if anew:
        print(f"--resume-force: {', '.join(anew)}: what was saved does not fit; started anew, at epoch {epochs + 1}")


def _part(
    optimizer: Any, schedule: Any, theirs: Mapping[str, Any], their_schedule: Mapping[str, Any], epochs: int
) -> list[str]:
    own = optimizer.state_dict()["param_groups"]
    fits = _kinds(own) == _kinds(theirs.get("param_groups", ()))
    same = _settings(schedule.state_dict()) == _settings(their_schedule)
    anew = ["optimiser"] * (not fits) + ["schedule"] * (not same)
    if not anew:
        schedule.load_state_dict(their_schedule)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no step of the optimiser came before
            for _ in range(epochs):
                schedule.step()
    if fits:
        rates = optimizer.state_dict()["param_groups"] if anew else theirs["param_groups"]
        groups = [{**group, "lr": at["lr"]} for group, at in zip(own, rates, strict=True)]
        optimizer.load_state_dict({"state": theirs["state"], "param_groups": groups})
    return anew


def _kinds(groups: Any) -> list[tuple[int, dict[str, bool | None]]]:
    """Of groups of parameters: how many those are, and the options' names, with the values of those that choose."""
    return [
        (
            len(group["params"]),
            {key: value if isinstance(value, bool) else None for key, value in group.items() if key not in FREE},
        )
        for group in groups
    ]


def _settings(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """What a schedule is, and the one that follows its warm-up."""
    return {
        key: _settings(value) if key == "successor" else value for key, value in schedule.items() if key not in MOVING
    }
