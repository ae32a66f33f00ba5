"""The one exception for mistakes a user can mend, and the wording of "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Wrong input: the message says what was given, what was expected and what to do."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'X'?" for the nearest known name, or "" where nothing is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


def check_choice(key: str, given: str, known: Iterable[str]) -> None:
    """Raise UsageError unless `given`, the value of the configuration key `key`, is one of the known ones."""
    if given not in known:
        raise UsageError(f"{key} {given!r}: expected one of {tuple(known)}.{did_you_mean(given, known)}")
