from __future__ import annotations

import pytest
import reference
import torch

from dho_plugin import CosineHead, DualHeadLogits, DualHeadStudent, build_head
from dho_plugin.errors import UsageError
from dho_plugin.heads import effective_rows

D, C = 6, 4


def embeddings() -> torch.Tensor:
    return torch.randn(C, D, generator=torch.Generator().manual_seed(0))


def test_cosine_head_is_eq_10_with_its_gradients():
    head = build_head("cosine", D, C, class_embeddings=embeddings(), scale=1 / 0.01).double()
    z = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ours, slow = head(z), reference.cosine_head(z, head.weight, 0.01)
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-10)
    weights = torch.randn_like(ours)
    mine, other = (torch.autograd.grad((out * weights).sum(), (z, head.weight)) for out in (ours, slow))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_cosine_head_has_no_bias_and_ignores_norms():
    head = build_head("cosine", D, C, class_embeddings=embeddings())
    z = torch.randn(3, D)
    assert set(dict(head.named_parameters())) == {"weight"}
    before = head(z)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([0.1, 1.0, 5.0, 20.0]).unsqueeze(1))
    torch.testing.assert_close(head(7 * z), before)


def test_official_head_normalises_the_feature_only_and_has_a_bias():
    head = build_head("official", D, C, class_embeddings=3 * embeddings(), scale=100.0)
    with torch.no_grad():
        head.bias.copy_(torch.arange(C) / 10)
    z = torch.randn(3, D)
    expected = torch.stack([100 * (head.weight @ (row / row.norm()) + head.bias) for row in z])
    torch.testing.assert_close(head(z), expected, rtol=1e-5, atol=1e-4)


def test_linear_head_reads_the_raw_feature():
    head = build_head("linear", D, C, class_embeddings=embeddings())
    z = torch.randn(3, D)
    torch.testing.assert_close(head(z), z @ embeddings().T)


@pytest.mark.parametrize("kind", ["linear", "official"])
def test_text_initialisation_sets_rows_and_zeroes_the_bias(kind):
    head = build_head(kind, D, C, class_embeddings=embeddings())
    torch.testing.assert_close(head.weight.detach(), embeddings())
    assert head.bias.abs().max() == 0


@pytest.mark.parametrize("kind", ["linear", "cosine", "official"])
def test_kaiming_initialisation_stays_in_its_bound(kind):
    weight = build_head(kind, 400, 50).weight.detach()
    bound = 1 / 400**0.5
    assert weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_zero_feature_is_finite_with_finite_gradient():
    z = torch.zeros(1, D, requires_grad=True)
    CosineHead(D, C, scale=100.0)(z).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_errors_name_the_mistake():
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        build_head("cosin", D, C)
    with pytest.raises(UsageError, match=r"\(4, 6\).*got \(4, 8\)"):
        build_head("linear", D, C, class_embeddings=torch.zeros(C, 8))


def test_student_feeds_the_same_features_to_both_heads():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, z):
            seen.append(z)
            return z

    student = DualHeadStudent(torch.nn.Linear(3, D), Spy(), Spy())
    logits = student(torch.randn(2, 3))
    assert isinstance(logits, DualHeadLogits)
    assert seen[0] is seen[1]


def test_restrict_picks_columns_of_both_heads_in_the_order_asked():
    logits = DualHeadLogits(torch.arange(8.0).view(2, 4), torch.arange(8.0, 16.0).view(2, 4))
    picked = logits.restrict(torch.tensor([3, 1]))
    assert picked.ce.tolist() == [[3, 1], [7, 5]]
    assert picked.kd.tolist() == [[11, 9], [15, 13]]
    assert logits.restrict(None) is logits


@pytest.mark.parametrize(("kind", "bias"), [("linear", 1.0), ("cosine", 0.0), ("official", 30.0)])
def test_effective_rows_are_what_a_head_multiplies_its_features_by(kind, bias):
    head = build_head(kind, D, C, scale=30.0).double()
    z = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    read = z if kind == "linear" else z / z.norm(dim=1, keepdim=True)
    shift = bias * head.bias if bias else 0
    torch.testing.assert_close(head(z), read @ effective_rows(head).T + shift)


def test_a_nonlinear_head_has_no_effective_rows():
    assert effective_rows(build_head("nonlinear", D, C)) is None
