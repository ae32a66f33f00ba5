"""The two classification heads, which read the same features (Section 3 of the paper, Eq. 10).

Shapes: N images, C classes, d feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UsageError, did_you_mean

HEAD_KINDS = ("linear", "cosine", "official", "nonlinear")


class DualHeadLogits(NamedTuple):
    """Logits of both heads for the same N images.

    Attributes:
        ce: (N, C) logits of the head trained on labels.
        kd: (N, C) logits of the head trained on the teacher's probabilities.
    """

    ce: Tensor
    kd: Tensor

    def restrict(self, classes: Tensor | None) -> DualHeadLogits:
        """Keep the given class columns of both heads; to be done before any softmax.

        A test set with 200 of 1000 classes (ImageNet-A, -R) must not lose probability to the other 800.

        Args:
            classes: (K,) integer indices into the C classes, in the order wanted; None keeps all.
        """
        if classes is None:
            return self
        return DualHeadLogits(self.ce[:, classes], self.kd[:, classes])


class CosineHead(nn.Module):
    """The aligned KD head, Eq. 10: h(z) = (1/zeta) [cos(z, w_1), ..., cos(z, w_C)], without bias.

    It has the form of CLIP's own classifier, so that its logits live on the teacher's scale from the first step.

    Args:
        in_features: feature width d.
        num_classes: C.
        scale: 1/zeta, the logit scale (CLIP: 100).
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.scale = scale
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, d) to logits (N, C); a zero feature gives zero logits, not NaN."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class OfficialHead(nn.Linear):
    """The KD head of the authors' public scripts: h(z) = (1/zeta) (W z/|z| + b).

    It differs from Eq. 10 in that only the feature is normalised and that there is a bias.
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float) -> None:
        super().__init__(in_features, num_classes)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, d) to logits (N, C)."""
        return self.scale * super().forward(F.normalize(features, dim=-1))


class NonLinearHead(nn.Sequential):
    """Linear, layer norm, GELU, dropout, linear (Section E.2), with a hidden layer as wide as the features.

    The paper gives neither the width nor the dropout; 0.1 is ours.
    """

    def __init__(self, in_features: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Linear(in_features, in_features),
            nn.LayerNorm(in_features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(in_features, num_classes),
        )


def effective_rows(head: nn.Module) -> Tensor | None:
    """W (C, d) of a linear head, h(z) = W z + b; of "cosine" and "official", which read z/|z|, with their scale in it.

    So W is 1/zeta times the unit rows in Eq. 10. None for a head that has no rows.
    """
    if isinstance(head, CosineHead):
        return head.scale * F.normalize(head.weight, dim=-1)
    if isinstance(head, OfficialHead):
        return head.scale * head.weight
    return head.weight if isinstance(head, nn.Linear) else None


def build_head(
    kind: str,
    in_features: int,
    num_classes: int,
    *,
    class_embeddings: Tensor | None = None,
    scale: float = 100.0,
) -> nn.Module:
    """Build a head and initialise it.

    Args:
        kind: "linear" (h(z) = W z + b), "cosine" (Eq. 10), "official" (see OfficialHead) or "nonlinear"
            (NonLinearHead).
        in_features: feature width d.
        num_classes: C.
        class_embeddings: (C, d) text features for language-aware initialisation (W <- text features, b <- 0);
            None leaves torch's Kaiming initialisation.
        scale: 1/zeta for "cosine" and "official"; the linear head has none.

    Raises:
        UsageError: unknown kind, or embeddings of another shape.
    """
    head: CosineHead | nn.Linear
    if kind == "linear":
        head = nn.Linear(in_features, num_classes)
    elif kind == "cosine":
        head = CosineHead(in_features, num_classes, scale=scale)
    elif kind == "nonlinear" and class_embeddings is None:
        return NonLinearHead(in_features, num_classes)
    elif kind == "nonlinear":
        raise UsageError("a nonlinear head cannot start from text features, its rows read a hidden layer: INIT kaiming")
    elif kind == "official":
        head = OfficialHead(in_features, num_classes, scale=scale)
    else:
        raise UsageError(f"unknown head {kind!r}: expected one of {HEAD_KINDS}.{did_you_mean(kind, HEAD_KINDS)}")
    if class_embeddings is None:
        return head
    if tuple(class_embeddings.shape) != (num_classes, in_features):
        raise UsageError(
            f"class_embeddings must have shape ({num_classes}, {in_features}) = (classes, feature width), got "
            f"{tuple(class_embeddings.shape)}; take the text tower whose width is the student's feature width"
        )
    with torch.no_grad():
        head.weight.copy_(class_embeddings)
        if isinstance(head, nn.Linear):
            head.bias.zero_()
    return head
