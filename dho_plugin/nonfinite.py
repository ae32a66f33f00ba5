"""A loss that is not finite: which of the losses, at which step, and from which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import UsageError
from .predicting import printable

SHOWN = 5  # images that are named


class NonFiniteLoss(UsageError, FloatingPointError):
    """No parameter has changed in the step."""


def culprits(values: Mapping[str, Tensor], paths: Sequence[str]) -> list[str]:
    """Which of the numbers of which images are not finite, in words.

    Args:
        values: (N, ...) by what they are, "the teacher's logits". paths: the N images, or more.
    """
    found = []
    for name, value in values.items():
        rows = (~torch.isfinite(value.detach()).flatten(1).all(dim=1)).nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(printable(paths[row]) for row in rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")
            found.append(f"{name} of {len(rows)} of {len(value)} images ({shown})")
    return found


def message(losses: Mapping[str, Tensor], where: str, found: Sequence[str]) -> str:
    """What to say of a step.

    Args:
        losses: by name, scalars. where: "epoch 3, batch 7/150". found: see culprits, of all processes.
    """
    values = {name: float(value) for name, value in losses.items()}
    bad = ", ".join(f"{name} {value}" for name, value in values.items() if not torch.isfinite(torch.tensor(value)))
    seen = "; ".join(found) or "all features and logits are finite, so that it is the loss itself"
    return (
        f"{where}: {bad}. Not finite: {seen}. The step was not taken. Look at these images; if they are all of the "
        "batch, the weights have diverged: take a smaller OPTIM.LR or PREC fp32"
    )
