from __future__ import annotations

import os
import sys
from pathlib import Path

# The helpers beside the tests (reference.py, tiny.py) are modules of their own, in every import mode.
sys.path.insert(0, str(Path(__file__).parent))

# The models here are so small that a second thread costs more than it gives, in this process and in those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import layouts
import pytest
import tiny
import torch


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with an ImageNet tree, a student (self-describing file) and a larger teacher (OpenAI's format)."""
    root = tmp_path_factory.mktemp("workspace")
    tiny.imagenet_tree(root)
    return with_models(root)


@pytest.fixture(scope="session")
def pets(tmp_path_factory) -> Path:
    """As `workspace`, with OxfordPets, whose validation images are no test images: two of five a class at two shots."""
    root = tmp_path_factory.mktemp("pets")
    layouts.write(root, "OxfordPets")
    return with_models(root)


def with_models(root: Path) -> Path:
    """Write a student and a teacher there."""
    tiny.save_self_describing(root / "student.safetensors", tiny.tiny_clip())
    teacher = tiny.tiny_clip(tiny.RESNET, embed_dim=48, seed=1)
    torch.save(tiny.openai_state(teacher, tiny.RESNET["image_size"]), root / "teacher.pt")
    return root
