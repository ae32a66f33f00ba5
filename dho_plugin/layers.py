"""Running a tower's layers: with prompts of their own in the deeper ones, and with no more work than is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def run_blocks(transformer: Any, x: Tensor, deep: Sequence[Tensor], *, at: int, mask: Tensor | None = None) -> Tensor:
    """Run (N, L, width) through all layers; layer l > 0 replaces the tokens of a block by the block's row l - 1.

    Args:
        deep: blocks (depth - 1, n, width) whose tokens stand one after the other from position `at` on.
    """
    for layer, block in enumerate(transformer.resblocks):
        x = block(prompts_of_layer(x, deep, layer, at), attn_mask=mask)
    return x


def first_token(transformer: Any, x: Tensor, deep: Sequence[Tensor] = (), *, at: int = 1) -> Tensor:
    """What run_blocks gives the first token, (N, width). The last layer computes nothing for the others."""
    *blocks, last = transformer.resblocks
    for layer, block in enumerate(blocks):
        x = block(prompts_of_layer(x, deep, layer, at))
    x = prompts_of_layer(x, deep, len(blocks), at)
    if not own_layer(last):
        return last(x)[:, 0]
    tokens, x = last.ln_1(x), x[:, :1]
    x = x + last.ls_1(last.attn(tokens[:, :1], tokens, tokens, need_weights=False)[0])
    return (x + last.ls_2(last.mlp(last.ln_2(x))))[:, 0]


def own_layer(block: Any) -> bool:
    """Whether a layer is CLIP's own, which can be taken apart."""
    return type(getattr(block, "attn", None)) is nn.MultiheadAttention and hasattr(block, "ls_2")


def prompts_of_layer(x: Tensor, deep: Sequence[Tensor], layer: int, at: int) -> Tensor:
    """Put row layer - 1 of each block (depth - 1, n, width) in its place in x (N, L, width), from `at` on."""
    for rows in deep:
        n = rows.shape[1]
        if 0 < layer <= len(rows):
            own = rows[layer - 1].to(x.dtype).expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :at], own, x[:, at + n :]], dim=1)
        at += n
    return x


def lighter_quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x); its gradient is one pass over memory and keeps one tensor instead of two."""
    return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = 1.702 * x
        ctx.save_for_backward(scaled)
        return scaled.sigmoid().mul_(x)  # open_clip's bits; silu(scaled) / 1.702 costs bf16 one of its eight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, ctx.saved_tensors[0])
