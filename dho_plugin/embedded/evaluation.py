"""Classification results: accuracy, macro F1, per-class accuracy and the confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from ..errors import UsageError
from ..predicting import printable
from .registry import EVALUATOR_REGISTRY, build


def compute_accuracy(output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Return top-k accuracies in percent, each of shape (1,).

    Args:
        output: (N, C) logits, or a sequence whose first entry they are.
        target: (N,) class indices.
        topk: values of k.
    """
    logits = output if isinstance(output, Tensor) else output[0]
    ranked = logits.topk(max(topk), dim=1).indices
    hits = ranked.eq(target.view(-1, 1))
    return [hits[:, :k].sum().float().view(1) * (100.0 / target.size(0)) for k in topk]


class EvaluatorBase:
    """Collects model outputs batch by batch.

    Args:
        cfg: configuration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take in model outputs `mo` and ground truth `gt` of one batch."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Return the results; the first is the one that `trainer.test()` returns."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1 in percent.

    Args:
        cfg: configuration; TEST.PER_CLASS_RESULT, TEST.COMPUTE_CMAT and OUTPUT_DIR are read.
        lab2cname: class index -> class name, needed for per-class results.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **_: Any) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise UsageError("TEST.PER_CLASS_RESULT needs the class names: pass lab2cname")
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._y_true: list[int] = []
        self._y_pred: list[int] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take in logits (N, C) and class indices (N,)."""
        self._y_pred += mo.max(1).indices.tolist()
        self._y_true += gt.tolist()

    def evaluate(self) -> dict[str, float]:
        """Print and return the results over all batches."""
        if not self._y_true:
            raise UsageError("nothing to evaluate: no batch was processed")
        classes, counts = confusion_counts(self._y_true, self._y_pred)
        total, correct = len(self._y_true), int(counts.trace())
        accuracy = 100.0 * correct / total
        results = {"accuracy": accuracy, "error_rate": 100.0 - accuracy, "macro_f1": 100.0 * macro_f1(counts)}
        print(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._print_per_class(classes, counts)
        if self.cfg.TEST.COMPUTE_CMAT:
            path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            torch.save(counts.double() / counts.sum(1, keepdim=True).clamp(min=1), path)
            print(f"Confusion matrix is saved to {path}")
        return results

    def _print_per_class(self, classes: list[int], counts: Tensor) -> float:
        print("=> per-class result")
        accuracies = []
        for row, label in enumerate(classes):
            total, correct = int(counts[row].sum()), int(counts[row, row])
            if total == 0:
                continue
            accuracies.append(100.0 * correct / total)
            name = f"{label} ({printable(self._lab2cname[label])})"
            print(f"* class: {name}\ttotal: {total:,}\tcorrect: {correct:,}\tacc: {accuracies[-1]:.1f}%")
        mean = sum(accuracies) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Build the evaluator named by TEST.EVALUATOR; `lab2cname` is passed on to it."""
    return build(EVALUATOR_REGISTRY, cfg.TEST.EVALUATOR, cfg, **kwargs)


def confusion_counts(y_true: list[int], y_pred: list[int]) -> tuple[list[int], Tensor]:
    """Count predictions per true class.

    Returns:
        The K class indices that occur, sorted, and counts (K, K): row = true class, column = predicted class.
    """
    classes, position = torch.tensor([y_true, y_pred]).unique(return_inverse=True)
    size = len(classes)
    return classes.tolist(), torch.bincount(position[0] * size + position[1], minlength=size**2).view(size, size)


def macro_f1(counts: Tensor) -> float:
    """Mean over the true classes of F1 = 2 TP / (predicted + true), from counts (K, K)."""
    true = counts.sum(1)
    f1 = 2.0 * counts.diag().double() / (counts.sum(0) + true)
    return f1[true > 0].mean().item()
