"""How a step is taken: in parts, by several processes, and not at all where a loss is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..averaging import WeightedAverage
from ..distributed import gathered, mean, rank
from ..hashing import hash64
from ..host import compute_accuracy
from ..joint import joint
from ..loaders import cut
from ..nonfinite import NonFiniteLoss, culprits, message
from ..precision import read_later
from .resumable import Resumable


class Stepping(Resumable):
    """A trainer whose batch has losses.

    Attributes:
        average: of the weights over epochs, None for none.
    """

    average: WeightedAverage | None

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses by name ("loss" is minimised), class logits of the labelled images, and their labels."""
        raise NotImplementedError

    def answers_by_image(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What a step computes of each image of a batch, (n, ...) by what it is called in an error."""
        raise NotImplementedError

    @cached_property
    def joint(self) -> Any:
        """The losses of a batch, with gradients that are the mean over all processes; made at the first step."""
        return joint(self.losses, self.learned().values())

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """A step. What it returns stays on the device: a host that reads it only when it prints waits only then.

        Raises:
            NonFiniteLoss: a loss is not finite; all parameters are as they were.
        """
        if rank():  # each drops out by itself; the first by the run's own generator, whose state is saved
            step = self.epoch * self.num_batches + self.batch_idx
            torch.manual_seed(int(hash64(self.view_seed, step, rank())))
        self.model_zero_grad()
        parts, seen = cut(batch, self.cfg.TRAIN.ACCUMULATE), []
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            with nullcontext() if last else self.joint.no_sync():
                with self.precision.autocast():
                    losses, logits, labels = self.joint(part)
                scores = {name: loss.detach() for name, loss in losses.items()}
                seen.append({**scores, "acc": compute_accuracy(logits.detach(), labels)[0].squeeze()})
                if last:
                    summary = mean(averaged(seen))
                    finite = read_later(torch.isfinite(torch.stack([summary[name] for name in losses])).all())
                self.precision.backward(losses["loss"] / len(parts))
        if not finite():
            self.explain(parts, {name: summary[name] for name in losses})
        self.precision.update([optimizer for optimizer in self._optims.values() if optimizer is not None])
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
            if self.average is not None:
                self.average.add(self.epoch)
                if self.epoch + 1 == self.max_epoch:
                    self.average.deploy()
        return summary

    @torch.no_grad()
    def explain(self, parts: Sequence[dict[str, Any]], losses: dict[str, Tensor]) -> None:
        """Raise NonFiniteLoss for a step; the models look at its images once more."""
        found = []
        for part in parts:
            with self.precision.autocast():
                found += culprits(self.answers_by_image(part), self.train_loader_x.batches.paths(part))
        where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}/{self.num_batches}"
        raise NonFiniteLoss(message(losses, where, [line for lines in gathered(found) for line in lines]))


def averaged(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over parts of each of their numbers."""
    return parts[0] if len(parts) == 1 else {name: torch.stack([p[name] for p in parts]).mean() for name in parts[0]}
