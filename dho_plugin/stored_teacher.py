"""A zero-shot teacher that reads what it says of views instead of looking at them (stored_features.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from .stored_features import StoredFeatures
from .teachers import Teacher, ZeroShotTeacher


class StoredTeacher(Teacher):
    """A teacher that is shown numbers of views (N,), as batches hold them, instead of views.

    Args:
        teacher: whose features are kept. stored: of its model.
    """

    def __init__(self, teacher: ZeroShotTeacher, stored: StoredFeatures) -> None:
        super().__init__()
        self.teacher, self.stored = teacher, stored
        self.size, self.width, self.prompts_sha256 = teacher.size, teacher.width, teacher.prompts_sha256

    def features(self, images: Tensor) -> Tensor:
        return self.stored(images)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.teacher.classify(self.features(images))

    def directions(self) -> Tensor:
        return self.teacher.directions()
