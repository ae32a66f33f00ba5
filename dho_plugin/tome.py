"""Token merging (ToMe, arXiv 2210.09461) in the ViT of a CLIP model: fewer tokens from layer to layer at evaluation.

Shapes: N images, T tokens, H attention heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UsageError
from .layers import prompts_of_layer
from .towers import VLM


class Matching(NamedTuple):
    """Which tokens of each image go where; positions among all T tokens.

    Attributes:
        source: (N, r) tokens of set A that are merged away. target: (N, r) the tokens of set B that take them in.
        kept: (N, T - r) the tokens that stay: what does not merge, the rest of A, all of B.
    """

    source: Tensor
    target: Tensor
    kept: Tensor


class TokenMergingVLM(nn.Module):
    """A CLIP model whose ViT merges r tokens in each layer; text is encoded as ever.

    It stands in place of the VLM wherever images are encoded. Nothing is learned and the model is not changed. Class
    token and visual prompts never merge; a layer with fewer than 2 r patch tokens merges half of them.

    Args:
        vlm: the frozen CLIP model. r: tokens to merge in each layer; with 0 the model is called as it is.

    Raises:
        UsageError: negative r, or an image tower that is no plain CLIP ViT.
    """

    def __init__(self, vlm: VLM, r: int) -> None:
        super().__init__()
        if r < 0:
            raise UsageError(f"r = {r} tokens to merge in each layer: expected 0 (none) or more")
        if r:
            _check(vlm)
        self.vlm = vlm
        self.r = r
        self.logit_scale = vlm.logit_scale

    def encode_text_embeddings(
        self, embeddings: Tensor, end: Tensor, deep: Sequence[Tensor] = (), shared: int = 1
    ) -> Tensor:
        """As VLM.encode_text_embeddings."""
        return self.vlm.encode_text_embeddings(embeddings, end, deep, shared)

    def encode_image(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """As VLM.encode_image: normalised images (N, 3, size, size) -> image features (N, width)."""
        if not self.r:
            return self.vlm.encode_image(images, prompts)
        vit = self.vlm.model.visual
        tokens, _ = self.merged_tokens(images, prompts)
        return vit.ln_post(tokens[:, 0]) @ vit.proj

    def merged_tokens(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Tokens after the last layer (N, T, image width), class token first, and their sizes (N, T).

        A token's size is the number of tokens of the first layer that it stands for.
        """
        self.vlm.check_visual_prompts(max((len(block) for block in prompts), default=1))
        vit = self.vlm.model.visual
        x = self.vlm.patch_tokens(images)
        # Prompts stand before the patches and not behind them: attention does not see the order, and what never merges
        # keeps its place.
        first = [block[0].to(x.dtype).expand(x.shape[0], -1, -1) for block in prompts]
        x = vit.ln_pre(torch.cat([x[:, :1], *first, x[:, 1:]], dim=1))
        fixed = 1 + sum(block.shape[1] for block in prompts)
        sizes = torch.ones(x.shape[:2], device=x.device, dtype=_at_least_float32(x))
        for layer, block in enumerate(vit.transformer.resblocks):
            x = prompts_of_layer(x, [own[1:] for own in prompts], layer, at=1)
            attended, keys = proportional_attention(block.attn, block.ln_1(x), sizes)
            x = x + block.ls_1(attended)
            x, sizes = merge(x, sizes, match(keys, self.r, fixed=fixed))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return x, sizes


def proportional_attention(attention: nn.MultiheadAttention, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Self-attention in which a token counts as often as its size: softmax(Q K^T / sqrt(D) + log size) V.

    Args:
        attention: the layer's weights. x: (N, T, H * D). sizes: (N, T).

    Returns:
        (N, T, H * D) the output, and (N, T, D) the keys averaged over the heads.
    """
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    split = projected.unflatten(-1, (3, attention.num_heads, -1))
    queries, keys, values = (part.transpose(1, 2) for part in split.unbind(dim=2))
    weights = sizes.log().to(queries.dtype)[:, None, None, :]
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=weights)
    return attention.out_proj(out.transpose(1, 2).flatten(2)), keys.mean(dim=1)


@torch.no_grad()
def match(keys: Tensor, r: int, *, fixed: int) -> Matching:
    """Bipartite soft matching (Section 3 of the ToMe paper).

    The tokens that can merge fall alternately into sets B and A. Each token of A has an edge to the token of B whose
    key has the largest cosine similarity with its own, and the r tokens with the most similar edges are merged.

    Args:
        keys: (N, T, D). r: tokens to merge, at most the whole of A. fixed: how many tokens at the start never merge.
    """
    unit = F.normalize(keys.to(_at_least_float32(keys)), dim=-1)
    similarity, nearest = (unit[:, fixed + 1 :: 2] @ unit[:, fixed::2].transpose(1, 2)).max(dim=-1)
    order = similarity.argsort(dim=-1, descending=True)
    merged, unmerged = order.split([min(r, order.shape[1]), max(order.shape[1] - r, 0)], dim=1)
    everywhere = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[0], -1)
    rest_of_a = fixed + 1 + 2 * unmerged.sort(dim=-1).values
    return Matching(
        source=fixed + 1 + 2 * merged,
        target=fixed + 2 * nearest.gather(1, merged),
        kept=torch.cat([everywhere[:, :fixed], rest_of_a, everywhere[:, fixed::2]], dim=1),
    )


def merge(x: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Replace each token that takes others in by the mean of all of them, weighted by size.

    Args:
        x: (N, T, width). sizes: (N, T).

    Returns:
        (N, T - r, width) and (N, T - r), in the order of `matching.kept`.
    """
    source, target, kept = matching
    totals = sizes.scatter_add(1, target, sizes.gather(1, source))
    # Each token is weighted by its share before the sum: a sum of hundreds of tokens may be too large for float16.
    share = (sizes / totals).to(x.dtype)
    lost = (sizes.gather(1, source) / totals.gather(1, target)).to(x.dtype)
    moved = _rows(x, source) * lost[..., None]
    x = (x * share[..., None]).scatter_add(1, _spread(target, x), moved)
    return _rows(x, kept), totals.gather(1, kept)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _rows(x: Tensor, positions: Tensor) -> Tensor:
    return x.gather(1, _spread(positions, x))


def _spread(positions: Tensor, x: Tensor) -> Tensor:
    return positions[..., None].expand(-1, -1, x.shape[-1])


def _check(vlm: VLM) -> None:
    """Raise UsageError unless the image tower is one that merged_tokens can take apart."""
    vit: Any = vlm.model.visual
    try:
        vlm.check_visual_prompts(1)
        plain = all(isinstance(block.attn, nn.MultiheadAttention) for block in vit.transformer.resblocks)
    except UsageError:
        plain = False
    if not plain:
        raise UsageError(
            f"token merging needs a CLIP with a plain ViT, and {vlm.name} has a {type(vit).__name__}: "
            "choose for example 'ViT-B/16', or r = 0"
        )
