"""Answers of two heads made up for the tests: what a run would have said, without a run."""

from __future__ import annotations

import torch

from dho_plugin.analysis.answers import Answers


def made(
    n: int = 60, c: int = 7, seed: int = 0, *, alpha: float = 0.4, beta: float = 0.5, chosen: str = "fixed"
) -> Answers:
    """Both heads know something of the labels, and something of each other."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (n,), generator=generator)
    noise = torch.randn(3, n, c, generator=generator).double()
    true = torch.nn.functional.one_hot(labels, c)
    ce, kd = (1.2 * true + noise[0] + noise[head] for head in (1, 2))
    paths = tuple(f"{i}.jpg" for i in range(n))
    return Answers(ce, 2 * kd, labels, paths, tuple(f"class {i}" for i in range(c)), alpha, beta, chosen, "test")


def one_head(answers: Answers) -> Answers:
    """The CE head's alone."""
    return answers._replace(kd=None, alpha=1.0, beta=1.0, chosen="")
