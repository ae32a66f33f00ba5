from __future__ import annotations

import pytest
import reference
import torch

from dho_plugin import DualHeadLogits, interpolate, search_alpha_beta


def logits(n: int = 6, c: int = 5, seed: int = 0) -> DualHeadLogits:
    generator = torch.Generator().manual_seed(seed)
    return DualHeadLogits(*(3 * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2)))


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.4, 0.5), (0.0, 2.0), (1.0, 0.1)])
def test_interpolation_is_eq_11(alpha, beta):
    both = logits()
    ours = interpolate(both, alpha=alpha, beta=beta)
    torch.testing.assert_close(ours, reference.interpolation(both.ce, both.kd, alpha, beta), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.sum(-1), torch.ones(6, dtype=torch.float64))


def test_gradients_of_interpolation():
    both = DualHeadLogits(*(part.requires_grad_() for part in logits()))
    weights = torch.randn(6, 5, dtype=torch.float64)
    ours = interpolate(both, alpha=0.3, beta=0.5)
    slow = reference.interpolation(both.ce, both.kd, 0.3, 0.5)
    for mine, other in zip(*(torch.autograd.grad((out * weights).sum(), both) for out in (ours, slow)), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_restriction_before_the_softmax_is_not_restriction_after_it():
    # CE: over all classes class 2 takes nearly all, so classes 0 and 1 have tiny CE probabilities and KD decides.
    both = DualHeadLogits(torch.tensor([[2.0, 0.0, 12.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    subset = torch.tensor([0, 1])
    before = interpolate(both.restrict(subset), alpha=0.5, beta=1.0)
    after = interpolate(both, alpha=0.5, beta=1.0)[:, subset]
    assert before.argmax() == 0
    assert after.argmax() == 1
    slow = reference.interpolation(both.ce.double(), both.kd.double(), 0.5, 1.0, [0, 1])
    torch.testing.assert_close(before.double(), slow, rtol=0, atol=1e-6)


def test_search_finds_the_best_point_and_breaks_ties_towards_the_middle():
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    right = 10 * torch.nn.functional.one_hot(labels, 5).double()
    wrong = 10 * torch.nn.functional.one_hot((labels + 1) % 5, 5).double()
    trust_ce = search_alpha_beta(DualHeadLogits(right, wrong), labels, split="val")
    assert trust_ce.accuracy == 100 and trust_ce.alpha >= 0.5
    trust_kd = search_alpha_beta(DualHeadLogits(wrong, right), labels, split="val")
    assert trust_kd.accuracy == 100 and trust_kd.alpha <= 0.5
    both = search_alpha_beta(DualHeadLogits(right, right), labels, split="val")
    assert (both.alpha, both.beta) == (0.5, 1.0)


def test_search_equals_the_slow_grid():
    both, labels = logits(40, seed=3), torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
    found = search_alpha_beta(both, labels, split="val")
    best = max(
        float((reference.interpolation(both.ce, both.kd, a / 20, b).argmax(-1) == labels).double().mean()) * 100
        for a in range(0, 21, 4)
        for b in (0.1, 0.5, 1.0, 4.0)
    )
    assert found.accuracy >= best
    again = interpolate(both, alpha=found.alpha, beta=found.beta).argmax(-1).eq(labels).double().mean() * 100
    assert again == pytest.approx(found.accuracy)


def test_search_on_test_is_refused_unless_named_oracle():
    both, labels = logits(), torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match="test split"):
        search_alpha_beta(both, labels, split="test")
    assert search_alpha_beta(both, labels, split="test", allow_oracle=True).accuracy >= 0


@pytest.mark.parametrize(("alpha", "beta", "word"), [(1.2, 1.0, "alpha"), (-0.1, 1.0, "alpha"), (0.5, 0.0, "beta")])
def test_bad_values_are_refused(alpha, beta, word):
    with pytest.raises(ValueError, match=word):
        interpolate(logits(), alpha=alpha, beta=beta)
