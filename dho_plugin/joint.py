"""A training step of several processes: DistributedDataParallel around a module whose forward is a trainer's losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import world_size


class Step(nn.Module):
    """Losses as a module that owns what they train, and nothing else that would be sent around.

    Args:
        losses: a batch -> losses and whatever else. learned: the modules that are trained, by name.
    """

    def __init__(self, losses: Callable[[Any], Any], learned: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.learned = nn.ModuleDict(learned)
        self._losses = losses

    def forward(self, batch: Any) -> Any:
        return self._losses(batch)

    def no_sync(self) -> AbstractContextManager[None]:
        """As DistributedDataParallel's: of several backward passes the last one alone is shared."""
        return nullcontext()


def joint(losses: Callable[[Any], Any], learned: Mapping[str, nn.Module]) -> Any:
    """The step of this process, whose gradients are the mean over all processes; called and named as Step."""
    step = Step(losses, learned)
    if world_size() == 1 or not any(parameter.requires_grad for parameter in step.parameters()):
        return step
    # Buffers are equal already: statistics are those of the whole batch (batch_norm.py).
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 has another name for it, which older ones lack
        return DistributedDataParallel(step, broadcast_buffers=False, gradient_as_bucket_view=True)
