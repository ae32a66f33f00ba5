"""Does an exported model answer as the run does? Asked of the written file, on real images, at two batch sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .interpolation import interpolate
from .predicting import Model, read_view
from .student import DualHeadStudent

TOLERANCE = 1e-4
BATCHES = (1, 5)
IMAGES = 10


class Sample(NamedTuple):
    """Images of a dataset, and the trained model's own answers.

    Attributes:
        images: uint8 (10, 3, size, size). expected: by batch size, the outputs (10, C) by name.
    """

    images: np.ndarray
    expected: dict[int, dict[str, np.ndarray]]


def take_sample(trainer: Any) -> Sample:
    """Validation images of a run's dataset (else test, else training images), and its `model_inference` on them.

    Raises:
        UsageError: predict.py would cut these images in another way than the run's loader.
    """
    own = trainer.dm.dataset
    dataset = trainer.dm.evaluation_loader(own.val or own.test or own.train_x).dataset
    positions = np.linspace(0, len(dataset) - 1, IMAGES).round().astype(int)
    chosen = [dataset[int(position)] for position in positions]
    for item in chosen:
        view = read_view(item["impath"], dataset.size, trainer.cfg.INPUT.INTERPOLATION)
        if not np.array_equal(view, item["img"].numpy()):
            raise UsageError(f"predict.py and the run's loader see different pixels in {item['impath']}: please report")
    images = torch.stack([item["img"] for item in chosen])
    expected = {}
    for batch in BATCHES:
        parts = [_answers(trainer, part) for part in images.split(batch)]
        expected[batch] = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return Sample(images.numpy(), expected)


@torch.no_grad()
def _answers(trainer: Any, images: Tensor) -> dict[str, Tensor]:
    normalised = trainer.student.normalize(images)
    answer = trainer.model_inference(normalised)
    if not isinstance(trainer.model, DualHeadStudent):
        return {"probabilities": torch.softmax(answer, dim=-1)}
    if trainer.ce_only:
        return {"probabilities": answer}
    heads, beta = trainer.heads(normalised), trainer.interpolation.beta
    alone = {name: interpolate(heads, alpha=alpha, beta=beta) for name, alpha in (("ce", 1.0), ("kd", 0.0))}
    return {"probabilities": answer, **alone}


def check(name: str, run: Model, sample: Sample) -> dict[int, float]:
    """The largest difference of any probability, by batch size.

    Args:
        name: of the file, for the message. run: the model as read from that file.

    Raises:
        UsageError: a difference above 1e-4, another class, other outputs or shapes.
    """
    largest: dict[int, float] = {}
    for batch, expected in sample.expected.items():
        parts = [run(sample.images[start : start + batch]) for start in range(0, len(sample.images), batch)]
        if any(part.keys() != expected.keys() for part in parts):
            raise UsageError(f"{name} has the outputs {sorted(parts[0])}, expected {sorted(expected)}")
        found = {output: np.concatenate([part[output] for part in parts]) for output in expected}
        for output, wanted in expected.items():
            where = f"{name} at batch {batch}, output {output!r}"
            if found[output].shape != wanted.shape:
                raise UsageError(f"{where}: shape {found[output].shape}, expected {wanted.shape}")
            difference = float(np.abs(found[output] - wanted).max())
            if not difference <= TOLERANCE:  # also where it is no number
                raise UsageError(
                    f"{where}: differs from the trained model by up to {difference:.2g} (allowed: {TOLERANCE}). "
                    "Nothing was written. Leave that format out with --formats, and report this please"
                )
            if (found[output].argmax(axis=1) != wanted.argmax(axis=1)).any():
                raise UsageError(f"{where}: another class than the trained model's. Nothing was written")
            largest[batch] = max(difference, largest.get(batch, 0.0))
    return largest
