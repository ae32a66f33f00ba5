"""Choose the host of this folder's tests: the embedded engine, unless DHO_HOST says otherwise."""

from __future__ import annotations

import os
from unittest import mock

# For the import alone: tests of other folders start processes that must not inherit the choice.
with mock.patch.dict(os.environ, {"DHO_HOST": os.environ.get("DHO_HOST", "embedded")}):
    import dho_plugin.host  # noqa: F401
