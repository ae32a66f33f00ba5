"""What the text keeps for the gradient is known before training; where it is too much, the classes run in parts."""

from __future__ import annotations

import pytest
import runs
import tiny
import torch

from dho_plugin import text_memory
from dho_plugin.classes import ClassList
from dho_plugin.errors import UsageError
from dho_plugin.prompts import PromptedClassifier, PromptLearner
from dho_plugin.shared_prefix import keeping
from dho_plugin.text_memory import GIB, kept_bytes, plan
from dho_plugin.vlm import load_vlm

NAMES = tuple(f"{'very ' * (n % 5)}old {n} stone" for n in range(23))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    path = tiny.save_self_describing(tmp_path_factory.mktemp("w") / "a.safetensors", tiny.tiny_clip())
    return load_vlm(str(path)).double()


@pytest.fixture
def classifier(vlm) -> PromptedClassifier:
    return PromptedClassifier(vlm, PromptLearner(vlm, ClassList(NAMES, NAMES), n_ctx=3, depth=2).double())


def text_bytes(classifier: PromptedClassifier) -> int:
    frozen = [*classifier.parameters(), *classifier.buffers()]
    with keeping(classifier.keeps):
        return kept_bytes(lambda: classifier.vlm.encode_text_embeddings(*classifier.prompt_learner()), frozen)


def test_what_a_call_keeps_is_counted_once_and_without_parameters():
    x = torch.randn(10, 4, requires_grad=True)
    weight = torch.randn(4, 4)
    assert kept_bytes(lambda: x @ weight) == weight.nbytes
    assert kept_bytes(lambda: x @ weight, [weight]) == 0
    assert kept_bytes(lambda: x.exp() * x) == 2 * x.nbytes  # the exponential, for itself and for the product, and x


@pytest.mark.parametrize("chunk", [1, 7, 22, 23, 24])
def test_in_parts_or_kept_features_and_gradients_are_the_same(classifier, chunk):
    weights = torch.randn(len(NAMES), 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, learned = [], list(classifier.prompt_learner.parameters())
    for size in (0, chunk):
        classifier.chunk, classifier.keeps = size, not size
        features = classifier.text_features()
        found.append((features, *torch.autograd.grad((features * weights).sum(), learned)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_parts_keep_less(classifier):
    whole = kept_bytes(classifier.text_features, [*classifier.parameters(), *classifier.buffers()])
    classifier.chunk = 4
    assert kept_bytes(classifier.text_features, [*classifier.parameters(), *classifier.buffers()]) < whole / 4


def test_where_it_is_little_attention_keeps_what_it_could_compute_again(classifier, monkeypatch):
    little = text_bytes(classifier)
    plan(classifier, -1, CPU)
    assert classifier.keeps and text_bytes(classifier) > 1.2 * little
    monkeypatch.setattr(text_memory, "LITTLE", 1.1 * little)
    plan(classifier, -1, CPU)
    assert not classifier.keeps and not classifier.chunk


@pytest.mark.parametrize(("free", "chunk"), [(4, 0), (1.0, 11), (0.0001, 1)])
def test_parts_are_chosen_by_what_is_free(classifier, monkeypatch, free, chunk):
    """free: in units of what the text keeps; half of it may be taken."""
    kept = text_bytes(classifier)
    monkeypatch.setattr(text_memory, "free_bytes", lambda device: int(free * kept))
    said = plan(classifier, -1, CPU)
    assert classifier.chunk == pytest.approx(chunk, abs=1)
    assert ("at a time" in said) == bool(chunk)
    tokens = sum(classifier.vlm.num_tokens(name) + 2 for name in NAMES)
    assert said.startswith(f"Text: 4 shared and {tokens} own tokens of 23 prompts, ")


def test_the_estimate_is_what_is_kept(classifier, monkeypatch):
    monkeypatch.setattr(text_memory, "GIB", 1)
    said = plan(classifier, 0, CPU)
    estimate = float(said.split("prompts, ")[1].split()[0])
    assert estimate == pytest.approx(text_bytes(classifier), rel=0.1)


def test_a_number_of_classes_is_taken_as_given(classifier):
    plan(classifier, 5, CPU)
    assert classifier.chunk == 5
    plan(classifier, 5000, CPU)
    assert classifier.chunk == 0
    with pytest.raises(UsageError, match="TEXT_CHUNK -2"):
        plan(classifier, -2, CPU)


@pytest.mark.parametrize("name", ["CoOpDHO", "PromptSRC", "CoOpCasPL"])
def test_a_run_in_parts_learns_the_same(workspace, tmp_path, capsys, name):
    states = []
    for chunk in (0, 4):
        trainer = runs.make(workspace, name, tmp_path / str(chunk), "", f"MODEL.TEXT_CHUNK {chunk}")
        trainer.train()
        states.append([p.detach().clone() for part in trainer.learned().values() for p in part.parameters()])
    assert "4 classes at a time" in capsys.readouterr().out
    for whole, parts in zip(*states, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)  # float32, after six steps


def test_free_memory_of_this_machine_is_plausible():
    assert GIB / 100 < text_memory.free_bytes(CPU) < 10_000 * GIB
