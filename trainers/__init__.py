"""The trainers. Importing this package is all a host repository has to do.

    import dho_plugin.trainers

It registers every trainer and dataset under names that the host has not taken, and adds the configuration keys to the
host's defaults, so that yaml files and command-line options are accepted. Every module of this folder is imported:
a new file here needs no list.
"""

from __future__ import annotations

import importlib
import pkgutil

from .. import datasets as _datasets  # noqa: F401 - registers them
from ..config import SHARED, extend_defaults

for _section, _values in SHARED.items():
    extend_defaults(_section, _values)
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)
