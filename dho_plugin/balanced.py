"""The balanced draw by which the authors of DHO label 1 % or 10 % of ImageNet (their public scripts, not the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SEED = 13


def class_quotas(sizes: Sequence[int], percent: float) -> np.ndarray:
    """How many images of each class are labelled, int64 (C,).

    Every class is owed the same share, one image below the mean at first; a running sum rounds the shares to whole
    images. While they are fewer than `percent` of all images, every share grows by 1/C. No class gets fewer than one
    image or more than it has. The running sum rounds up wherever its fraction is above a half, so that the total may
    exceed the percentage: 13,000 instead of 12,812 of ImageNet's 1,281,167 images for 1 %, 128,286 for 10 %.

    Args:
        sizes: images of each class, in label order.
    """
    limit = np.asarray(sizes, dtype=np.float64)
    classes, fraction = len(limit), percent / 100.0
    share = np.clip(np.full(classes, limit.sum() / classes * fraction - 1.0), 1.0, None)
    while True:
        share = np.minimum(share, limit)
        quotas = np.minimum(_rounded(share), limit)
        if quotas.sum() >= limit.sum() * fraction:
            return quotas.astype(np.int64)
        share = share + 1 / classes


def _rounded(shares: np.ndarray) -> np.ndarray:
    total = np.cumsum(shares)
    return np.where(total - np.floor(total) > 0.5, np.ceil(shares), np.floor(shares))


def balanced_draw(sizes: Sequence[int], percent: float) -> list[list[int]]:
    """The labelled images of each class, as positions in the sorted listing of its files.

    One NumPy generator of seed 13 shuffles the classes in label order; of each the first ones are taken.

    Args:
        sizes: images of each class, in label order; at least 1.
    """
    generator = np.random.RandomState(SEED)  # the legacy generator: its numbers are the same in every NumPy
    quotas = class_quotas(sizes, percent)
    return [generator.permutation(size)[:quota].tolist() for size, quota in zip(sizes, quotas, strict=True)]
