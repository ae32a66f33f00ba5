"""Tip-Adapter (arXiv 2111.03930): a zero-shot classifier and a cache of labelled shots, whose keys may be learned.

Shapes: N images, C classes, n cached shots, d feature width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHAS = tuple(round(0.25 * i, 2) for i in range(41))
BETAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.0, 9.0, 12.0, 16.0)


class TipAdapterHead(nn.Module):
    """logits(f) = scale * f W^T + alpha * exp(-beta (1 - f keys^T)) values, of unit-length features f.

    Args:
        texts: (C, d) unit-length text features W. shots: n. scale: 1/zeta. alpha: weight of the cache.
        beta: sharpness of its similarity.

    Attributes:
        keys: (n, d), learned by Tip-Adapter-F. labels: (n,) classes of the shots; `values` are their one-hot rows.
    """

    texts: Tensor
    labels: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, texts: Tensor, shots: int, *, scale: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("texts", texts, persistent=False)
        self.keys = nn.Parameter(torch.zeros(shots, texts.shape[1]))
        self.register_buffer("labels", torch.zeros(shots, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))

    @property
    def weight(self) -> Tensor:
        """Unit-length directions of the classes (C, d)."""
        return self.texts

    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Start the keys from the shots' unit-length features (n, d); labels (n,)."""
        with torch.no_grad():
            self.keys.copy_(features)
        self.labels.copy_(labels)

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, d) -> text logits (N, C), similarities to the keys (N, n), values (n, C)."""
        unit = F.normalize(features, dim=-1)
        values = F.one_hot(self.labels, len(self.texts)).to(unit.dtype)
        return self.scale * unit @ self.texts.t(), unit @ self.keys.t(), values

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, d) -> logits (N, C)."""
        logits, similarity, values = self.parts(features)
        return logits + self.alpha * torch.exp(-self.beta * (1 - similarity)) @ values

    @torch.no_grad()
    def search(self, features: Tensor, labels: Tensor) -> float:
        """Set alpha and beta to the best of the grid ALPHAS x BETAS on validation images; of equal points the first,
        which trusts the cache least.

        Args:
            features: (M, d). labels: (M,).

        Returns:
            Accuracy in percent there.
        """
        texts, similarity, values = self.parts(features)
        best = -1.0
        for beta in BETAS:
            cache = torch.exp(-beta * (1 - similarity)) @ values
            for alpha in ALPHAS:
                accuracy = 100.0 * (texts + alpha * cache).argmax(dim=-1).eq(labels).double().mean().item()
                if accuracy > best:
                    best = accuracy
                    self.alpha.fill_(alpha)
                    self.beta.fill_(beta)
        return best

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        keys = state.get(f"{prefix}keys")
        if keys is not None and keys.shape[0] != self.keys.shape[0]:  # trained on another number of shots
            self.keys = nn.Parameter(self.keys.new_zeros(keys.shape), requires_grad=self.keys.requires_grad)
            self.labels = self.labels.new_zeros(len(keys))
        super()._load_from_state_dict(state, prefix, *rest)
