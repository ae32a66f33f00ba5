"""Appendix A measured on a finished run: Lemma A.4 on its KD head and teacher, Theorem A.3 on both heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..predicting import printable
from ..runs import run_config
from .answers import answers_of, teacher_of
from .theorems import Errors, Matching, errors, matching

TAUS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)


class Share(NamedTuple):
    """Lemma A.4 over the images of a set, or over random pairs; shares are in percent.

    Attributes:
        at, tau: see theorems.Matching. holds: share within the bound. certain: share of which size alone says so.
        nearer: share whose divergence at tau is at most that at `at`, which is what the lemma's proof takes for granted
            (Eq. 39). distance, bound: means. low, middle, high, most: of distance over bound, the 5 % quantile, the
            median, the 95 % quantile and the maximum.
    """

    at: float
    tau: float
    holds: float
    certain: float
    nearer: float
    distance: float
    bound: float
    low: float
    middle: float
    high: float
    most: float


class Measured(NamedTuple):
    """A run's heads and teacher on a set.

    Attributes:
        title: which. shares: by temperature, first those with delta at 1, as in the lemma, then those with delta at
            eta, where the run's head was trained. errors: of Theorem A.3. ce_weight, eta, beta: the run's.
    """

    title: str
    shares: list[Share]
    errors: Errors
    ce_weight: float
    eta: float
    beta: float


def measure(run: str | Path, split: str = "test", *, taus: Sequence[float] = TAUS, root: str = "") -> Measured:
    """Measure on a finished run.

    Args:
        run: its output folder. split: see answers.sets_of. root: where the datasets are now.

    Raises:
        UsageError: as answers_of and teacher_of; a run of one head.
    """
    dho, answers = run_config(run).TRAINER.DHO, answers_of(run, split, root=root)
    logits, teacher = answers.logits, teacher_of(run, split, root=root)
    shares = [
        share_of(matching(logits.kd, teacher, tau, at=at))
        for at in dict.fromkeys((1.0, float(dho.ETA)))
        for tau in taus
    ]
    apart = errors(logits, teacher, answers.labels, ce_weight=dho.LAMBDA, tau=answers.beta)
    title = f"{printable(Path(run).resolve().name)}, {split}: {len(teacher):,} images, {teacher.shape[1]:,} classes"
    return Measured(title, shares, apart, float(dho.LAMBDA), float(dho.ETA), answers.beta)


def share_of(found: Matching) -> Share:
    """Sum up a measurement."""
    flags = (found.holds, found.certain, found.softened <= found.delta)
    holds, certain, nearer = (100 * flag.double().mean().item() for flag in flags)
    ratio = found.distance / found.bound.clamp_min(torch.finfo(torch.float64).tiny)
    low, middle, high, most = ratio.quantile(torch.tensor([0.05, 0.5, 0.95, 1.0], dtype=ratio.dtype)).tolist()
    means = (found.distance.mean().item(), found.bound.mean().item())
    return Share(found.at, found.tau, holds, certain, nearer, *means, low, middle, high, most)
