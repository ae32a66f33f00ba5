from __future__ import annotations

import sys
from pathlib import Path

# The helpers beside the tests (reference.py, tiny.py) are modules of their own, in every import mode.
sys.path.insert(0, str(Path(__file__).parent))
