"""The rows of `python -m dho_plugin benchmark` on learned text prompts: shared tokens once, against all 77 of each.

The peers' way is written out here: every prompt of every class runs through the text tower at its full length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classes import ClassList
from ..layers import run_blocks
from ..prompts import PromptedClassifier, PromptLearner
from ..text_memory import AUTO, GIB, kept_bytes, plan
from ..towers import VLM
from ..vlm import open_clips_activation
from .row import Row


class Memory(NamedTuple):
    """What a step's text keeps for its backward pass, in bytes, at a number of classes."""

    classes: int
    peers: float
    ours: float
    wanted: float


class WholeTowers(nn.Module):
    """Encoders as CoOp and PromptSRC have them: all tokens of all layers, of prompts up to the longest that is read."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm, self.logit_scale = vlm, vlm.logit_scale

    def encode_image(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """As VLM.encode_image."""
        if not prompts:
            return self.vlm.encode_image(images)
        vit, x = self.vlm.model.visual, self.vlm.patch_tokens(images)
        first = [block[0].to(x.dtype).expand(x.shape[0], -1, -1) for block in prompts]
        length, x = x.shape[1], vit.ln_pre(torch.cat([x, *first], dim=1))
        with open_clips_activation():
            x = run_blocks(vit.transformer, x, [block[1:] for block in prompts], at=length)
        return vit.ln_post(x)[:, 0] @ vit.proj

    def encode_text_embeddings(
        self, embeddings: Tensor, end: Tensor, deep: Sequence[Tensor] = (), shared: int = 1
    ) -> Tensor:
        """As VLM.encode_text_embeddings; that some tokens are shared is not used."""
        text = self.vlm._causal_text()
        missing = self.vlm.context_length - embeddings.shape[1]
        x = F.pad(embeddings, (0, 0, 0, missing)).to(self.vlm.dtype) + text.positional_embedding
        with open_clips_activation():
            x = run_blocks(text.transformer, x, deep, at=1, mask=text.attn_mask)
        x = text.ln_final(x[torch.arange(len(x), device=x.device), end])
        return text.text_projection(x) if isinstance(text.text_projection, nn.Module) else x @ text.text_projection


def whole_prompts(vlm: VLM, learner: PromptLearner) -> Tensor:
    """Text features (C, width) the peers' way."""
    return WholeTowers(vlm).encode_text_embeddings(*learner())


def step(encode: Callable[[], Tensor], learner: PromptLearner) -> list[Tensor]:
    """Features of all classes, and the gradients of the learned prompts for a fixed loss of them."""
    features = F.normalize(encode().float(), dim=-1)
    weights = torch.linspace(-1, 1, features.numel(), device=features.device).view_as(features)
    return [features.detach(), *torch.autograd.grad((features * weights).sum(), list(learner.parameters()))]


def rows(vlm: VLM, names: list[str]) -> Iterator[Row]:
    """The cases of the table, at the number of classes of `names`."""
    classes = ClassList(tuple(names), tuple(names))
    cases: list[tuple[str, dict[str, Any], float]] = [
        ("generic context, 16 tokens", {"n_ctx": 16}, 13),
        ("generic context, 4 tokens", {"n_ctx": 4}, 14),
        ("deep prompts, 4 tokens, 9 layers (PromptSRC)", {"n_ctx": 4, "depth": 9}, 12),
        *(
            (f"{what}, {n} tokens", {"n_ctx": n, **options}, wanted)
            for n, wanted in ((16, 2.4), (4, 4))
            for what, options in (
                ("class-specific context", {"class_specific": True}),
                ("context behind the name", {"position": "front"}),
                ("context around the name", {"position": "middle"}),
            )
        ),
    ]
    for name, options, wanted in cases:
        learner = PromptLearner(vlm, classes, **options).to(vlm._mean.device)
        classifier = PromptedClassifier(vlm, learner)
        plan(classifier, AUTO, learner.ctx.device)

        def peers(learner: PromptLearner = learner) -> list[Tensor]:
            return step(lambda: whole_prompts(vlm, learner), learner)

        def ours(learner: PromptLearner = learner, classifier: PromptedClassifier = classifier) -> list[Tensor]:
            return step(classifier.text_features, learner)

        yield Row(f"text forward and backward, {name}, C = {len(names)}", peers, ours, wanted)


def memory(vlm: VLM, names: list[str], few: int) -> Memory:
    """What the text keeps with 16 tokens of generic context; the peers' is linear in C, and taken at `few` classes."""

    def kept(names: list[str], encode: Callable[[VLM, PromptLearner], Tensor]) -> int:
        learner = PromptLearner(vlm, ClassList(tuple(names), tuple(names)), n_ctx=16)
        return kept_bytes(lambda: encode(vlm, learner), [*vlm.parameters(), *vlm.buffers(), *learner.buffers()])

    peers = kept(names[:few], whole_prompts) * len(names) / few
    ours = kept(names, lambda vlm, learner: vlm.encode_text_embeddings(*learner()))
    return Memory(len(names), peers, ours, 2.2 * GIB)
