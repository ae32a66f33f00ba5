"""Small things the tests make for themselves: CLIP weights in each format, and image trees in ImageNet's layout."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

VIT = {"layers": 2, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 32}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]

# Two classes share a name, as ImageNet's cranes do; ids are not in alphabetical order of the names.
WNIDS = ["n01440764", "n01443537", "n02012849", "n03126707", "n03710637", "n03710721"]
NAMES = ["tench", "goldfish", "crane", "crane", "maillot", "tank suit"]
SUBSET = [WNIDS[1], WNIDS[3], WNIDS[5]]


def tiny_clip(vision: dict = VIT, *, embed_dim: int = 32, seed: int = 0) -> open_clip.CLIP:
    """A random CLIP whose logit scale is CLIP's 100."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(embed_dim=embed_dim, vision_cfg=dict(vision), text_cfg=dict(TEXT), quick_gelu=True)
    model.logit_scale.data.fill_(float(np.log(100.0)))
    return model.eval()


def save_self_describing(path: Path, model: open_clip.CLIP, vision: dict = VIT, text: dict = TEXT) -> Path:
    config = {"embed_dim": model.text_projection.shape[1], "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, str(path), metadata={"open_clip_config": json.dumps({**config, "mean": MEAN, "std": STD})})
    return path


def openai_marks(image_size: int) -> dict[str, torch.Tensor]:
    """Three entries that OpenAI's archives have beside the weights."""
    marks = {"input_resolution": image_size, "context_length": 77, "vocab_size": 49408}
    return {key: torch.tensor(value) for key, value in marks.items()}


def openai_state(model: open_clip.CLIP, image_size: int) -> dict[str, torch.Tensor]:
    """The state dict as OpenAI's archives hold it."""
    return {**model.state_dict(), **openai_marks(image_size)}


def write_image(path: Path, rng: np.random.Generator, hue: int, size: tuple[int, int] = (48, 40)) -> None:
    pixels = rng.integers(0, 80, (size[1], size[0], 3))
    pixels[..., hue % 3] += 60 + 20 * (hue // 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)


def imagenet_tree(root: Path, *, train: int = 4, test: int = 2) -> Path:
    """ImageNet and its four variants in CoOp's layout, with six classes of small JPEGs."""
    rng = np.random.default_rng(0)
    folders = {
        "imagenet/images/train": (WNIDS, train),
        "imagenet/images/val": (WNIDS, test),
        "imagenetv2/imagenetv2-matched-frequency-format-val": ([str(i) for i in range(len(WNIDS))], test),
        "imagenet-sketch/images": (WNIDS, test),
        "imagenet-adversarial/imagenet-a": (SUBSET, test),
        "imagenet-rendition/imagenet-r": (SUBSET, test),
    }
    for folder, (classes, count) in folders.items():
        for name in classes:
            hue = int(name) if name.isdigit() else WNIDS.index(name)
            for number in range(count):
                write_image(root / folder / name / f"{name}_{number}.JPEG", rng, hue)
    for folder in ("imagenet", "imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition"):
        lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES, strict=True)]
        (root / folder / "classnames.txt").write_text("\n".join(lines) + "\n")
    (root / "imagenet-adversarial" / "imagenet-a" / "README.txt").write_text("not a class\n")
    return root


def absent_packages(folder: Path) -> Path:
    """A folder for PYTHONPATH with stand-ins for packages that Dassl imports for three datasets nothing here uses."""
    for package in ("wilds", "pandas"):
        if importlib.util.find_spec(package) is None:
            (folder / package).mkdir(parents=True, exist_ok=True)
            names = "get_dataset = None\nclass DataFrame: ...\nclass Series: ...\nclass Index: ...\n"
            (folder / package / "__init__.py").write_text(names)
    return folder
