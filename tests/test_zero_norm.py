"""Features of length zero: no direction, no cosine, and still finite answers and gradients."""

from __future__ import annotations

import pytest
import torch
from dho_plugin.trainers.promptsrc import self_consistency
from torch import Tensor, nn

from dho_plugin import DualHeadLogits, dual_head_loss, interpolate
from dho_plugin.adapter import TipAdapterHead
from dho_plugin.classes import ClassHead, ClassList
from dho_plugin.heads import HEAD_KINDS, build_head
from dho_plugin.losses import feature_distillation_loss
from dho_plugin.prompts import PromptedClassifier
from dho_plugin.teachers import ZeroShotTeacher
from dho_plugin.tome import TokenMergingVLM
from dho_plugin.vlm import load_vlm

WIDTH, CLASSES = 8, 3
LABELS = torch.tensor([0, 1])


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    """Two of an image each, the first of length zero."""
    found = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    found[0] = 0
    return found.to(dtype).requires_grad_()


def check(*tensors: Tensor | None) -> None:
    assert all(tensor is not None and torch.isfinite(tensor).all() for tensor in tensors)


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("half", [None, torch.float16, torch.bfloat16])
def test_heads_losses_and_interpolation(kind, half):
    classes = ClassList(tuple("abc"), tuple("abc"))
    heads = [ClassHead(build_head(kind, WIDTH, CLASSES), classes) for _ in range(2)]
    with torch.no_grad():
        for head in heads:
            next(head.parameters())[0] = 0
    given = features(half or torch.float32)
    with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        ce, kd = (head(given) for head in heads)
    logits = DualHeadLogits(ce, kd)
    loss = dual_head_loss(logits, LABELS, kd.detach() * 0)
    loss.total.backward()
    check(ce, kd, loss.total, *(p.grad for head in heads for p in head.parameters()))
    if half != torch.float16:  # whose range the slope there leaves; the towers give out float32
        check(given.grad)
    answer = interpolate(logits, alpha=0.5, beta=0.1)
    check(answer)
    torch.testing.assert_close(answer.sum(dim=-1), torch.ones(2))


def test_feature_distillation():
    for teacher in (features(), features().flip(0)):
        student = features()
        loss = feature_distillation_loss(student, teacher, CLASSES)
        loss.backward()
        check(loss, student.grad)


def test_promptsrcs_terms():
    images, texts = features(), features()
    unit = nn.functional.normalize(images, dim=-1)
    logits = unit @ texts.t()
    terms = self_consistency(
        texts, texts.detach(), unit, unit.detach(), logits, logits.detach(), text_weight=25, image_weight=10
    )
    sum(terms.values()).backward()
    check(*terms.values(), images.grad, texts.grad)


def test_tip_adapters_cache():
    head = TipAdapterHead(nn.functional.normalize(torch.eye(CLASSES, WIDTH)), 2, scale=100, alpha=1, beta=5.5)
    head.fill(nn.functional.normalize(features().detach(), dim=-1), LABELS)
    given = features()
    logits = head(given)
    nn.functional.cross_entropy(logits, LABELS).backward()
    check(logits, given.grad, head.keys.grad)
    assert head.search(given.detach(), LABELS) >= 0
    check(head.alpha, head.beta)


@pytest.fixture
def vlm(workspace):
    return load_vlm(str(workspace / "student.safetensors"))


def test_a_zero_shot_teacher_of_a_blank_image_and_an_empty_text(vlm, monkeypatch):
    """As its classifier reads them from STORE.DIR, too."""
    monkeypatch.setattr(vlm, "encode_text", lambda tokens: torch.randn(len(tokens), vlm.width) * tokens[:, 2:3].ne(0))
    monkeypatch.setattr(vlm, "encode_image", lambda images, *rest: torch.zeros(len(images), vlm.width))
    teacher = ZeroShotTeacher(vlm, ["", "tench"], ["{}"], zeta=0.01)
    assert teacher.texts.norm(dim=-1).tolist() == pytest.approx([0, 1])
    images = torch.zeros(2, 3, teacher.size, teacher.size, dtype=torch.uint8)
    check(teacher(images), teacher.directions())
    assert teacher(images).eq(0).all()


class NoPrompts(nn.Module):
    """Stands for a prompt learner."""

    def forward(self) -> tuple[()]:
        return ()


def test_learned_texts(vlm, monkeypatch):
    texts, images = features(), features()
    head = PromptedClassifier(vlm, NoPrompts())
    monkeypatch.setattr(head, "_encode", lambda: texts.repeat(1, vlm.width // WIDTH))
    logits = head(images.repeat(1, vlm.width // WIDTH))
    nn.functional.cross_entropy(logits, LABELS).backward()
    check(logits, texts.grad, images.grad)


def test_images_without_contrast(vlm):
    """Black, through the towers, with merged tokens, which are all alike, or without."""
    images = torch.zeros(2, 3, vlm.image.size, vlm.image.size)
    for tower in (vlm, TokenMergingVLM(vlm, 2)):
        check(tower.encode_image(images))
