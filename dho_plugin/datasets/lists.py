"""Lists in text files, one entry a line, as users and other programs write them."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError


def read_lines(file: Path) -> list[str]:
    """The lines of a file in UTF-8, with a byte order mark or without, whatever ends them.

    Raises:
        UsageError: it is not UTF-8; it gives the line number.
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}, line {line}: not UTF-8 ({error.reason}): save it anew as such") from error
