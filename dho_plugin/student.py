"""The student: one feature extractor, two heads on the same features (Fig. 3 of the paper)."""

from __future__ import annotations

from torch import Tensor, nn

from .heads import DualHeadLogits


class DualHeadStudent(nn.Module):
    """g(x) = z, then h_CE(z) and h_KD(z).

    A base method is a choice of backbone and CE head: a linear probe is a frozen backbone with a linear head, CoOp is
    a frozen backbone with a head whose rows are text features of learned prompts. DHO adds the KD head.

    Args:
        backbone: maps images (N, 3, H, W) to features (N, d).
        ce_head: maps features to (N, C) logits; trained on labels.
        kd_head: maps features to (N, C) logits; trained on the teacher's probabilities.
    """

    def __init__(self, backbone: nn.Module, ce_head: nn.Module, kd_head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.ce_head = ce_head
        self.kd_head = kd_head

    def forward(self, images: Tensor) -> DualHeadLogits:
        """Logits of both heads for a batch; give labelled and unlabelled images in ONE batch (batch norm sees both)."""
        features = self.backbone(images)
        return DualHeadLogits(self.ce_head(features), self.kd_head(features))
