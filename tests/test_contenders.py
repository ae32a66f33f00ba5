"""The classes that can win, against every class at every point of the grid: the same argmax, ties and all."""

from __future__ import annotations

import pytest
import torch

from dho_plugin.contenders import contenders
from dho_plugin.heads import DualHeadLogits
from dho_plugin.interpolation import (
    ALPHA_GRID,
    BETA_GRID,
    accuracy_grid,
    best_point,
    interpolate,
    kd_probabilities,
    mix,
    search_alpha_beta,
)


def normal(n: int, c: int, seed: int) -> DualHeadLogits:
    generator = torch.Generator().manual_seed(seed)
    return DualHeadLogits(*(3 * torch.randn(n, c, generator=generator).double() for _ in range(2)))


def agreeing(n: int, c: int, seed: int) -> DualHeadLogits:
    ce, kd = normal(n, c, seed)
    return DualHeadLogits(ce + kd, kd + 0.3 * ce)


def tied(n: int, c: int, seed: int) -> DualHeadLogits:
    """Few different values, as half precision gives, so that every kind of tie is there."""
    return DualHeadLogits(*(part.div(3).round() for part in normal(n, c, seed)))


def saturated(n: int, c: int, seed: int) -> DualHeadLogits:
    return DualHeadLogits(*(torch.where(part > 2, 100.0, -100.0) for part in normal(n, c, seed)))


def constant(n: int, c: int, seed: int) -> DualHeadLogits:
    return DualHeadLogits(torch.zeros(n, c).double(), normal(n, c, seed).kd.sign())


def close(n: int, c: int, seed: int) -> DualHeadLogits:
    """Float32's nearest neighbours, which it cannot tell apart behind a softmax, and float64 can."""
    return DualHeadLogits(*(1 + part.round() * 2**-23 for part in normal(n, c, seed)))


KINDS = [close, normal, agreeing, tied, saturated, constant]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [2, 5, 40])
def test_the_winner_of_all_classes_is_that_of_the_contenders(kind, c):
    for seed in range(5):
        both = kind(60, c, seed)
        classes, sizes = contenders(both)
        assert classes.shape[1] == sizes.max() and sizes.min() >= 1
        for beta in BETA_GRID:
            for alpha in ALPHA_GRID:
                wanted = interpolate(both, alpha=alpha, beta=beta)
                place = wanted.gather(-1, classes).argmax(dim=-1, keepdim=True)
                assert torch.equal(classes.gather(-1, place)[:, 0], wanted.argmax(dim=-1))


@pytest.mark.parametrize("kind", KINDS)
def test_contenders_against_a_loop_over_pairs(kind):
    ce, kd = kind(30, 7, 1)
    classes, sizes = contenders(DualHeadLogits(ce, kd))
    for i in range(30):
        kept = classes[i, : sizes[i]].tolist()
        assert kept == sorted(set(kept)) and classes[i, sizes[i] :].eq(kept[0]).all()
        for c in range(7):
            others = [(ce[i, d] - ce[i, c], kd[i, d] - kd[i, c], d < c) for d in range(7) if d != c]
            beaten = any(x > 0 and y > 0 for x, y, _ in others)
            tied_before = any(x >= 0 and y >= 0 and before for x, y, before in others)
            assert c not in kept if beaten else c in kept or tied_before


def test_few_of_many_classes_are_left():
    assert contenders(agreeing(50, 1000, 0)).classes.shape[1] < 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_grid_is_every_point_by_itself(kind, dtype):
    both = DualHeadLogits(*(part.to(dtype) for part in kind(70, 6, 2)))
    labels = torch.randint(0, 6, (70,), generator=torch.Generator().manual_seed(0))
    found = accuracy_grid(both, labels)
    for a, alpha in enumerate(ALPHA_GRID):
        for b, beta in enumerate(BETA_GRID):
            slow = interpolate(DualHeadLogits(*(part.double() for part in both)), alpha=alpha, beta=beta)
            assert found[a, b].item() == 100.0 * slow.argmax(dim=-1).eq(labels).double().mean().item()


def test_images_beyond_one_batch_are_counted(monkeypatch):
    both, labels = tied(50, 4, 3), torch.arange(50) % 4
    whole = accuracy_grid(both, labels, alphas=(0.3,), betas=(0.5, 2.0))
    monkeypatch.setattr("dho_plugin.interpolation._ROWS", 7)
    assert torch.equal(accuracy_grid(both, labels, alphas=(0.3,), betas=(0.5, 2.0)), whole)
    assert whole.shape == (1, 2)


def test_the_search_is_the_best_point_of_the_grid_by_a_slow_rule():
    alphas, betas = ALPHA_GRID[::2], BETA_GRID
    for seed in range(6):
        both, labels = tied(20, 4, seed), torch.arange(20) % 4
        grid = accuracy_grid(both, labels, alphas=alphas, betas=betas)
        points = [(grid[a, b].item(), alphas[a], betas[b]) for b in range(len(betas)) for a in range(len(alphas))]
        highest = max(points)[0]
        wanted = min(
            (p for p in points if p[0] == highest), key=lambda p: (abs(p[1] - 0.5), abs(p[2] - 1.0))
        )  # of these equal too: the first
        found = search_alpha_beta(both, labels, split="val", alphas=alphas, betas=betas)
        assert (found.accuracy, found.alpha, found.beta) == wanted
        assert best_point(grid, alphas, betas) == found


@pytest.mark.parametrize(("alpha", "beta", "word"), [(1.2, 1.0, "alpha"), (0.5, -1.0, "beta")])
def test_a_grid_beyond_the_range_is_refused(alpha, beta, word):
    with pytest.raises(ValueError, match=word):
        accuracy_grid(normal(3, 3, 0), torch.zeros(3, dtype=torch.long), alphas=(alpha,), betas=(beta,))


def test_the_parts_make_the_whole():
    both = normal(5, 4, 0)
    parts = torch.softmax(both.ce, dim=-1), kd_probabilities(both.kd, beta=0.5)
    assert torch.equal(mix(*parts, alpha=0.3), interpolate(both, alpha=0.3, beta=0.5))
