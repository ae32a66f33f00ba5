"""Files that are whole or not there: written beside their place, synced, renamed, and tensors with a checksum.

A checkpoint stays what torch.save writes, a zip archive. The SHA-256 of all its bytes stands behind it as the archive's
comment, which torch.load, Dassl and unzip pass over; hashed is the file as it was before the comment was added.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import os
import pickle
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .predicting import printable

BLOCK = 1 << 20
SECONDS_OF_LIFE = 24 * 3600  # of a temporary file of another machine, whose processes cannot be asked for
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

# A zip archive ends in a record of 22 bytes, whose last two are the length of the comment behind it.
END, END_BYTES = b"PK\5\6", 22
MARK = b"sha256:"
SEAL_BYTES = len(MARK) + 64

_HOST = re.sub(r"[^\w-]", "_", platform.node()) or "localhost"
_TEMPORARY = re.compile(r".+\.(?P<host>[\w-]+)-(?P<pid>\d+)\.tmp")


class DiskFull(UsageError, OSError):
    """A file that does not fit on its disk, or into what its owner may use of it."""


class UnsafeCheckpoint(UsageError, pickle.UnpicklingError):
    """A checkpoint that could run code if it were loaded."""


class DamagedCheckpoint(UsageError, RuntimeError):
    """A checkpoint that is cut off or changed, or none."""


@contextmanager
def sealed(path: Path, needed: int) -> Iterator[Path]:
    """The name under which to write what becomes `path`, at once and whole, when the block ends without an error.

    A process killed at any moment leaves the old file or the new one, and at most a temporary file that the next
    writer in this folder removes. One thread of a process may write a file at a time; other processes may do so too.

    Args:
        path: a file in an existing folder. needed: the bytes it will take, about.

    Raises:
        DiskFull: it does not fit; the old file is kept.
    """
    remove_stale(path.parent)
    disk = shutil.disk_usage(path.parent)
    if disk.total and needed > disk.free:  # some network disks report zeros
        raise disk_full(path, errno.ENOSPC, _kept(path), needed)
    temporary = path.with_name(f"{path.name}.{_HOST}-{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if _code(error) in NO_ROOM:
            raise disk_full(path, _code(error), _kept(path), needed) from error
        raise
    sync(path.parent)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed writers have left in a folder."""
    for file in folder.glob("*.tmp"):
        named = _TEMPORARY.fullmatch(file.name)
        if named is None:
            continue
        with suppress(FileNotFoundError):  # its writer was done, or somebody else removes it too
            dead = named["host"] == _HOST and not _alive(int(named["pid"]))
            if dead or time.time() - file.stat().st_mtime > SECONDS_OF_LIFE:
                file.unlink()


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # where a signal 0 ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and sys.platform == "win32":  # which cannot open one
        return
    file = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(file)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot sync a folder
            raise
    finally:
        os.close(file)


def _code(error: BaseException) -> Any:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors reports what the system said
    return int(found[1]) if found else None


def _kept(path: Path) -> str:
    return "the file that is there is kept" if path.exists() else ""


def disk_full(path: Path, code: int | None, kept: str = "", needed: int | None = None) -> DiskFull:
    """The error of a file that does not fit.

    Args:
        path: of the file. code: what the system said (errno). kept: what is not lost. needed: bytes, about.
    """
    free = shutil.disk_usage(path.parent).free
    wanted = "" if needed is None else f"it needs about {needed:,} bytes, and "
    reason, kept = os.strerror(code or errno.ENOSPC), f"; {kept}" if kept else ""
    return DiskFull(
        f"cannot write {printable(str(path))} ({reason}): {wanted}{free:,} bytes are free in its folder{kept}. "
        "Make room, or raise the quota or limit, and give the same command again"
    )


