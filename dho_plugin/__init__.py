"""Dual-Head Optimization (arXiv 2505.07675): the method for anyone's loop, and Dassl-style trainers built on it.

The core needs torch alone and knows neither Dassl nor a configuration::

    from dho_plugin import DualHeadStudent, build_head, dual_head_loss, interpolate

The trainers register themselves with Dassl (or with the embedded engine where Dassl is not installed)::

    import dho_plugin.trainers

and `dho_plugin.attach` turns a trainer of another repository into its DHO version.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .heads import CosineHead, DualHeadLogits, OfficialHead, build_head
from .interpolation import interpolate, search_alpha_beta
from .losses import DualHeadLoss, distillation_loss, dual_head_loss, soft_targets, supervised_loss
from .student import DualHeadStudent

# In an uninstalled clone `dho_plugin.trainers` and `dho_plugin.configs` lie beside this folder, not inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "trainers" / "coop.py").is_file() and (_checkout / "setup.py").is_file():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from .attaching import attach as attach


def __getattr__(name: str) -> Any:
    """`attach` is imported when it is asked for: the core does without Dassl, trainers and open_clip."""
    if name == "attach":
        from .attaching import attach

        return attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CosineHead",
    "DualHeadLogits",
    "DualHeadLoss",
    "DualHeadStudent",
    "OfficialHead",
    "__version__",
    "build_head",
    "distillation_loss",
    "dual_head_loss",
    "interpolate",
    "search_alpha_beta",
    "soft_targets",
    "supervised_loss",
]
