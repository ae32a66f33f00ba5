"""Archives unpacked with no way out of their folder: tar (gz, bz2, xz, plain) and zip.

No link is ever made on disk and no mode or owner is taken over: a member is a folder, or a file whose bytes are
copied. Where Python has tarfile's own filter (3.12, 3.11.4, 3.10.12) a tar member must pass that, too.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import UsageError
from ..predicting import printable

TEMPORARY = ".unpack-"
# Pictures hardly compress, so an archive of them that grows tenfold is a bomb; a small one may (lists of names).
RATIO = 10
SMALL = 2**26
MOST = 2**39  # bytes; the largest of the datasets has 1.5e11
MOST_MEMBERS = 4_000_000
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError,
    RuntimeError,  # an encrypted member, or a compression that zipfile does not know
)  # fmt: skip


def unpack(archive: Path, moves: Sequence[tuple[str, Path]], inner: str = "") -> None:
    """Unpack beside the places, then move there: a place is whole or not there, and one that is there is left alone.

    Args:
        moves: (path inside the archive, its place), the places all in one folder.
        inner: path of an archive inside the archive, which is unpacked in its stead.

    Raises:
        UsageError: no archive, a broken one, a member that leads out or is neither file nor folder (it is named), one
            that grows past the limits, a path that it does not have, or an error of the disk.
    """
    above = moves[0][1].parent
    try:
        above.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=above) as temporary:
            folder = Path(temporary, "outer")
            extract(archive, folder)
            if inner:
                extract(_inside(archive, folder, inner), Path(temporary, "inner"))
                folder = Path(temporary, "inner")
            missing = [(_inside(archive, folder, path), place) for path, place in moves if not occupied(place)]
            for path, place in missing:
                os.rename(path, place)
    except OSError as error:
        raise UsageError(f"{_name(archive)} could not be unpacked into {_name(above)}: {error}") from error


def occupied(place: Path) -> bool:
    """Whether a file, or a folder that is not empty, is there."""
    return any(place.iterdir()) if place.is_dir() else place.exists()


def extract(archive: Path, folder: Path) -> None:
    """All members of an archive into a new folder; raises as unpack."""
    folder.mkdir()
    extraction = _Extraction(archive, folder)
    try:
        if tarfile.is_tarfile(archive):
            extraction.tar()
        elif zipfile.is_zipfile(archive):
            extraction.zip()
        else:
            raise UsageError(f"{_name(archive)} is neither a tar nor a zip archive")
    except BROKEN as error:
        raise UsageError(
            f"{_name(archive)} is broken at member {printable(repr(extraction.at))} ({type(error).__name__}: {error})"
        ) from error


class _Extraction:
    """The members of one archive, checked and written one by one."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.limit = min(MOST, max(SMALL, RATIO * archive.stat().st_size))
        self.total = self.members = 0
        self.at = ""
        self.links: dict[PurePosixPath, bool] = {}  # files so far, and whether they came as a link

    def tar(self) -> None:
        data_filter = getattr(tarfile, "data_filter", None)
        with tarfile.open(self.archive, "r:*") as tar:
            for member in tar:
                path = self.check(member.name, member.size)
                if not (member.isreg() or member.isdir() or member.islnk()):
                    self.refuse("is a symbolic link, a device or a pipe")
                if data_filter is not None:
                    data_filter(member, str(self.folder))
                if member.isdir():
                    (self.folder / path).mkdir(parents=True, exist_ok=True)
                    continue
                self.note(path, link=member.islnk())
                if member.islnk():
                    self.copy(member.linkname, path)
                else:
                    stream = tar.extractfile(member)
                    assert stream is not None  # as it is a regular file
                    self.write(stream, path)
            # tarfile takes a broken header for the end; a whole archive ends with zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("what follows is no member")

    def zip(self) -> None:
        with zipfile.ZipFile(self.archive) as zip_:
            for member in zip_.infolist():
                path = self.check(member.filename, member.file_size)
                if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    self.refuse("is a symbolic link, a device or a pipe")
                if member.is_dir():
                    (self.folder / path).mkdir(parents=True, exist_ok=True)
                    continue
                self.note(path, link=False)
                with zip_.open(member) as stream:
                    self.write(stream, path)

    def check(self, name: str, size: int) -> PurePosixPath:
        """The path of a member, once its name and the running totals are found harmless."""
        self.at = name
        if any(unicodedata.category(char) == "Cc" for char in name):
            self.refuse("has a control character in its name")
        slashed = name.replace("\\", "/")
        if slashed.startswith("/") or (slashed[1:2] == ":" and slashed[0].isalpha()):
            self.refuse("has an absolute name")
        path = PurePosixPath(slashed)
        if ".." in path.parts:
            self.refuse("leads out of the folder with '..'")
        self.members += 1
        self.total += size
        if self.total > self.limit or self.members > MOST_MEMBERS:
            self.refuse(
                f"brings it to {self.total:,} bytes in {self.members:,} members, of at most {self.limit:,} and "
                f"{MOST_MEMBERS:,}: the archive has {self.archive.stat().st_size:,} bytes, so this is a bomb"
            )
        return path

    def note(self, path: PurePosixPath, link: bool) -> None:
        """Remember a file; a later one of the same name replaces it, unless one of the two is a link."""
        if path in self.links and (link or self.links[path]):
            self.refuse("comes twice, once as a link")
        self.links[path] = link

    def copy(self, target: str, path: PurePosixPath) -> None:
        """A hard link, which may only be to a file that came before: a copy of that."""
        if PurePosixPath(target) == path or PurePosixPath(target) not in self.links:
            self.refuse(f"is a link to {printable(repr(target))}, which is no earlier file of the archive")
        with (self.folder / target).open("rb") as stream:
            self.write(stream, path)

    def write(self, stream: IO[bytes], path: PurePosixPath) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            shutil.copyfileobj(stream, file, 2**20)

    def refuse(self, why: str) -> None:
        raise UsageError(f"{_name(self.archive)} is not unpacked: its member {printable(repr(self.at))} {why}")


def _inside(archive: Path, folder: Path, path: str) -> Path:
    if not (folder / path).exists():
        there = sorted(entry.name for entry in folder.iterdir())[:10]
        raise UsageError(f"{_name(archive)} has no {path}; at its top are {printable(str(there))}")
    return folder / path


def _name(path: Path) -> str:
    return printable(str(path))
