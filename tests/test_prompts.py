from __future__ import annotations

import pytest
import tiny
import torch

from dho_plugin.classes import ClassList
from dho_plugin.errors import UsageError
from dho_plugin.prompts import PromptedClassifier, PromptLearner
from dho_plugin.vlm import load_vlm

CLASSES = ClassList(("a", "b", "c"), ("tench", "tank_suit", "maillot"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return load_vlm(str(tiny.save_self_describing(tmp_path_factory.mktemp("w") / "a.safetensors", tiny.tiny_clip())))


def slow_prompt(vlm, learner: PromptLearner, row: int, position: str) -> torch.Tensor:
    """One class's prompt put together by hand: full context length, then padding."""
    name = CLASSES.names[row].replace("_", " ")
    ids = vlm.tokenize([f"{name}."])[0]
    vectors = vlm.embed_tokens(ids[None])[0]
    n = vlm.num_tokens(name)
    start, name_vectors, rest = vectors[:1], vectors[1 : 1 + n], vectors[1 + n :]
    context = learner.ctx if learner.ctx.dim() == 2 else learner.ctx[row]
    half = len(context) // 2
    parts = {
        "end": [start, context, name_vectors, rest],
        "middle": [start, context[:half], name_vectors, context[half:], rest],
        "front": [start, name_vectors, context, rest],
    }[position]
    return torch.cat(parts)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("n_ctx", [4, 5])
def test_prompts_equal_those_put_together_by_hand(vlm, position, class_specific, n_ctx):
    learner = PromptLearner(vlm, CLASSES, n_ctx=n_ctx, class_specific=class_specific, position=position)
    prompts, end, _, shared = learner()
    assert learner.ctx.shape == ((3, n_ctx, 64) if class_specific else (n_ctx, 64))
    for row in range(3):
        slow = slow_prompt(vlm, learner, row, position)
        torch.testing.assert_close(prompts[row, : end[row] + 1], slow[: end[row] + 1])
        full = vlm.encode_text_embeddings(slow[None, :77], end[row : row + 1])[0]
        torch.testing.assert_close(
            vlm.encode_text_embeddings(prompts, end, shared=shared)[row], full, rtol=1e-4, atol=1e-5
        )


def test_context_started_from_words_is_the_hand_written_prompt(vlm):
    learner = PromptLearner(vlm, CLASSES, n_ctx=16, ctx_init="a_photo_of_a")
    assert learner.n_ctx == 4
    classifier = PromptedClassifier(vlm, learner)
    expected = vlm.class_embeddings(CLASSES.names, ["a photo of a {}."])
    torch.testing.assert_close(classifier.text_features(), expected)


def test_class_specific_context_started_from_words_is_a_copy_for_each_class(vlm):
    learner = PromptLearner(vlm, CLASSES, ctx_init="a photo of a", class_specific=True)
    assert learner.ctx.shape == (3, 4, 64)
    assert torch.equal(learner.ctx[0], learner.ctx[2])


def test_random_context_depends_on_its_seed_alone(vlm):
    torch.manual_seed(1)
    first = PromptLearner(vlm, CLASSES, seed=3).ctx
    torch.manual_seed(2)
    assert torch.equal(PromptLearner(vlm, CLASSES, seed=3).ctx, first)
    assert not torch.equal(PromptLearner(vlm, CLASSES, seed=4).ctx, first)
    assert float(first.detach().std()) == pytest.approx(0.02, rel=0.15)


def test_only_the_context_is_learned_and_saved(vlm):
    learner = PromptLearner(vlm, CLASSES)
    assert [name for name, _ in learner.named_parameters()] == ["ctx"]
    assert set(learner.state_dict()) == {"ctx", "_extra_state"}


def test_logits_are_clips(vlm):
    classifier = PromptedClassifier(vlm, PromptLearner(vlm, CLASSES, ctx_init="a photo of a"))
    features = torch.randn(5, vlm.width)
    texts = vlm.class_embeddings(CLASSES.names, ["a photo of a {}."])
    expected = torch.stack([vlm.logit_scale * (texts @ (z / z.norm())) for z in features])
    torch.testing.assert_close(classifier(features), expected, rtol=1e-4, atol=1e-3)


def test_evaluation_encodes_the_text_once_and_training_forgets_it(vlm, monkeypatch):
    classifier = PromptedClassifier(vlm, PromptLearner(vlm, CLASSES))
    calls = []
    original = type(vlm).encode_text_embeddings

    def counting(self, *args):
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(type(vlm), "encode_text_embeddings", counting)
    classifier.eval()
    with torch.no_grad():
        first = classifier(torch.ones(1, vlm.width))
        classifier(torch.ones(1, vlm.width))
    assert len(calls) == 1
    classifier.train()
    with torch.no_grad():
        classifier.prompt_learner.ctx.mul_(30)
    classifier.eval()
    with torch.no_grad():
        assert not torch.allclose(classifier(torch.ones(1, vlm.width)), first)
    assert len(calls) == 2


def test_errors(vlm):
    with pytest.raises(UsageError, match="Did you mean 'front'"):
        PromptLearner(vlm, CLASSES, position="fron")
    with pytest.raises(UsageError, match="77"):
        PromptLearner(vlm, CLASSES, n_ctx=76)
