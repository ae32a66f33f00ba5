"""The embedded engine's names in one place, whichever host serves."""

from __future__ import annotations

from types import SimpleNamespace

from dho_plugin.embedded import config, dataset, evaluation, loading, meters, optim, registry, trainers

_MODULES = (config, dataset, evaluation, loading, meters, optim, registry, trainers)

api = SimpleNamespace(**{k: v for module in _MODULES for k, v in vars(module).items() if not k.startswith("_")})
