"""Deep text and visual prompts, PromptSRC's loss terms and its average, against slow references."""

from __future__ import annotations

import math

import pytest
import reference
import runs
import tiny
import torch
from dho_plugin.trainers.promptsrc import self_consistency

from dho_plugin.averaging import WeightedAverage, gaussian_weights
from dho_plugin.classes import ClassList
from dho_plugin.errors import UsageError
from dho_plugin.prompts import PromptLearner, VisualPrompts
from dho_plugin.vlm import load_vlm

LAYERS = 4
VIT = {**tiny.VIT, "layers": LAYERS, "head_width": 32}
CLASSES = ClassList(("a", "b"), ("tench", "tank suit"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """Four image layers of two heads; float64, so that the reference must agree to many digits."""
    path = tiny.save_self_describing(tmp_path_factory.mktemp("w") / "a.safetensors", tiny.tiny_clip(VIT), VIT)
    return load_vlm(str(path)).double()


def state(vlm) -> dict[str, torch.Tensor]:
    return dict(vlm.model.state_dict())


@pytest.mark.parametrize("depth", [1, 2, 3, LAYERS])
def test_prompted_image_features_at_each_depth(vlm, depth):
    generator = torch.Generator().manual_seed(depth)
    prompts = torch.randn(depth, 2, vlm.image_token_width, generator=generator, dtype=torch.float64).requires_grad_()
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    ours = vlm.encode_image(images, [prompts])
    slow = torch.stack([reference.prompted_image(image, [prompts], state(vlm), LAYERS, heads=2) for image in images])
    torch.testing.assert_close(ours, slow, rtol=1e-8, atol=1e-8)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    mine, other = (torch.autograd.grad((out * weights).sum(), prompts)[0] for out in (ours, slow))
    torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8)


def test_no_tokens_are_no_change(vlm):
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    none = torch.zeros(3, 0, vlm.image_token_width, dtype=torch.float64)
    torch.testing.assert_close(vlm.encode_image(images, [none]), vlm.encode_image(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2])
def test_prompted_text_features_at_each_depth(vlm, depth):
    learner = PromptLearner(vlm, CLASSES, n_ctx=3, depth=depth).double()
    prompts, end, (deep,), shared = learner()
    ours = vlm.encode_text_embeddings(prompts, end, [deep], shared)
    slow = torch.stack(
        [reference.prompted_text(prompts[row], int(end[row]), [deep], state(vlm), 2, heads=1) for row in range(2)]
    )
    torch.testing.assert_close(ours, slow, rtol=1e-7, atol=1e-8)
    learned = [p for p in learner.parameters()]
    assert len(learned) == depth
    mine, other = (torch.autograd.grad(out.pow(2).sum(), learned, retain_graph=True) for out in (ours, slow))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_only_the_first_words_of_the_start_are_learned_when_asked(vlm):
    learner = PromptLearner(vlm, CLASSES, ctx_init="a photo of a", learn_first=2)
    assert learner.ctx.shape[0] == 2
    prompts, end, *_ = learner()
    plain = PromptLearner(vlm, CLASSES, ctx_init="a photo of a")()
    torch.testing.assert_close(prompts, plain[0])
    assert torch.equal(end, plain[1])


@pytest.mark.parametrize("options", [{"class_specific": True}, {"position": "front"}])
def test_deep_prompts_need_a_generic_context_at_the_end(vlm, options):
    with pytest.raises(UsageError, match="generic context"):
        PromptLearner(vlm, CLASSES, n_ctx=3, depth=2, **options)


def test_towers_that_cannot_take_prompts_say_so(vlm, workspace, tmp_path):
    with pytest.raises(UsageError, match="4 layers"):
        VisualPrompts(vlm, n=2, depth=5)
    for name in ("VPTDHO", "PromptSRC"):
        with pytest.raises(UsageError, match=r"plain ViT.*ModifiedResNet"):
            runs.make(workspace, name, tmp_path, f"--backbone {workspace}/teacher.pt")


def test_self_consistency_terms_against_loops():
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=-1)

    texts, frozen_texts, images, frozen_images = unit(3), unit(3), unit(4), unit(4)
    logits, frozen_logits = 9 * images @ texts.T, 9 * frozen_images @ frozen_texts.T
    terms = self_consistency(
        texts, frozen_texts, images, frozen_images, logits, frozen_logits, text_weight=25, image_weight=10
    )

    def mean_absolute(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum(abs(float(x - y)) for x, y in zip(a.flatten(), b.flatten(), strict=True)) / a.numel()

    divergence = 0.0
    for own, frozen in zip(logits, frozen_logits, strict=True):
        q, p = reference.softmax(own), reference.softmax(frozen)
        divergence += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    assert float(terms["loss_scl_text"]) == pytest.approx(25 * mean_absolute(texts, frozen_texts))
    assert float(terms["loss_scl_image"]) == pytest.approx(10 * mean_absolute(images, frozen_images))
    assert float(terms["loss_scl_logits"]) == pytest.approx(divergence / 12)


def test_gaussian_weights_are_a_normalised_gaussian_of_the_epoch_number():
    weights = gaussian_weights(20, mean=15, std=1)
    density = [math.exp(-((epoch - 15) ** 2) / 2) for epoch in range(1, 21)]
    assert weights.tolist() == pytest.approx([d / sum(density) for d in density])
    assert int(weights.argmax()) == 14


def test_average_is_the_weighted_sum_of_every_epochs_parameters(workspace, tmp_path):
    options = "OPTIM.MAX_EPOCH 3 TRAINER.PROMPTSRC.GPA_MEAN 2 TRAINER.PROMPTSRC.GPA_STD 1"
    trainer = runs.make(workspace, "PromptSRCDHO", tmp_path, "", options)
    weights, snapshots = gaussian_weights(3, mean=2, std=1), []
    add = trainer.average.add

    def snapshot(epoch: int) -> None:
        snapshots.append([p.detach().clone().double() for n, m in trainer._models.items() for p in m.parameters()])
        add(epoch)

    trainer.average.add = snapshot
    trainer.train()
    final = [p for module in trainer._models.values() for p in module.parameters()]
    assert len(final) == 4 and len(snapshots) == 3  # text, deep text, visual prompts, KD head
    for i, parameter in enumerate(final):
        expected = sum(float(w) * shot[i] for w, shot in zip(weights, snapshots, strict=True))
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(parameter.double(), snapshots[-1][i], rtol=1e-5, atol=1e-7)


def test_average_saves_its_sum_and_not_its_parts():
    part = torch.nn.Linear(2, 2)
    average = WeightedAverage({"part": part}, torch.tensor([0.25, 0.75]))
    average.add(0)
    again = WeightedAverage({"part": part}, torch.tensor([0.25, 0.75]))
    again.load_state_dict(average.state_dict())
    assert set(average.state_dict()) == {"part__weight", "part__bias"}
    assert torch.equal(again.get_buffer("part__weight"), 0.25 * part.weight)
    assert not list(average.parameters())


@pytest.mark.parametrize("depth", [1, 2])
def test_maples_visual_prompts_are_linear_maps_of_its_text_prompts(vlm, depth):
    from dho_plugin.trainers.maple import CoupledPrompts

    text = PromptLearner(vlm, CLASSES, ctx_init="a photo of a", learn_first=2, depth=depth)
    coupled = CoupledPrompts(vlm, text, seed=0)
    visual = coupled()
    assert visual.shape == (depth, 2, vlm.image_token_width)
    rows = [text.ctx] if depth == 1 else [text.ctx, text.deep[0]]
    for layer, prompts in enumerate(rows):
        weight, bias = coupled.couplings[layer].weight, coupled.couplings[layer].bias
        for token, prompt in enumerate(prompts):
            slow = torch.stack([sum(w * p for w, p in zip(row, prompt, strict=True)) for row in weight]) + bias
            torch.testing.assert_close(visual[layer, token], slow, rtol=1e-4, atol=1e-5)
    # A step on the images alone moves the text prompts: the coupling carries the gradient.
    visual.sum().backward()
    assert all(parameter.grad is not None for parameter in (text.ctx, *([] if text.deep is None else [text.deep])))
    again = CoupledPrompts(vlm, text, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(coupled.parameters(), again.parameters(), strict=True))
