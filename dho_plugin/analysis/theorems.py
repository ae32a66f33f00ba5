"""What Appendix A of the paper states, as quantities that can be measured; docs/theory.md says what of it holds.

Shapes: N pairs of a teacher's and a KD head's logits of the same image, C classes. Probabilities at temperature tau are
softmax(logits / tau); divergences are in nats; distances are l1 norms of differences of distributions, in [0, 2].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from ..heads import DualHeadLogits
from ..interpolation import interpolate
from ..losses import soft_targets

ROUNDING = 1e-12  # a distance of equal distributions in float64


class Errors(NamedTuple):
    """Of Theorem A.3, each (N,): distances of the CE head to the label, of the KD head to the teacher (Assumption A.2),
    and of the combination to the optimum of a single head."""

    ce: Tensor
    kd: Tensor
    combined: Tensor


class Example(NamedTuple):
    """Logits (1, C) whose distance at tau is over the bound of Lemma A.4, and what they are, in words."""

    tau: float
    teacher: Tensor
    kd: Tensor
    words: str


class Matching(NamedTuple):
    """Lemma A.4 on N pairs: near at one temperature, asked at another.

    Attributes:
        at: the temperature at which they were compared, 1 in the lemma. tau: the other one.
        delta: (N,) KL(teacher || head) at `at`, to 1e-15. softened: (N,) the same at tau. distance: (N,) at tau.
        span: (N,) the larger of the two ranges (largest minus smallest logit). apart: (N,) range of head minus teacher.
    """

    at: float
    tau: float
    delta: Tensor
    softened: Tensor
    distance: Tensor
    span: Tensor
    apart: Tensor

    @property
    def bound(self) -> Tensor:
        """The lemma's, sqrt(2 delta)."""
        return (2 * self.delta).sqrt()

    @property
    def holds(self) -> Tensor:
        """Where the distance is within the lemma's bound."""
        return self.distance <= self.bound + ROUNDING

    @property
    def factor(self) -> Tensor:
        """What sqrt(2 delta) times is a bound for all logits: s * exp(|s - 1| * span / (2 * at)), s = at / tau."""
        s = self.at / self.tau
        return s * torch.exp(abs(s - 1) * self.span / (2 * self.at))

    @property
    def certain(self) -> Tensor:
        """Where span, or how far the logits are apart, is enough to know that the lemma's bound holds."""
        return (self.factor <= 1) | (self.apart <= self.tau * (8 * self.delta).sqrt())


def single_head_optimum(teacher: Tensor, labels: Tensor, *, ce_weight: float, tau: float) -> Tensor:
    """Theorem A.1, Eq. 13: lambda y + (1 - lambda) p_tau, (N, C).

    Args:
        teacher: logits (N, C). labels: (N,). ce_weight: lambda.
    """
    targets = soft_targets(teacher, temperature=tau)
    return ce_weight * F.one_hot(labels, teacher.shape[-1]).to(targets) + (1 - ce_weight) * targets


def errors(logits: DualHeadLogits, teacher: Tensor, labels: Tensor, *, ce_weight: float, tau: float) -> Errors:
    """The distances of Theorem A.3, at alpha = lambda and beta = tau.

    Args:
        logits: each (N, C). teacher: logits (N, C). labels: (N,). ce_weight: lambda.
    """
    ce, kd, combined = (interpolate(logits, alpha=alpha, beta=tau) for alpha in (1.0, 0.0, ce_weight))
    label, target, optimum = (
        single_head_optimum(teacher, labels, ce_weight=weight, tau=tau) for weight in (1.0, 0.0, ce_weight)
    )
    return Errors(_distance(ce, label), _distance(kd, target), _distance(combined, optimum))


def matching(kd: Tensor, teacher: Tensor, tau: float, *, at: float = 1.0) -> Matching:
    """Measure Lemma A.4.

    Args:
        kd, teacher: logits (N, C), float64. tau: where the head is asked. at: where it was compared with the teacher.
    """
    at_tau = (soft_targets(logits, temperature=tau) for logits in (kd, teacher))
    delta, softened = (_divergence(kd, teacher, temperature) for temperature in (at, tau))
    span = torch.maximum(_range(kd), _range(teacher))
    return Matching(at, tau, delta, softened, _distance(*at_tau), span, _range(kd - teacher))


def examples() -> list[Example]:
    """Pairs that break the lemma's bound, by hand, at the paper's beta, at eta and at a high temperature."""

    def pair(tau: float, classes: int, teacher: float, kd: float, words: str) -> Example:
        """Logits that lead by so much in the first class, and are 0 in all others."""
        lead = F.one_hot(torch.tensor([0]), classes).double()
        return Example(tau, teacher * lead, kd * lead, words)

    return [
        pair(0.5, 2, 0.1, -0.1, "two classes, leads of 0.1 and -0.1"),
        pair(2.0, 100, 20.0, 10.0, "100 classes, leads of 20 and 10"),
        pair(10.0, 2, 20.0, 10.0, "two classes, leads of 20 and 10"),
    ]


def random_pairs(count: int, classes: int, *, scale: float, error: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """KD head's and teacher's logits (count, classes), float64: normal, of deviation `scale`; the head's are the
    teacher's with a normal error of deviation `error`."""
    rng = torch.Generator().manual_seed(seed)
    teacher, noise = torch.randn(2, count, classes, dtype=torch.float64, generator=rng)
    return scale * teacher + error * noise, scale * teacher


def _divergence(kd: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    pair = (Categorical(logits=logits / temperature) for logits in (teacher, kd))
    return kl_divergence(*pair).clamp_min(0)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().sum(dim=-1)


def _range(logits: Tensor) -> Tensor:
    return logits.max(dim=-1).values - logits.min(dim=-1).values
