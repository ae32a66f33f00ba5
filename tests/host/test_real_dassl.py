"""The contract and trainer tests once more, on real Dassl: DASSL_HOME=<checkout> pytest -m real_dassl tests/host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DASSL_HOME = os.environ.get("DASSL_HOME", "")
REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.real_dassl,
    pytest.mark.skipif(not DASSL_HOME, reason="DASSL_HOME does not name a Dassl checkout"),
]


def _python(host: str, *arguments: str) -> str:
    path = [DASSL_HOME, str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "DHO_HOST": host, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "paths",
    [
        ("tests/host/contract",),
        ("tests/test_trainers.py", "tests/test_attach.py", "tests/test_datasets.py", "tests/test_cli.py"),
        (
            "tests/test_folder.py",
            "tests/test_digits_dataset.py",
            "tests/test_catalogue.py",
            "tests/test_split_cache.py",
        ),
    ],
    ids=["contract", "trainers", "datasets"],
)
def test_the_suite_passes_on_real_dassl_too(paths: tuple[str, ...]) -> None:
    suite = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)
    collected = re.search(r"(\d+) tests? collected", _python("embedded", *suite, "--collect-only"))
    summary = _python("dassl", *suite).splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert collected and passed, summary
    assert passed[1] == collected[1], f"{collected[1]} tests on the embedded engine, but on Dassl: {summary}"


def test_the_host_names_dassl_and_what_was_mended() -> None:
    shown = _python("auto", "-c", "from dho_plugin import host; print(host.HOST, *host.MENDS, sep='|')")
    assert re.fullmatch(r"dassl [\d.]+\|.*warm-up state\|checkpoints\|load_model\n", shown)
