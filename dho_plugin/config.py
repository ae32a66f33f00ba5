"""Configuration keys of the trainers, where the yaml files are, and the check of every key before it is merged.

Only this file, the trainers and the command line see a configuration; the method itself takes keywords.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from .errors import UsageError, did_you_mean
from .host import cfg_default

PRESETS = ("paper", "official")
CONFIGS = Path(__file__).parent / "configs"
if not CONFIGS.is_dir():  # an uninstalled clone
    CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def extend_defaults(section: str, values: dict[str, Any], cfg: CN = cfg_default) -> None:
    """Add keys to a configuration's defaults; keys that a host has already defined are left alone.

    Args:
        section: dotted name of the section, such as "TRAINER.COOP". values: default by key.
    """
    node = cfg
    for name in section.split("."):
        if name not in node:
            node[name] = CN()
        node = node[name]
    for key, value in values.items():
        if key not in node:
            node[key] = value


# What every trainer shares; a method's own keys stand in its file.
SHARED: dict[str, dict[str, Any]] = {
    # all, base or new: CoOp's base-to-new split of the classes
    # a list of the labelled images instead of NUM_SHOTS: simclr-1, simclr-10, authors-1, authors-10 (ImageNet), a file
    # (names of images, or split.json of another run)
    # SPLIT_CACHE: labelled images that CoOp has cached for this K and seed are compared with "ours", or used ("coop")
    # TEMPLATE: the prompt of the classes with "{}" for the name, of student and zero-shot teacher; empty: CoOp's own
    # FEW: at a class of fewer than K images stop, or clip: take all that it has
    # TEST_COPIES: at training images that have the bytes of test images stop or allow (a benchmark's duplicates), of
    # which the unlabelled ones are left out; auto: allow where the split is a published file (CoOp's ten datasets)
    "DATASET": {
        "SUBSAMPLE_CLASSES": "all",
        "LABELS": "",
        "SPLIT_CACHE": "ours",
        "TEMPLATE": "",
        "FEW": "stop",
        "TEST_COPIES": "auto",
    },
    # at an image that cannot be read: stop, or skip: training takes the next one, up to one file in a thousand (see
    # loaders.BAD_IMAGES); evaluations stop in either case, since a result is over the whole test set
    # READER: how training images are decoded and cut (readers.py): pil, CoOp's pixels; tensor, torchvision, faster and
    # within a level or two of 255; cuda, on the GPU. Evaluations are pil's in any case
    "INPUT": {"BAD_IMAGES": "stop", "READER": "pil"},
    # TOKEN_MERGING: tokens that a CLIP ViT merges in each layer when it evaluates (ToMe)
    # TEXT_CHUNK: learned prompts encoded at a time, and once more for the gradient; 0: all, -1: what memory allows
    # COMPILE: a backend of torch.compile, such as inductor, for the image towers in training; empty for none
    "MODEL": {"TOKEN_MERGING": 0, "TEXT_CHUNK": -1, "COMPILE": ""},
    # SAVE_MINUTES: a state to go on from is saved when so much time has passed since the last one; 0: after each step
    # ACCUMULATE: parts that a batch is cut into, so that the memory of one part is enough for its step
    # CONFLICT_FREQ: steps from one to the next whose gradients of L_CE and L_KD are compared (conflict.csv); 0: none is
    # RESUME_FORCE: go on from a state or checkpoint of a run with other settings (--resume-force)
    "TRAIN": {"SAVE_MINUTES": 10.0, "ACCUMULATE": 1, "CONFLICT_FREQ": 0, "RESUME_FORCE": False},
    # DIR: folder where what frozen models say of the views is kept and read from: a zero-shot teacher's features, those
    # of a student whose image tower is frozen, PromptSRC's frozen reference; empty for none
    # VIEWS: views of an image, after which they come again; 0 for a fresh one in each pass, the paper's recipe
    # LABELED_VIEWS: the same for labelled images, which few labels show much more often; -1: as VIEWS
    "STORE": {"DIR": "", "VIEWS": 0, "LABELED_VIEWS": -1},
    "TRAINER.DHO": {
        "LAMBDA": 0.5,  # weight of the supervised loss
        "ZETA": 0.01,  # softmax temperature of the teacher and of the cosine KD head
        "ETA": 2.0,  # distillation temperature
        "KD_T2": True,  # multiply the distillation loss by ETA^2
        "ALPHA": 0.5,  # inference: weight of the CE head
        "BETA": 1.0,  # inference: temperature of the KD head
        "CHOOSE": "fixed",  # or val: search ALPHA and BETA on validation images; oracle: on the test images, and say so
        "UNLABELED": True,  # distil on unlabelled images too
        "TRANSDUCTIVE": False,  # allow test images, without their labels, in the pool; every result then says so
        "UNLABELED_POOL": "complement",  # or "union": labelled images as well (Algorithm 1, line 7)
        # Steps of an epoch for this trainer and its control alike; 0: one pass over the set of TRAIN.COUNT_ITER
        "STEPS_PER_EPOCH": 0,
    },
    "TRAINER.DHO.HEAD": {
        # linear, cosine (Eq. 10), official, nonlinear (E.2); auto: cosine for a CLIP student, else linear
        "KD": "auto",
        # text (the student's text features), teacher (the teacher's, of equal width), kaiming; auto: text if it has any
        "INIT": "auto",
        "LR": 0.0,  # learning rate of the KD head and of a linear CE head; 0: OPTIM.LR
    },
    "TRAINER.DHO.TEACHER": {
        # anything that dho_plugin.vlm.load_vlm takes, or the output folder of a run
        "NAME": "ViT-L/14@336px",
        "OTHER_LABELS": False,  # whether a run as teacher may have learned from other labelled images than the student
        # empty: the dataset's single prompt; or prompts with "{}" and sets by name: imagenet (CLIP's 80), tip-adapter
        "TEMPLATES": (),
    },
}


def config_file(kind: str, name: str) -> Path:
    """The yaml file of a dataset (kind "datasets") or of a trainer (kind "trainers", name "CoOp/default").

    Raises:
        UsageError: there is none of that name.
    """
    path = CONFIGS / kind / f"{name}.yaml"
    if path.is_file():
        return path
    folder = CONFIGS / kind
    known = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
    raise UsageError(f"no {kind} configuration {name!r}: expected one of {known}.{did_you_mean(name, known)}")


def merge_file(cfg: CN, path: str | Path) -> None:
    """Merge a yaml file; an unknown key is named with the nearest known one.

    Raises:
        UsageError: no such file, no valid yaml of sections and keys, unknown key, a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no configuration file at {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        keys = _leaves(values) if isinstance(values, dict) else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, a number of 4301 digits
        raise UsageError(f"{path} is not valid yaml: {error}") from error
    if keys is None:
        raise UsageError(f"{path}: expected sections with keys, such as 'OPTIM:' and under it 'LR: 0.002'")
    for key in keys:
        _check_key(cfg, key, where=str(path))
    try:
        cfg.merge_from_other_cfg(CN(values))
    except (ValueError, AssertionError) as error:  # the latter: a type that no setting has
        raise UsageError(f"{path}: {error}") from error


def merge_options(cfg: CN, options: Sequence[str]) -> None:
    """Merge KEY VALUE pairs from the command line.

    Raises:
        UsageError: an odd number of words, an unknown key, or a value of another type.
    """
    if len(options) % 2:
        raise UsageError(f"options come as KEY VALUE pairs, got an odd number of words: {' '.join(options)}")
    for key, value in zip(options[::2], options[1::2], strict=True):
        _check_key(cfg, key, where="the command line")
        *sections, name = key.split(".")
        if isinstance(reduce(getitem, sections, cfg)[name], float) and value.lstrip("+-").isdecimal():
            value = f"{value}.0"  # which yacs does not take for a number of this type
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            raise UsageError(f"{key} {value}: {error}") from error


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        keys += _leaves(value, f"{name}.") if isinstance(value, dict) else [name]
    return keys


def _check_key(cfg: CN, key: str, *, where: str) -> None:
    known = _leaves(cfg)
    if key not in known:
        raise UsageError(f"unknown configuration key {key!r} in {where}.{did_you_mean(key, known)}")
