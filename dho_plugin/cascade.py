"""Prompts in cascade (CasPL, arXiv 2409.17805): frozen boosting prompts, and behind them the prompts of another method.

To that other method the boosting prompts are part of the frozen model: it is handed a BoostedVLM in place of the VLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .classes import ClassList
from .errors import UsageError
from .prompts import PromptLearner, VisualPrompts
from .shared_prefix import remembered
from .towers import VLM

TEXT_ORDERS = ("boosting_first", "adapting_first")


class BoostingPrompts(nn.Module):
    """Independent deep prompts of both towers ("IVLP"), started as PromptSRC's are.

    They belong to no class: what one list of classes taught serves any other.

    Args:
        vlm: the student's CLIP. n_text, n_visual: tokens in a layer. ctx_init: words to start the text prompts from.
        depth_text, depth_visual: layers with prompts of their own. seed: of the random start.

    Raises:
        UsageError: the image tower is no ViT, or has fewer layers.
    """

    def __init__(
        self, vlm: VLM, *, n_text: int, n_visual: int, ctx_init: str, depth_text: int, depth_visual: int, seed: int = 0
    ) -> None:
        super().__init__()
        nameless = ClassList(("",), ("",))
        start = PromptLearner.deep_from_words(
            vlm, nameless, n_ctx=n_text, ctx_init=ctx_init, depth=depth_text, seed=seed
        )
        self.ctx = start.ctx
        self.deep = start.deep
        self.visual = VisualPrompts(vlm, n=n_visual, depth=depth_visual, seed=seed)

    @classmethod
    def like(cls, vlm: VLM, state: Mapping[str, Tensor]) -> BoostingPrompts:
        """Prompts of the shapes, and with the values, of a state dict.

        Raises:
            UsageError: no boosting prompts, or those of another model.
        """
        wanted = {"ctx", "visual.prompts"}
        if not wanted <= set(state) <= wanted | {"deep"}:
            raise UsageError(f"expected boosting prompts {sorted(wanted)}, got {sorted(state)[:5]}")
        deep, visual = state.get("deep", ()), state["visual.prompts"]
        sizes = {"n_text": len(state["ctx"]), "n_visual": visual.shape[1]}
        depths = {"depth_text": 1 + len(deep), "depth_visual": len(visual)}
        prompts = cls(vlm, **sizes, **depths, ctx_init="")
        try:
            prompts.load_state_dict(state)
        except RuntimeError as error:
            raise UsageError(f"these boosting prompts were learned in another model than {vlm.name}: {error}") from None
        return prompts

    def text_block(self) -> Tensor:
        """The deeper layers' text prompts (depth - 1, n, text width)."""
        return self.ctx.new_empty(0, *self.ctx.shape) if self.deep is None else self.deep


class BoostedVLM(nn.Module):
    """A CLIP model whose towers read boosting prompts beside whatever prompts they are given.

    Args:
        vlm: the frozen CLIP model. boosting: the prompts. text_order: where the boosting tokens stand in a text prompt:
            "boosting_first" behind the start token, "adapting_first" between a given context and the class name.
    """

    def __init__(self, vlm: VLM, boosting: BoostingPrompts, *, text_order: str = "boosting_first") -> None:
        super().__init__()
        self.vlm = vlm
        self.boosting = boosting
        self.text_order = text_order
        self.logit_scale = vlm.logit_scale

    def encode_image(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """As VLM.encode_image; the given blocks stand behind the boosting tokens."""
        return self.vlm.encode_image(images, [self.boosting.visual(), *prompts])

    def encode_text_embeddings(
        self, embeddings: Tensor, end: Tensor, deep: Sequence[Tensor] = (), shared: int = 1
    ) -> Tensor:
        """As VLM.encode_text_embeddings, for prompts that leave room for the boosting tokens.

        Raises:
            UsageError: a prompt that becomes too long; "adapting_first" for a context that is not in front of the name.
        """
        own = self.boosting.ctx
        self.check_order(embeddings, end, deep)
        at, blocks = 1, [self.boosting.text_block(), *deep]
        if self.text_order == "adapting_first":
            at, blocks = 1 + sum(block.shape[1] for block in deep), [*blocks[1:], blocks[0]]
        tokens = own.to(embeddings.dtype).expand(len(embeddings), -1, -1)
        boosted = torch.cat([embeddings[:, :at], tokens, embeddings[:, at:]], dim=1)
        alike = shared + len(own) if at <= shared else shared
        later = remembered(end, ("later", len(own)), lambda: end + len(own))
        return self.vlm.encode_text_embeddings(boosted, later, blocks, alike)

    def check_order(self, embeddings: Tensor, end: Tensor, deep: Sequence[Tensor]) -> None:
        """Raise UsageError for prompts that the boosting tokens do not fit into; see encode_text_embeddings."""
        own = self.boosting.ctx
        if embeddings.shape[1] + len(own) > self.vlm.context_length:
            raise UsageError(
                f"prompt of {embeddings.shape[1]} tokens and {len(own)} boosting tokens, {self.vlm.name} reads at most "
                f"{self.vlm.context_length}: use fewer context tokens (N_CTX)"
            )
        if self.text_order == "adapting_first" and not deep:
            raise UsageError("TEXT_ORDER adapting_first needs a context in front of the class name")
