"""Image transforms named in INPUT.TRANSFORMS: those that torchvision offers directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchvision.transforms as T
from torchvision.transforms.functional import InterpolationMode
from yacs.config import CfgNode

from ..errors import UsageError, did_you_mean

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

# In order of application. "center_crop" needs no entry: testing always crops the centre.
_AUGMENTATIONS: dict[str, Callable[[CfgNode], Any]] = {
    "random_crop": lambda i: T.RandomCrop(i.SIZE, padding=i.CROP_PADDING),
    "random_resized_crop": lambda i: T.RandomResizedCrop(i.SIZE, scale=i.RRCROP_SCALE, interpolation=interpolation(i)),
    "random_flip": lambda i: T.RandomHorizontalFlip(),
    "colorjitter": lambda i: T.ColorJitter(i.COLORJITTER_B, i.COLORJITTER_C, i.COLORJITTER_S, i.COLORJITTER_H),
    "randomgrayscale": lambda i: T.RandomGrayscale(p=i.RGS_P),
    "gaussian_blur": lambda i: T.RandomApply([T.GaussianBlur(i.GB_K)], p=i.GB_P),
}
_SUPPORTED = (*_AUGMENTATIONS, "normalize", "center_crop")
_DASSL_ONLY = (
    "instance_norm",
    "random_translation",
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
)


def interpolation(cfg_input: CfgNode) -> InterpolationMode:
    """Return torchvision's mode for INPUT.INTERPOLATION."""
    name = cfg_input.INTERPOLATION
    if name not in INTERPOLATION_MODES:
        known = list(INTERPOLATION_MODES)
        raise UsageError(f"INPUT.INTERPOLATION={name!r}: expected one of {known}.{did_you_mean(name, known)}")
    return INTERPOLATION_MODES[name]


def build_transform(cfg: CfgNode, is_train: bool = True, choices: list[str] | None = None) -> Any:
    """Build the training or test transform: PIL image -> float tensor (3, H, W).

    Args:
        cfg: configuration; INPUT is read.
        is_train: random augmentation, or resize and centre crop.
        choices: transform names instead of INPUT.TRANSFORMS.

    Returns:
        The transform, or None under INPUT.NO_TRANSFORM.

    Raises:
        UsageError: a name that is unknown, or that only real Dassl offers.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("INPUT.NO_TRANSFORM is set: images stay as they are")
        return None
    names = list(cfg.INPUT.TRANSFORMS if choices is None else choices)
    _check_names(names)
    steps = _augment(cfg.INPUT, names) if is_train else _centre(cfg.INPUT)
    steps.append(T.ToTensor())
    if "normalize" in names:
        steps.append(normalize(cfg.INPUT))
    print(f"Building transform_{'train' if is_train else 'test'}: " + " > ".join(map(str, steps)))
    return T.Compose(steps)


def normalize(cfg_input: CfgNode) -> T.Normalize:
    """Return the normalisation to INPUT.PIXEL_MEAN and INPUT.PIXEL_STD."""
    return T.Normalize(mean=cfg_input.PIXEL_MEAN, std=cfg_input.PIXEL_STD)


def _augment(cfg_input: CfgNode, names: list[str]) -> list[Any]:
    crops = {"random_crop", "random_resized_crop"} & set(names)
    steps = [] if crops else [T.Resize(cfg_input.SIZE, interpolation=interpolation(cfg_input))]
    return steps + [make(cfg_input) for name, make in _AUGMENTATIONS.items() if name in names]


def _centre(cfg_input: CfgNode) -> list[Any]:
    resize = T.Resize(max(cfg_input.SIZE), interpolation=interpolation(cfg_input))
    return [resize, T.CenterCrop(cfg_input.SIZE)]


def _check_names(names: list[str]) -> None:
    for name in names:
        if name in _DASSL_ONLY:
            raise UsageError(
                f"INPUT.TRANSFORMS: {name!r} is one of Dassl's own transforms, which the embedded engine leaves out; "
                f"run with a Dassl checkout on PYTHONPATH, or use some of {list(_SUPPORTED)}"
            )
        if name not in _SUPPORTED:
            hint = did_you_mean(name, _SUPPORTED)
            raise UsageError(f"INPUT.TRANSFORMS: unknown {name!r}, expected some of {list(_SUPPORTED)}.{hint}")
