"""Random seeds, and a description of the machine for the log."""

from __future__ import annotations

import platform
import random
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "open_clip_torch", "timm", "yacs")


def set_random_seed(seed: int) -> None:
    """Seed Python, numpy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def collect_env_info() -> str:
    """Return one line per fact: Python, platform, package versions, GPUs."""
    lines = [f"Python: {platform.python_version()}", f"Platform: {platform.platform()}"]
    lines += [f"{name}: {_version(name)}" for name in _PACKAGES]
    lines.append(f"CUDA: {torch.version.cuda or 'none'}, cuDNN: {torch.backends.cudnn.version() or 'none'}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"GPUs: {', '.join(gpus) or 'none'}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
