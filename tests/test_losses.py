from __future__ import annotations

import pytest
import reference
import torch

from dho_plugin import DualHeadLogits, distillation_loss, dual_head_loss, soft_targets, supervised_loss

N, M, C = 5, 7, 4


def batch(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, scale: float = 3.0) -> torch.Tensor:
        return (scale * torch.randn(rows, C, generator=generator, dtype=torch.float64)).requires_grad_()

    labels = torch.randint(0, C, (N,), generator=generator)
    return draw(N), draw(N), draw(M), draw(N).detach(), draw(M).detach(), labels


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(grads, inputs, strict=True)]


def test_soft_targets_are_eq_1():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    texts = torch.randn(C, 6, generator=generator, dtype=torch.float64)
    cosines = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    ours = soft_targets(cosines / 0.07, temperature=2.0)
    slow = torch.stack([torch.stack(reference.teacher_probabilities(image, texts, 0.07, 2.0)) for image in images])
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-12)


def test_supervised_loss_is_eq_6_with_its_gradient():
    ce, *_, labels = batch()
    ours, slow = supervised_loss(ce, labels), reference.cross_entropy(ce, labels)
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-12)
    torch.testing.assert_close(*(gradients(loss, ce)[0] for loss in (ours, slow)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("t2", [True, False])
def test_distillation_is_eq_7_with_its_gradient(eta, t2):
    _, kd, _, teacher, _, _ = batch()
    ours = distillation_loss(kd, teacher, temperature=eta, scale_by_t2=t2)
    slow = reference.distillation(kd, teacher, eta, t2)
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-12)
    torch.testing.assert_close(*(gradients(loss, kd)[0] for loss in (ours, slow)), rtol=0, atol=1e-12)


def test_divergence_runs_teacher_first():
    _, kd, _, teacher, _, _ = batch()
    forward = reference.distillation(kd, teacher, 2.0, True)
    reverse = reference.distillation(teacher, kd, 2.0, True)
    assert abs(forward - reverse) > 0.1  # the two directions differ on this batch
    torch.testing.assert_close(distillation_loss(kd, teacher, temperature=2.0), forward, rtol=0, atol=1e-12)


def test_eta_squared_is_in_the_loss_by_default():
    _, kd, _, teacher, _, _ = batch()
    bare = distillation_loss(kd, teacher, temperature=2.0, scale_by_t2=False)
    torch.testing.assert_close(distillation_loss(kd, teacher, temperature=2.0), 4 * bare)


@pytest.mark.parametrize("with_unlabeled", [True, False])
@pytest.mark.parametrize("ce_weight", [0.0, 0.5, 0.8, 1.0])
def test_the_sum_with_its_gradients(with_unlabeled, ce_weight):
    ce_l, kd_l, kd_u, teacher_l, teacher_u, labels = batch()
    unlabeled = DualHeadLogits(torch.zeros(M, C, dtype=torch.float64), kd_u) if with_unlabeled else None
    ours = dual_head_loss(
        DualHeadLogits(ce_l, kd_l),
        labels,
        teacher_l,
        unlabeled,
        teacher_u if with_unlabeled else None,
        ce_weight=ce_weight,
        temperature=2.0,
    )
    used = (kd_u, teacher_u) if with_unlabeled else (None, None)
    slow = reference.dual_head(ce_l, kd_l, labels, teacher_l, *used, ce_weight, 2.0, True)
    torch.testing.assert_close(ours.total, slow, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(ours.total, ce_l, kd_l, kd_u), gradients(slow, ce_l, kd_l, kd_u), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_two_means_not_one_pooled_mean():
    ce_l, kd_l, kd_u, teacher_l, teacher_u, labels = batch()
    loss = dual_head_loss(DualHeadLogits(ce_l, kd_l), labels, teacher_l, DualHeadLogits(kd_u, kd_u), teacher_u)
    pooled = distillation_loss(torch.cat([kd_l, kd_u]), torch.cat([teacher_l, teacher_u]), temperature=2.0)
    assert abs(loss.kd - pooled) > 0.1
    separate = [
        distillation_loss(kd_l, teacher_l, temperature=2.0),
        distillation_loss(kd_u, teacher_u, temperature=2.0),
    ]
    torch.testing.assert_close(loss.kd, sum(separate))


def test_heads_do_not_exchange_gradients_and_the_teacher_has_none():
    ce_l, kd_l, kd_u, teacher_l, teacher_u, labels = batch()
    teacher_l, teacher_u = teacher_l.requires_grad_(), teacher_u.requires_grad_()
    unlabeled = DualHeadLogits(torch.zeros(M, C, dtype=torch.float64, requires_grad=True), kd_u)
    loss = dual_head_loss(DualHeadLogits(ce_l, kd_l), labels, teacher_l, unlabeled, teacher_u)
    assert torch.autograd.grad(loss.ce, kd_l, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(loss.kd, ce_l, retain_graph=True, allow_unused=True) == (None,)
    unused = torch.autograd.grad(loss.total, (teacher_l, teacher_u, unlabeled.ce), allow_unused=True)
    assert unused == (None, None, None)


def test_half_an_unlabeled_batch_is_refused():
    ce_l, kd_l, kd_u, teacher_l, _, labels = batch()
    with pytest.raises(ValueError, match="both"):
        dual_head_loss(DualHeadLogits(ce_l, kd_l), labels, teacher_l, DualHeadLogits(kd_u, kd_u))
