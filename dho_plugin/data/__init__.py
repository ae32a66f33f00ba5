"""python -m dho_plugin data SUBCOMMAND: what is below a root, and what can be downloaded to it."""

from __future__ import annotations

import importlib

from ..errors import UsageError, did_you_mean

SUBCOMMANDS = {
    "doctor": "say of each dataset below a folder what is there and what is missing",
    "fetch": "download datasets into CoOp's layouts; print what must be done by hand",
}


def main(argv: list[str]) -> int:
    """Hand over to a subcommand.

    Raises:
        UsageError: there is no such subcommand.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m dho_plugin data SUBCOMMAND [options]\n")
        for name, purpose in SUBCOMMANDS.items():
            print(f"  {name:13} {purpose}")
        return 0 if argv else 2
    if argv[0] not in SUBCOMMANDS:
        raise UsageError(
            f"unknown subcommand {argv[0]!r} of data: expected one of {list(SUBCOMMANDS)}."
            f"{did_you_mean(argv[0], SUBCOMMANDS)}"
        )
    return importlib.import_module(f".{argv[0]}", __name__).main(argv[1:])
