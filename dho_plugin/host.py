"""The host that the trainers and datasets plug into: real Dassl where it is installed, else the embedded engine.

Nothing else in the project imports Dassl. The environment variable DHO_HOST chooses: "dassl", "embedded", or "auto"
(the default: Dassl if it imports). Either way this module exports the same names; HOST says whose they are, and MENDS
what was mended in Dassl from outside, which has not changed since 2022.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from .embedded import checkpoints as _checkpoints
from .embedded import trainer_base as _trainer_base
from .embedded.checkpoints import convert_trusted_checkpoint
from .embedded.optim import load_warmup_state_dict, warmup_state_dict
from .errors import UsageError, did_you_mean
from .views import read_image as _read_image

_CHOICES = ("auto", "dassl", "embedded")
_INSTALL = (
    "Dassl is not on the package index. Get it with\n"
    "  git clone https://github.com/KaiyangZhou/Dassl.pytorch\n"
    "and put the clone on PYTHONPATH (works with every Python), or install it with\n"
    "  pip install --no-build-isolation --no-deps ./Dassl.pytorch\n"
    "(Python <= 3.12 only: its setup.py cannot build on 3.13). It also needs: pip install yacs tabulate tqdm "
    "tensorboard scikit-learn scipy gdown. Or set DHO_HOST=embedded to do without Dassl."
)


def stub_wilds() -> None:
    """Let Dassl import without the package `wilds`, which three of its datasets need and which it always imports."""
    name = "dassl.data.datasets.dg.wilds"
    if name in sys.modules or "wilds" in sys.modules or importlib.util.find_spec("wilds") is not None:
        return
    stub = ModuleType(name, "Stand-in for datasets that need the package `wilds`.")
    stub.__path__ = []
    stub.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
    sys.modules[name] = stub


def mend_warmup() -> list[str]:
    """Mend the warm-up schedulers: their construction (torch >= 2.7 dropped an argument) and their saved state."""
    schedulers = importlib.import_module("dassl.optim.lr_scheduler")
    base = schedulers._BaseWarmupScheduler
    done = []
    if _has_verbose(base.__init__) and not _has_verbose(LRScheduler.__init__):

        def init(
            self: Any, optimizer: Any, successor: Any, warmup_epoch: int, last_epoch: int = -1, _: Any = None
        ) -> None:
            self.successor = successor
            self.warmup_epoch = warmup_epoch
            LRScheduler.__init__(self, optimizer, last_epoch)

        base.__init__ = init
        done.append("warm-up schedulers")
    if "state_dict" not in vars(base):
        base.state_dict = warmup_state_dict
        base.load_state_dict = load_warmup_state_dict
        done.append("warm-up state")
    return done


def _has_verbose(init: Callable[..., None]) -> bool:
    return "verbose" in inspect.signature(init).parameters


def mend_images() -> list[str]:
    """Read images as training views do (views.read_image), so that a trainer is trained and evaluated on the same."""
    tools = importlib.import_module("dassl.utils.tools")
    _replace_everywhere("read_image", tools.read_image, _read_image)
    return ["images"]


def mend_checkpoints() -> list[str]:
    """Save atomically and plainly, load safely, and let load_model print a checkpoint that has no val_result."""
    torchtools = importlib.import_module("dassl.utils.torchtools")
    trainer = importlib.import_module("dassl.engine.trainer")
    for name in ("save_checkpoint", "load_checkpoint"):
        _replace_everywhere(name, getattr(torchtools, name), getattr(_checkpoints, name))
    trainer.TrainerBase.load_model = _trainer_base.TrainerBase.load_model
    return ["checkpoints", "load_model"]


def _replace_everywhere(name: str, original: Any, replacement: Any) -> None:
    # `from dassl.utils import load_checkpoint` copies the name, so that each module which did so keeps the original.
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, replacement)


def _import_dassl() -> tuple[str, tuple[str, ...]]:
    """Import and mend Dassl; return its name with version, and what was mended. Leaves nothing behind on failure."""
    before = set(sys.modules)
    try:
        stub_wilds()
        importlib.import_module("dassl.engine")
        mends = (*mend_images(), *mend_warmup(), *mend_checkpoints())
    except BaseException:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "dassl":
                del sys.modules[name]
        raise
    return f"dassl {sys.modules['dassl'].__version__}", mends


def _choose() -> tuple[str, tuple[str, ...]]:
    choice = os.environ.get("DHO_HOST", "") or "auto"
    if choice not in _CHOICES:
        raise UsageError(f"DHO_HOST={choice!r}: expected one of {_CHOICES}.{did_you_mean(choice, _CHOICES)}")
    if choice == "embedded" or (choice == "auto" and importlib.util.find_spec("dassl") is None):
        return "embedded", ()
    try:
        return _import_dassl()
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, SyntaxError) as error:
        reason = f"{type(error).__name__}: {error}"
        if choice == "dassl":
            raise ImportError(f"DHO_HOST=dassl, but Dassl cannot be imported ({reason}).\n{_INSTALL}") from error
        warnings.warn(f"Dassl is installed but does not import ({reason}); using the embedded engine", stacklevel=3)
        return "embedded", ()


HOST, MENDS = _choose()

if TYPE_CHECKING or HOST == "embedded":
    from .embedded.checkpoints import load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint
    from .embedded.config import cfg_default, clean_cfg, get_cfg_default
    from .embedded.dataset import DatasetBase, Datum, build_dataset, listdir_nohidden, mkdir_if_missing
    from .embedded.environment import collect_env_info, set_random_seed
    from .embedded.evaluation import build_evaluator, compute_accuracy
    from .embedded.loading import DataManager
    from .embedded.logger import setup_logger
    from .embedded.meters import AverageMeter, MetricMeter
    from .embedded.optim import build_lr_scheduler, build_optimizer
    from .embedded.registry import DATASET_REGISTRY, EVALUATOR_REGISTRY, TRAINER_REGISTRY, Registry, check_availability
    from .embedded.trainer_base import TrainerBase
    from .embedded.trainers import SimpleTrainer, TrainerX, TrainerXU, build_trainer
    from .views import read_image
else:
    from dassl.config import cfg_default, clean_cfg, get_cfg_default
    from dassl.data import DataManager
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
    from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerBase, TrainerX, TrainerXU, build_trainer
    from dassl.evaluation import EVALUATOR_REGISTRY, build_evaluator
    from dassl.metrics import compute_accuracy
    from dassl.optim import build_lr_scheduler, build_optimizer
    from dassl.utils import (
        AverageMeter,
        MetricMeter,
        Registry,
        check_availability,
        collect_env_info,
        listdir_nohidden,
        load_checkpoint,
        load_pretrained_weights,
        mkdir_if_missing,
        read_image,
        resume_from_checkpoint,
        save_checkpoint,
        set_random_seed,
        setup_logger,
    )

__all__ = [
    "DATASET_REGISTRY",
    "EVALUATOR_REGISTRY",
    "HOST",
    "MENDS",
    "TRAINER_REGISTRY",
    "AverageMeter",
    "DataManager",
    "DatasetBase",
    "Datum",
    "MetricMeter",
    "Registry",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_dataset",
    "build_evaluator",
    "build_lr_scheduler",
    "build_optimizer",
    "build_trainer",
    "cfg_default",
    "check_availability",
    "clean_cfg",
    "collect_env_info",
    "compute_accuracy",
    "convert_trusted_checkpoint",
    "get_cfg_default",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "read_image",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
]
