"""Exported models of small runs, each made once in a session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import runs
import tiny
import torch

from dho_plugin import export
from dho_plugin.runs import load_run
from dho_plugin.views import INTERPOLATIONS, center_view, read_image

ROOT = Path(__file__).resolve().parent.parent
CNN = ("--backbone timm/test_resnet", "INPUT.SIZE (32,32)")


def trained(workspace: Path, trainer: str, flags: str = "", options: str = "") -> Path:
    """The output folder of a run."""
    folder = workspace / "runs" / f"{trainer}{'_cnn' if 'test_resnet' in flags else ''}"
    if not (folder / "config.yaml").is_file():
        runs.run(workspace, trainer, folder, flags, options)
    return folder


def exported(workspace: Path, trainer: str, cnn: bool, formats: str = "", *, apart: bool = False) -> Path:
    """A bundle; its run's folder is the one that `trained` gives.

    Args:
        apart: export in a process of its own, which knows nothing of what the tests import.
    """
    run = trained(workspace, trainer, *(CNN if cnn else ("", "")))
    bundle = workspace / "bundles" / run.name
    bundle.parent.mkdir(exist_ok=True)
    if not bundle.exists():
        chosen = ["--formats", *formats.split()] if formats else []
        words = [str(run), "--output", str(bundle), *chosen]
        if apart:
            subprocess.run([sys.executable, "-m", "dho_plugin", "export", *words], cwd=ROOT, check=True)
        else:
            assert export.main(words) == 0
    return bundle


def pictures(folder: Path, count: int) -> list[Path]:
    """Pictures of many sizes."""
    rng = np.random.default_rng(3)
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        tiny.write_image(path, rng, number % 6, (33 + 7 * number % 60, 35 + 11 * number % 50))
    return paths


@torch.no_grad()
def answers(run: Path, paths: list[Path]) -> torch.Tensor:
    """The trained model's own probabilities (N, C) for image files."""
    trainer = load_run(run)
    how = INTERPOLATIONS[trainer.cfg.INPUT.INTERPOLATION]
    views = torch.stack([center_view(read_image(str(path)), trainer.student.image.size, how) for path in paths])
    found = trainer.model_inference(trainer.student.normalize(views))
    return found if hasattr(trainer, "kd_head") else torch.softmax(found, dim=-1)
