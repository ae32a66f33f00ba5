"""One line of the tables of guards.py."""

from __future__ import annotations

from typing import NamedTuple


class Guard(NamedTuple):
    """A line of defence.

    Attributes:
        row: of the fault matrix. what: the guard in a few words. file: where it stands. text: what stands there, once.
        instead: the same without the guard. test: pytest's name of the test that fails then.
    """

    row: int
    what: str
    file: str
    text: str
    instead: str
    test: str
