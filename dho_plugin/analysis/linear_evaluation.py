"""Linear evaluation (Table 3): how well a new linear head reads frozen features, if it learns from all labels.

The paper names the protocol (SimCLR's) and no settings. They are fixed here, and nothing is chosen on any images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean, stdev
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from ..calibration import top_k_accuracy
from ..heads import build_head
from ..losses import supervised_loss
from ..tables import summary
from ..tables.command import star
from ..tables.summary import Paper, Record
from .compared import Run

EPOCHS, STEPS, BATCH, RATE, DECAY = 100, 2000, 256, 1e-2, 1e-2
SMALLEST = 1e-6  # a feature that deviates less says nothing
PROTOCOL = (
    "A new linear head on frozen features of centre views, trained on all labels: features standardised by the "
    f"training images' mean and deviation, cross-entropy, AdamW, rate {RATE:g} with cosine decay, weight decay "
    f"{DECAY:g}, {EPOCHS} epochs and at least {STEPS:,} steps of {BATCH} images; nothing is chosen on any images."
)
# Table 3: ImageNet, 16 shots; it does not say which student.
PAPER = Paper(("top-1", "top-5"), {"CEKDFeature": (62.3, 85.0), "CEKD": (66.2, 88.8), "StudentDHO": (67.1, 89.3)})


class Scores(NamedTuple):
    """Accuracies in percent: the image's class is the first, or among the first five (or as many as there are)."""

    top1: float
    top5: float


def linear_evaluation(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, *, seed: int, device: torch.device
) -> Scores:
    """Train a head on some features and labels, and score it on others.

    Args:
        train, test: features (N, d), (M, d) and labels (N,), (M,). classes: C. seed: of the head's start and the order
            of the images.
    """
    (features, labels), (others, wanted) = ((part.to(device) for part in pair) for pair in (train, test))
    features, others = standardise(features, others)
    return score(fit_head(features, labels, classes, seed=seed), others, wanted)


def standardise(train: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, d) and (M, d) minus the mean and over the deviation of the first one's columns."""
    deviation, middle = torch.std_mean(train, dim=0)
    scale = deviation.clamp_min(SMALLEST)
    return (train - middle) / scale, (other - middle) / scale


def fit_head(features: Tensor, labels: Tensor, classes: int, *, seed: int) -> nn.Module:
    """A linear head trained on features (N, d) and labels (N,), on their device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head("linear", features.shape[1], classes).to(features.device)
    order = torch.Generator().manual_seed(seed)
    optimizer = AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    in_an_epoch = math.ceil(len(features) / BATCH)
    epochs = max(EPOCHS, math.ceil(STEPS / in_an_epoch))
    schedule = CosineAnnealingLR(optimizer, epochs * in_an_epoch)
    for _ in tqdm(range(epochs), disable=None, desc=f"linear head, seed {seed}"):
        for rows in torch.randperm(len(features), generator=order).split(BATCH):
            rows = rows.to(features.device)
            optimizer.zero_grad()
            supervised_loss(head(features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return head


@torch.no_grad()
def score(head: nn.Module, features: Tensor, labels: Tensor) -> Scores:
    """Accuracies of a head on features (N, d) with labels (N,)."""
    logits = head(features)
    return Scores(*(100 * top_k_accuracy(logits, labels, min(k, logits.shape[1])) for k in (1, 5)))


def section(scores: Mapping[Run, Mapping[int, Scores]]) -> list[str]:
    """Table 3 in Markdown, paragraph by paragraph, from the scores of each run's heads by their seed."""
    columns = PAPER.columns
    records = [
        Record(run.row, column, run.seed, mean(one[place] for one in of.values()))
        for run, of in scores.items()
        for place, column in enumerate(columns)
    ]
    rows = list(dict.fromkeys(run.row for run in scores))
    table = summary.results_table(records, rows, columns, PAPER)
    heads = len(next(iter(scores.values())))
    spread = max((stdev(one.top1 for one in of.values()) for of in scores.values() if len(of) > 1), default=0.0)
    meaning = "± is the sample deviation over a row's runs. The paper's numbers are ImageNet's, from 16 shots."
    if heads > 1:
        several = f"A run's number is the mean over {heads} heads of different seeds"
        meaning = f"{several}, whose top-1 has a deviation of at most {spread:.2f} points. {meaning}"
    paragraphs = ["## Linear evaluation (Table 3)", PROTOCOL]
    paragraphs += [summary.markdown(table._replace(header=("accuracy, %", *table.header[1:]))), meaning]
    pairs = [(row, other) for row in rows if row.endswith("DHO") for other in rows if other != row]
    if pairs:
        said = f"± is the standard error of the difference paired by the runs' seeds. {star(records)}"
        paragraphs += [summary.markdown(summary.differences_table(records, pairs, columns, PAPER)), said]
    return paragraphs
