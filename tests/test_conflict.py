"""The measures of gradient conflict against the paper's equations as printed, slow loops and autograd, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch

from dho_plugin.analysis.conflict import (
    feature_agreement,
    parameter_agreement,
    prediction_discrepancy,
    spectrum,
)
from dho_plugin.heads import DualHeadLogits
from dho_plugin.losses import distillation_loss, supervised_loss

N, C, D, ETA = 5, 4, 6, 2.0


@pytest.fixture(autouse=True)
def doubles():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw():
    """Features, labels and the teacher's logits of N images."""
    return torch.randn(N, D, requires_grad=True), torch.randint(C, (N,)), torch.randn(N, C)


def probabilities(logits, teacher):
    """p_CE, p_KD and p of each image, those of the distillation softened."""
    return [
        (reference.softmax(ce), reference.softmax(kd / ETA), reference.softmax(p / ETA))
        for ce, kd, p in zip(logits.ce, logits.kd, teacher, strict=True)
    ]


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("t2", [True, False])
def test_feature_gradients_of_linear_heads_are_equations_4_and_8_and_their_cosine_5_and_9(single, t2):
    features, labels, teacher = draw()
    ce_head = torch.nn.Linear(D, C)
    kd_head = ce_head if single else torch.nn.Linear(D, C)
    logits = DualHeadLogits(ce_head(features), kd_head(features))
    losses = supervised_loss(logits.ce, labels), distillation_loss(logits.kd, teacher, temperature=ETA, scale_by_t2=t2)
    ce, kd = (N * torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in losses)
    found = feature_agreement(ce, kd)
    rows = ce_head.weight.detach(), kd_head.weight.detach()
    factor = ETA if t2 else 1 / ETA
    for n, (p_ce, p_kd, p) in enumerate(probabilities(logits, teacher)):
        y = int(labels[n])
        expected = reference.feature_gradients(*rows, p_ce, y, p_kd, p)
        torch.testing.assert_close(ce[n], torch.stack(expected[0]))
        torch.testing.assert_close(kd[n], factor * torch.stack(expected[1]))
        torch.testing.assert_close(found.cosine[n], reference.feature_cosine(*rows, p_ce, y, p_kd, p))
        inner = sum(a * b for a, b in zip(*expected, strict=True))
        torch.testing.assert_close(found.inner_product[n], factor * inner)


def test_the_prediction_discrepancy_is_a_loop_over_classes():
    _, labels, teacher = draw()
    logits = DualHeadLogits(torch.randn(N, C), torch.randn(N, C))
    found = prediction_discrepancy(logits, labels, teacher, temperature=ETA)
    for n, (p_ce, p_kd, p) in enumerate(probabilities(logits, teacher)):
        torch.testing.assert_close(found[n], reference.discrepancy(p_ce, int(labels[n]), p_kd, p))


def test_a_head_between_label_and_teacher_has_a_negative_discrepancy_and_a_negative_cosine():
    """The conflict of Section 3.2: the student has followed neither all the way."""
    labels, teacher = torch.tensor([0]), torch.tensor([[0.0, 8.0, 0.0]])
    between = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    one = DualHeadLogits(between, between)
    assert prediction_discrepancy(one, labels, teacher, temperature=1.0).item() < -0.4
    losses = supervised_loss(between, labels), distillation_loss(between, teacher, temperature=1.0)
    found = feature_agreement(*(torch.autograd.grad(loss, between, retain_graph=True)[0] for loss in losses))
    assert found.cosine.item() < -0.7


def test_parameters_count_as_a_single_vector():
    shapes = [(3, 2), (4,), ()]
    ce, kd = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    a, b = ([float(v) for part in gradients for v in part.reshape(-1)] for gradients in (ce, kd))
    inner = sum(x * y for x, y in zip(a, b, strict=True))
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    found = parameter_agreement(ce, kd)
    assert found.inner_product.item() == pytest.approx(inner, rel=1e-12)
    assert found.cosine.item() == pytest.approx(inner / norms, rel=1e-12)


def test_small_numbers_of_single_precision_neither_vanish_nor_add_up_wrongly():
    """Squares of 1e-25 are zero in float32, and a million of equal summands are rounded there."""
    tiny = [torch.full((10,), 1e-25, dtype=torch.float32)]
    assert parameter_agreement(tiny, tiny).cosine.item() == pytest.approx(1)
    many = [torch.full((1_000_000,), 0.1, dtype=torch.float32)]
    value = float(many[0][0])
    assert parameter_agreement(many, many).inner_product.item() == pytest.approx(1e6 * value**2, rel=1e-12)


def test_what_is_not_defined_is_nan():
    assert all(math.isnan(value.item()) for value in parameter_agreement([], []))
    assert math.isnan(parameter_agreement([torch.zeros(3)], [torch.ones(3)]).cosine.item())
    found = feature_agreement(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert math.isnan(found.cosine[0]) and found.cosine[1] == -1
    assert found.inner_product.tolist() == [0, -1]
    assert all(math.isnan(value) for value in spectrum(None, None))
    alone = spectrum(torch.eye(3), None)
    assert alone.ce_eigenvalue == pytest.approx(1) and all(math.isnan(value) for value in alone[1:])


@pytest.mark.parametrize(("classes", "width"), [(4, 6), (6, 4), (5, 5)])
def test_the_spectrum_is_that_of_the_explicit_matrices(classes, width):
    ce, kd = torch.randn(classes, width), torch.randn(classes, width)
    one, other = ce.numpy(), kd.numpy()
    found = spectrum(ce, kd)
    assert found.ce_eigenvalue == pytest.approx(np.linalg.eigvalsh(one @ one.T).max())
    assert found.kd_eigenvalue == pytest.approx(np.linalg.eigvalsh(other @ other.T).max())
    product = one @ other.T
    assert found.singular_value == pytest.approx(np.linalg.svd(product, compute_uv=False).max())
    assert found.eigenvalue == pytest.approx(np.abs(np.linalg.eigvals(product)).max())


def test_a_single_head_has_one_number_for_all_four():
    rows = torch.randn(C, D)
    assert spectrum(rows, rows) == pytest.approx((spectrum(rows, None).ce_eigenvalue,) * 4)
