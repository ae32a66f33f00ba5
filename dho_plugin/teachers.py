"""Frozen teachers. One protocol: images in, class logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .heads import build_head
from .towers import VLM


class ZeroShotTeacher(nn.Module):
    """A CLIP model that classifies by the texts of the class names: logits = cos(f_X(x), f_T(t_c)) / zeta (Eq. 1).

    Args:
        vlm: the teacher. names: C class names. templates: prompts with one "{}" for the name.
        zeta: softmax temperature of the teacher, 0.01 for CLIP.
    """

    def __init__(self, vlm: VLM, names: Sequence[str], templates: Sequence[str], *, zeta: float) -> None:
        super().__init__()
        self.vlm = vlm
        texts = vlm.class_embeddings(names, templates)
        self.head = build_head("cosine", vlm.width, len(names), class_embeddings=texts, scale=1 / zeta)
        self.requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, size, size) of the teacher's own size -> image features (N, width), float32."""
        return self.vlm.encode_image(self.vlm.normalize(images)).float()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, size, size) of the teacher's own size -> logits (N, C), float32."""
        features = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.head(features)
