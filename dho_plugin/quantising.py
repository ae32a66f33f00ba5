"""Static int8 quantisation of an exported convolutional student, and what it costs in accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from .backbones import Backbone
from .errors import UsageError
from .predicting import Model

INT8 = "model.int8.onnx"
CALIBRATION_IMAGES = 128
# The layers that hold the weights; normalisation of pixels and features, softmax and interpolation stay in float32.
QUANTISED = ("Conv", "Gemm", "MatMul")


class Cost(NamedTuple):
    """Accuracies in percent on the images of a split ("validation" or "test")."""

    fp32: float
    int8: float
    images: int
    split: str


def check_convolutional(trainer: Any) -> None:
    """Raise UsageError for a student that is no convolutional network, and where no image is left to compare on."""
    student, dataset = trainer.student, trainer.dm.dataset
    if not isinstance(student, Backbone) or sum(isinstance(part, nn.Conv2d) for part in student.modules()) < 2:
        raise UsageError(f"--int8 is for convolutional students, and {student.name} is none: leave it out")
    if not (dataset.val or dataset.test):
        raise UsageError("--int8 says what it costs, and this dataset has neither validation nor test images for that")


def quantise(source: Path, target: Path, trainer: Any) -> None:
    """Write an int8 version of an ONNX model: weights by channel, activations by their range on training images.

    Args:
        trainer: of the run; the centre views of up to 128 of its training images, evenly spaced, set the ranges.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(trainer, _spread(trainer.dm.dataset.train_x, CALIBRATION_IMAGES))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch[0]}

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def compare(trainer: Any, fp32: Model, int8: Model) -> Cost:
    """Accuracy of both models on all validation images of a run's dataset, on its test images where there are none."""
    dataset = trainer.dm.dataset
    items = dataset.val or dataset.test
    tested = {item.impath for item in dataset.test or []}
    split = "test" if tested.intersection(item.impath for item in items) else "validation"
    hits = np.zeros(2)
    for images, labels in _batches(trainer, items):
        hits += [int((model(images)["probabilities"].argmax(axis=1) == labels).sum()) for model in (fp32, int8)]
    first, second = 100 * hits / len(items)
    return Cost(float(first), float(second), len(items), split)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    positions = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[position] for position in positions]


def _batches(trainer: Any, items: Sequence[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in trainer.dm.evaluation_loader(items):
        yield batch["img"].numpy(), batch["label"].numpy()
