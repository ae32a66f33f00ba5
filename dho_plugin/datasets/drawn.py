"""Data sets that write their own pictures: once below a data root, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import UsageError

STAMP = "VERSION.txt"


def demo_root() -> str:
    """Where the pictures are written when no --root is given: the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return str(Path(cache).expanduser() / "dho_plugin")


def write_once(root: Path, names: Sequence[str], version: str, write: Callable[[Path, list[str]], None]) -> None:
    """Write folders below `root` unless they are there in this version.

    Each is written to a temporary folder and renamed into place, so a reader never sees half of one and two processes
    may write at once. A folder of another version is replaced.

    Args:
        names: the folders. version: what their stamp says.
        write: makes the folders of the names it is given, below the path it is given.

    Raises:
        UsageError: a folder of such a name that has no stamp.
    """
    missing = [name for name in names if not _is_current(root / name, version)]
    if not missing:
        return
    for name in missing:
        _refuse_foreign(root / name)
    root.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".drawn-", dir=root))
    try:
        write(workspace, missing)
        for name in missing:
            (workspace / name / STAMP).write_text(version + "\n", encoding="utf-8")
            _install(workspace / name, root / name, version)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _is_current(folder: Path, version: str) -> bool:
    try:
        return (folder / STAMP).read_text(encoding="utf-8").strip() == version
    except FileNotFoundError:
        return False


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / STAMP).exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} exists but was not written by this demo (it has no {STAMP}). "
            "Move it away, or choose another data root."
        )


def _install(built: Path, target: Path, version: str) -> None:
    """Move ``built`` to ``target``; where another process was faster with the same version, keep the other one."""
    if _is_current(target, version):
        return
    # No old version, or losing the race to move it away, is fine: the winner is installing the same pictures.
    with suppress(FileNotFoundError):
        os.rename(target, built.with_name(f"{target.name}.old"))
    try:
        os.rename(built, target)
    except OSError:
        if not _is_current(target, version):
            raise
