"""One file of the table brought to this machine: whole and of the published size and checksum, or not at all."""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from .. import __version__
from ..datasets.catalogue import SPLITS, number_of_classes, read_split
from ..datasets.imagenet import read_classnames
from ..errors import UsageError
from ..predicting import printable
from .sources import CLASSNAMES, DRIVE, Source, described_by

CHUNK = 2**20
TIMEOUT = 60  # seconds without a byte
HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL)


def download(source: Source, folder: Path) -> Path:
    """The checked file, in `folder` under its name: as it lies there, or downloaded.

    The bytes of an earlier attempt, in <file>.part, are kept where the server can go on from them. The caller sees to
    it that no other process uses the folder.

    Raises:
        UsageError: it is there and wrong, it cannot be had, or what came is not the file.
    """
    path = folder / source.file
    if path.exists():
        try:
            check(source, path)
            check_form(source, path)
        except UsageError as error:
            raise UsageError(f"{error} Delete {printable(str(path))}, or put the right file there.") from error
        return path
    if not source.url:
        raise UsageError(f"{source.file} cannot be downloaded. {source.elsewhere}".rstrip())
    part = folder / f"{source.file}.part"
    try:
        _from_drive(source, part) if source.url.startswith(DRIVE) else _over_http(source, part)
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(f"{source.file} from {source.link}: {type(error).__name__}: {error}.") from error
    try:
        check(source, part)
        os.replace(part, path)
        check_form(source, path)
    except UsageError:  # from a wrong file nothing can be resumed
        part.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise
    return path


def check(source: Source, path: Path) -> None:
    """Size and checksum of a file.

    Raises:
        UsageError: they are not those of the table, or it is an HTML page; with what was expected and what there is.
    """
    size = path.stat().st_size
    kind, _, expected = source.checksum.partition(":")
    kind = kind or "sha256"
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        start = file.read(4096)
        file.seek(0)
        for block in iter(lambda: file.read(CHUNK), b""):
            digest.update(block)
    if HTML.match(start):
        raise UsageError(
            f"{source.file} is an HTML page, as a quota or a login gives, and begins with "
            f"{printable(start[:60].decode(errors='replace'))!r}."
        )
    if source.bytes not in (None, size) or expected not in ("", digest.hexdigest()):
        raise UsageError(
            f"{source.file} is not the published file: {size:,} bytes, {kind} {digest.hexdigest()}; "
            f"expected {source.expected()}."
        )
    if not expected:
        print(f"  {source.file}: {size:,} bytes, sha256 {digest.hexdigest()}; none is published to compare it with")


def check_form(source: Source, path: Path) -> None:
    """What can be told of CoOp's own lists, which have no published checksum: their form and their numbers.

    Raises:
        UsageError: a split file of other numbers than the published ones, class names that are not a thousand.
    """
    described = described_by(source)
    if described is not None:
        file, rows = read_split(path.parent, described)
        counts = (number_of_classes(rows, file), *(len(rows[split]) for split in SPLITS))
        if counts != described[-4:]:
            raise UsageError(
                f"{source.file} is not CoOp's: it has {counts} classes, training, validation and test images; "
                f"expected {described[-4:]}."
            )
    elif source.file == CLASSNAMES and len(read_classnames(path)) != 1000:
        raise UsageError(f"{source.file} names {len(read_classnames(path)):,} classes; expected 1,000.")


def _from_drive(source: Source, part: Path) -> None:
    try:
        import gdown
    except ImportError as error:
        raise UsageError(f"{source.file} lies on Google Drive, which needs gdown: pip install gdown") from error
    try:
        # Its own partial files lie beside `part` and are gone on from; a `part` that is there is whole.
        came = gdown.download(id=source.url[len(DRIVE) :], output=str(part), quiet=not sys.stderr.isatty(), resume=True)
    except OSError:
        raise
    except Exception as error:  # its own exceptions have no common base that is in all of its versions
        why = " ".join(str(error).split())
        raise UsageError(f"{source.file} from {source.link}: {type(error).__name__}: {why}") from error
    if came is None or not part.is_file():
        raise UsageError(f"{source.file} from {source.link}: Google Drive gave no file")


def _over_http(source: Source, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    if source.bytes is not None and have > source.bytes:
        part.unlink()
        have = 0
    if have and have == source.bytes:
        return
    response, have = _open(source, have)
    with response:
        total = None if response.length is None else have + response.length
        if response.headers.get_content_type() == "text/html":  # before what there is already is written over
            raise UsageError(f"{source.file} from {source.link}: the server sends an HTML page instead of the file.")
        if source.bytes is not None and total not in (None, source.bytes):
            raise UsageError(f"{source.file} from {source.link}: the server has {total:,} bytes of it.")
        got = _write(response, part, have, total if source.bytes is None else source.bytes)
    if got < (source.bytes or total or 0):
        raise UsageError(
            f"{source.file} from {source.link}: the connection ended after {got:,} bytes. They are kept: the same "
            "command goes on from there."
        )


def _open(source: Source, have: int) -> tuple[http.client.HTTPResponse, int]:
    """The answer to a request for all from byte `have` on, and the byte it really starts from: `have` or 0."""
    headers = {"User-Agent": f"dho_plugin/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(source.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(source, 0)
        raise
    if not have or response.status == http.HTTPStatus.OK:  # the latter: ranges are not served
        return response, 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        response.close()
        return _open(source, 0)
    return response, have


def _write(response: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> int:
    """Append to, or begin, the partial file; its size then. What goes past `total` is not taken."""
    terminal = sys.stderr.isatty()
    name = part.name.removesuffix(".part")
    bar = tqdm(desc=f"  {name}", total=total, initial=have, unit="B", unit_scale=True, disable=not terminal)
    tenth = 10 * have // total if total else 0
    with bar, part.open("ab" if have else "wb") as file:
        while block := response.read(CHUNK):
            have += len(block)
            if total is not None and have > total:
                raise UsageError(f"{name}: the server sends more than {total:,} bytes.")
            file.write(block)
            bar.update(len(block))
            if total and not terminal and 10 * have // total > tenth:
                tenth = 10 * have // total
                print(f"  {name}: {have:,} of {total:,} bytes", flush=True)
    return have
