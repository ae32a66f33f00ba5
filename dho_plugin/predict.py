"""`python -m dho_plugin predict`: classify images with an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from . import predicting
from .errors import UsageError
from .fused import load_bundle


def main(argv: Sequence[str] | None = None) -> int:
    """As the bundle's own predict.py; without ONNX Runtime or an ONNX file the torch weights answer."""
    return predicting.main(argv, load=load, prog="python -m dho_plugin predict")


def load(folder: Path) -> predicting.Model:
    """The model of a bundle, by ONNX Runtime if that can be, else by torch.

    Raises:
        Refused: the bundle has neither form.
    """
    try:
        return predicting.load_onnx(folder)
    except predicting.Refused as no_onnx:
        try:
            return load_torch(folder)
        except UsageError as no_weights:
            raise predicting.Refused(f"{no_onnx}; {no_weights}") from no_weights


def load_torch(folder: Path) -> predicting.Model:
    """The model of a bundle as torch runs it, on the CPU.

    Raises:
        UsageError: see load_bundle.
    """
    fused = load_bundle(folder)

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: output.numpy() for name, output in fused(torch.from_numpy(images)).items()}

    return run
