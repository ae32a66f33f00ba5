"""The loops over the batches of an epoch and of an evaluation, for trainers of either host."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..distributed import gathered, is_main
from .meters import AverageMeter, MetricMeter


def steps(trainer: Any, batches: Iterable[tuple[Any, ...]], losses: MetricMeter, first: int = 0) -> Iterator[None]:
    """Call forward_backward(*entry) for each entry and log; an item after each step.

    Args:
        trainer: its `batch_idx` counts, its `num_batches` is the number in the epoch. losses: of the epoch so far.
        first: number of the first entry in the epoch.
    """
    trainer.set_model_mode("train")
    batch_time, data_time = AverageMeter(), AverageMeter()
    frequency = trainer.cfg.TRAIN.PRINT_FREQ
    end = time.time()
    for trainer.batch_idx, entry in enumerate(batches, first):
        data_time.update(time.time() - end)
        summary = trainer.forward_backward(*entry)
        batch_time.update(time.time() - end)
        losses.update(summary)
        if (trainer.batch_idx + 1) % frequency == 0 or trainer.num_batches < frequency:
            _print_progress(trainer, losses, batch_time, data_time)
            step = trainer.epoch * trainer.num_batches + trainer.batch_idx
            for name, meter in losses.meters.items():
                trainer.write_scalar(f"train/{name}", meter.avg, step)
            trainer.write_scalar("train/lr", trainer.get_current_lr(), step)
        yield
        end = time.time()


def _print_progress(trainer: Any, losses: MetricMeter, batch_time: AverageMeter, data_time: AverageMeter) -> None:
    left = (trainer.max_epoch - trainer.epoch) * trainer.num_batches - trainer.batch_idx - 1
    print(
        f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{trainer.batch_idx + 1}/{trainer.num_batches}] "
        f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) data {data_time.val:.3f} ({data_time.avg:.3f}) "
        f"{losses} lr {trainer.get_current_lr():.4e} eta {datetime.timedelta(seconds=int(batch_time.avg * left))}"
    )


@torch.no_grad()
def evaluation(
    trainer: Any,
    split: str | None,
    answers: Callable[[Any], Iterable[tuple[Tensor, Tensor]]] | None = None,
    step: int | None = None,
) -> float:
    """Evaluate on "val" (where there is one) or "test"; the default is TEST.SPLIT. Return the first result.

    Args:
        answers: a loader -> the model's answers and the labels, batch by batch; None for the trainer's own methods.
        step: at which TensorBoard shows it; None for the number of the epoch.
    """
    trainer.set_model_mode("eval")
    trainer.evaluator.reset()
    split = split or trainer.cfg.TEST.SPLIT
    if split != "val" or trainer.val_loader is None:
        split = "test"
    print(f"Evaluate on the *{split}* set")
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    for answer, labels in answers(loader) if answers is not None else _answers(trainer, loader):
        if is_main():
            trainer.evaluator.process(answer, labels)
    results = gathered(trainer.evaluator.evaluate() if is_main() else {})[0]
    for name, value in results.items():
        trainer.write_scalar(f"{split}/{name}", value, trainer.epoch if step is None else step)
    return next(iter(results.values()))


def _answers(trainer: Any, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    # disable=None: no progress bar where stderr is not a terminal.
    for images, labels in map(trainer.parse_batch_test, tqdm(loader, disable=None)):
        yield trainer.model_inference(images), labels
