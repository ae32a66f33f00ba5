"""Running a tower's layers, with prompts of their own in the deeper ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def run_blocks(transformer: Any, x: Tensor, deep: Sequence[Tensor], *, at: int, mask: Tensor | None = None) -> Tensor:
    """Run (N, L, width) through all layers; layer l > 0 replaces the tokens of a block by the block's row l - 1.

    Args:
        deep: blocks (depth - 1, n, width) whose tokens stand one after the other from position `at` on.
    """
    for layer, block in enumerate(transformer.resblocks):
        x = block(prompts_of_layer(x, deep, layer, at), attn_mask=mask)
    return x


def prompts_of_layer(x: Tensor, deep: Sequence[Tensor], layer: int, at: int) -> Tensor:
    """Put row layer - 1 of each block (depth - 1, n, width) in its place in x (N, L, width), from `at` on."""
    for rows in deep:
        n = rows.shape[1]
        if 0 < layer <= len(rows):
            own = rows[layer - 1].to(x.dtype).expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :at], own, x[:, at + n :]], dim=1)
        at += n
    return x
