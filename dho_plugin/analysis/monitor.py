"""Gradient conflict while a run trains (TRAIN.CONFLICT_FREQ), from the very tensors of its steps, to conflict.csv.

A run is the same to the bit with the monitor and without: it draws nothing, runs no forward pass, and takes gradients
beside those of a step, before them. Where an image tower is frozen, features take a gradient that nobody else uses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..distributed import averaged, gathered, is_main
from ..heads import DualHeadLogits, effective_rows
from .conflict import feature_agreement, parameter_agreement, prediction_discrepancy, spectrum
from .conflict_log import FILE, Observation, append, cut

LOSSES = ("loss_ce", "loss_kd")  # as a step names them, neither with its weight
# Of the scale that a step's loss takes in half precision: either loss alone, without its weight, may be larger than it.
HEADROOM = 1 / 16


class Look:
    """A step that is looked at.

    Args:
        epoch, step: counted from 1. parameters: learned ones of the image encoder.

    Attributes:
        features: of the part at hand (N + M, d). discrepancy: of its labelled images (N,), None where it is not known.
        rows: effective rows of the CE and of the KD head, None for none.
    """

    def __init__(self, epoch: int, step: int, parameters: Sequence[nn.Parameter]) -> None:
        self.position, self.parameters = (epoch, step), parameters
        self.features: Tensor | None = None
        self.discrepancy: Tensor | None = None
        self.rows: tuple[Tensor | None, Tensor | None] = None, None
        self._parts = 0
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}  # gradients by parameter, summed over the parts
        self._images: list[Tensor] = []  # (N, 3) of each part: cosine, inner product, discrepancy

    def add(self, losses: Mapping[str, Tensor], labeled: int, scale: float) -> None:
        """Take the gradients of both losses of a part; see ConflictMonitor.look."""
        assert self.features is not None
        ce, kd = (self._gradients(losses[name], self.features, scale) for name in LOSSES)
        for place, (one, other) in enumerate(zip(ce[1:], kd[1:], strict=True)):
            if one is not None and other is not None:
                before = self._shared.get(place)
                self._shared[place] = (one, other) if before is None else (before[0] + one, before[1] + other)
        nothing = torch.zeros_like(self.features)
        # The losses are means over the part's images.
        by_image = [(nothing if part[0] is None else part[0])[:labeled] * labeled for part in (ce, kd)]
        cosine, inner = feature_agreement(*by_image)
        unknown = torch.full_like(cosine, math.nan)
        found = [cosine, inner, unknown if self.discrepancy is None else self.discrepancy]
        self._images.append(torch.stack(found, dim=1))
        self._parts += 1
        self.features = self.discrepancy = None

    def _gradients(self, loss: Tensor, features: Tensor, scale: float) -> list[Tensor | None]:
        """With respect to the features and to each parameter, float32; None where the loss does not depend on it."""
        inputs = [features, *self.parameters]
        found = torch.autograd.grad(loss * scale, inputs, retain_graph=True, allow_unused=True)
        return [None if gradient is None else gradient.float() / scale for gradient in found]

    def observation(self) -> Observation:
        """All of it, over parts and processes; to be called by all processes."""
        shared = [[averaged(gradient / self._parts) for gradient in pair] for pair in self._shared.values()]
        images = torch.cat([part for parts in gathered(self._images) for part in parts])
        of_parameters = parameter_agreement([ce for ce, _ in shared], [kd for _, kd in shared])
        feature_cosine, feature_inner_product, discrepancy = images.nanmean(dim=0).tolist()
        return Observation(
            *self.position,
            cosine=of_parameters.cosine.item(),
            inner_product=of_parameters.inner_product.item(),
            feature_cosine=feature_cosine,
            feature_inner_product=feature_inner_product,
            discrepancy=discrepancy,
            **spectrum(*self.rows)._asdict(),
        )


class ConflictMonitor:
    """Looks at every `every`-th step of a run and at its first.

    For each step a trainer calls `begin`; for each part of it, it hands its features through `features`, calls `note`
    and, before the backward pass, `look`; and `end` before the weights change. At other steps these do nothing.

    Args:
        folder: the run's. every: 0 for never. encoder: the image encoder, whose learned parameters are shared as far as
            both losses reach them. temperature: eta. scale: what losses are multiplied by before a backward pass, in
            half precision. who: the trainer, in messages.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        encoder: nn.Module,
        temperature: float,
        scale: Callable[[], float],
        who: str,
    ) -> None:
        self._folder, self._every, self._temperature, self._scale, self._who = folder, every, temperature, scale, who
        self._parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        self._look: Look | None = None
        self._began = self._seconds = 0.0
        self._count = 0

    def begin(self, epoch: int, step: int) -> None:
        """A step begins; both count from 0, steps through the epochs. What the file has of it and later ones is cut."""
        if not self._began:
            self._began = time.perf_counter()
            if is_main():
                cut(self._folder, step)
        due = self._every > 0 and (step == 0 or (step + 1) % self._every == 0)
        self._look = Look(epoch + 1, step + 1, self._parameters) if due else None

    def features(self, features: Tensor) -> Tensor:
        """What the heads are to read: features (N + M, d), as a leaf with a gradient where they had none."""
        if self._look is None:
            return features
        self._look.features = features if features.requires_grad else features.detach().requires_grad_()
        return self._look.features

    @torch.no_grad()
    def note(
        self, logits: DualHeadLogits, labels: Tensor, teacher: Tensor, ce_head: nn.Module, kd_head: nn.Module
    ) -> None:
        """What the heads answer, and the teacher; a single head is both.

        Args:
            logits: each (N + M, C). labels: (N,) of the first rows. teacher: its logits (N + M, C).
        """
        if self._look is None:
            return
        n = len(labels)
        labeled = DualHeadLogits(logits.ce[:n], logits.kd[:n])
        self._look.discrepancy = prediction_discrepancy(labeled, labels, teacher[:n], temperature=self._temperature)
        ce, kd = (effective_rows(getattr(head, "head", head)) for head in (ce_head, kd_head))
        self._look.rows = ce, kd

    def look(self, losses: Mapping[str, Tensor], labeled: int) -> None:
        """Take the gradients of both losses of a part.

        Args:
            losses: by name, with their graphs. labeled: number N of labelled images in the part.
        """
        if self._look is None:
            return
        if self._look.features is None or not losses.keys() >= set(LOSSES):
            print(f"TRAIN.CONFLICT_FREQ: {self._who} has no L_CE beside an L_KD, so that there is nothing to compare")
            self._every, self._look = 0, None
            return
        with self._timed():
            self._look.add(losses, labeled, self._scale() * HEADROOM)

    def end(self) -> None:
        """Write the line of the step; to be called by all processes."""
        if self._look is None:
            return
        with self._timed():
            found = self._look.observation()
            if is_main():
                append(self._folder, found)
        if not self._count and math.isnan(found.inner_product):
            print(f"TRAIN.CONFLICT_FREQ: {self._who}'s losses share no parameter: features alone are compared")
        self._look = None
        self._count += 1

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the seconds of this context, in which a GPU ends what it was given before, too, and in it."""
        wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
        wait()
        began = time.perf_counter()
        yield
        wait()
        self._seconds += time.perf_counter() - began

    def cost(self) -> str:
        """What looking has cost in this process, in words; empty where nothing was looked at."""
        if not self._count:
            return ""
        whole = time.perf_counter() - self._began
        return (
            f"Gradient conflict: {self._count} observations in {self._folder / FILE} took {self._seconds:.2f} s, "
            f"{100 * self._seconds / whole:.1f} % of {whole:.1f} s of training, "
            f"{1000 * self._seconds / self._count:.1f} ms each"
        )