@contextmanager
def usable(folder: Path, instead: str) -> Iterator[None]:
    """Within this context what the system has against a folder is an error for people.

    Args:
        instead: what they are to do, such as "give STORE.DIR a folder".

    Raises:
        UsageError: an OSError, and what it says.
    """
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(
            f"cannot use {printable(str(folder))} ({printable(str(error))}): {instead} that can be read and written "
            "and has room"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all, whoever else writes it at the same time; raises as sealed."""
    with sealed(path, len(text.encode())) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, state: Any) -> None:
    """Write what `load_tensors` and torch.load(path, weights_only=True) read, with its checksum; raises as sealed.

    Args:
        state: nested dicts, lists and tuples of tensors and plain values; numpy's scalars become Python's.
    """
    with sealed(path, tensor_bytes(state)) as temporary, temporary.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(plain(state), cast(IO[bytes], hashed))
        except RuntimeError:
            if hashed.error is None:
                raise
        if hashed.error is not None:  # torch only says at which byte it stopped
            raise hashed.error
        file.seek(-2, os.SEEK_END)
        file.write(SEAL_BYTES.to_bytes(2, "little") + MARK + hashed.sha256.hexdigest().encode())


class _Hashed:
    """A file to write to: hashes what passes, and keeps the error that torch.save makes another of."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, content: memoryview) -> int:
        try:
            count = self.file.write(content)
        except BaseException as error:
            self.error = error
            raise
        self.sha256.update(content)
        return count

    def flush(self) -> None:
        """Nothing: the file is flushed when it is closed."""


def plain(value: Any) -> Any:
    """A copy with Python's scalars for numpy's, which weights_only refuses, in dicts, lists and tuples at any depth."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if not isinstance(value, dict):
        return value
    copied = copy.copy(value)  # of an OrderedDict of torch with its attributes, of a Counter of a scheduler
    copied.clear()
    for key, item in value.items():
        copied[plain(key)] = plain(item)
    return copied


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples; memory that several share is counted once."""
    storages = {}
    nodes = [state]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Tensor) and node.layout == torch.strided:
            storage = node.untyped_storage()
            storages[node.device, storage.data_ptr()] = storage.nbytes()
        elif isinstance(node, dict):
            nodes += node.values()
        elif isinstance(node, (list, tuple)):
            nodes += node
    return sum(storages.values())


def load_tensors(path: Path, map_location: Any = None, *, seal_needed: bool = False) -> Any:
    """Load tensors and plain values without running code, after their checksum was compared.

    Args:
        path: as written by save_tensors, or by torch.save, which gives no checksum.
        map_location: as for torch.load.
        seal_needed: refuse a file without checksum.

    Raises:
        FileNotFoundError: no such file.
        DamagedCheckpoint: another checksum, cut off, or no such file of tensors.
        UnsafeCheckpoint: the file holds other Python objects, as those written by older Dassl versions do.
    """
    with path.open("rb") as file:
        _check_seal(file, path, seal_needed)
        file.seek(0)
        if not file.read(2).startswith((b"PK", b"\x80")):  # where torch takes anything for its oldest format
            raise DamagedCheckpoint(_damage(path, "neither an archive nor a pickle"))
        file.seek(0)
        try:
            return torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UnsafeCheckpoint(_refusal(path, error)) from error
        except Exception as error:  # a changed byte of a file without checksum makes torch stumble over anything
            raise DamagedCheckpoint(_damage(path, error)) from error


def _check_seal(file: BinaryIO, path: Path, seal_needed: bool) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES - SEAL_BYTES))
    tail = file.read()
    end, seal = tail[:-SEAL_BYTES], tail[-SEAL_BYTES:]
    # Either of two marks tells a sealed file, so that no one byte hides it.
    if tail[-END_BYTES:].startswith(END) or not (END in tail or seal.startswith(MARK)):
        if seal_needed:
            raise DamagedCheckpoint(_damage(path, "no sha256 stands at its end"))
        return
    sha256, left = hashlib.sha256(), size - SEAL_BYTES - 2
    file.seek(0)
    while left > 0 and (block := file.read(min(BLOCK, left))):
        sha256.update(block)
        left -= len(block)
    length = int.from_bytes(end[-2:], "little") ^ SEAL_BYTES  # 0, as it was hashed, unless it is damaged itself
    sha256.update(length.to_bytes(2, "little"))
    found, expected = sha256.hexdigest(), seal.removeprefix(MARK).decode("latin-1")
    if found != expected:
        raise DamagedCheckpoint(f"{str(path)!r} is damaged (sha256 {found}, expected {ascii(expected)[1:-1]})")


def _damage(path: Path, reason: object) -> str:
    return f"cannot read {str(path)!r}: cut off, damaged or not a checkpoint ({printable(str(reason))})"


def _refusal(path: Path, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    found = f" ({named[1]})" if named else ""
    return (
        f"{str(path)!r} is refused: it is a pickle of Python objects{found}, and loading such a file can run any code "
        "hidden in it. Dassl's own checkpoints of runs with warm-up are like this, since they hold the scheduler "
        "object. If you trust where the file comes from, write a plain copy once, with\n"
        f'  python -c "from dho_plugin.host import convert_trusted_checkpoint as convert; '
        f'convert({str(path)!r}, {f"{path}.converted"!r})"\n'
        "and put it in the place of the old one"
    )
