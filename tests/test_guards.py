"""The table of guards.py is in step with the code; `python tests/guards.py` shows that each test needs its guard."""

from __future__ import annotations

import ast
from functools import cache

import guards
import pytest
from guards import GUARDS, ROOT, ROWS, Guard


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_has_a_guard():
    assert {guard.row for guard in GUARDS} == set(ROWS)
    assert [guard.row for guard in GUARDS] == sorted(guard.row for guard in GUARDS)
    assert len({guard[:4] for guard in GUARDS}) == len({(guard.text, guard.test) for guard in GUARDS}) == len(GUARDS)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.row} {guard.what}")
def test_it_stands_there_once_and_its_test_too(guard):
    whole = (ROOT / guard.file).read_text(encoding="utf-8")
    assert whole.count(guard.text) == 1
    compile(whole.replace(guard.text, guard.instead), guard.file, "exec")
    file, name = guard.test.split("::")
    assert name.partition("[")[0] in functions(file)


def test_a_guard_that_no_test_needs_is_seen(tmp_path, monkeypatch, capsys):
    """On a project of one line, whose tests are run for true."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "limits.py").write_text("def check(n):\n    assert not n > 9\n")
    (tmp_path / "root" / "test_it.py").write_text(
        "import limits, pytest\n"
        "def test_a():\n    with pytest.raises(AssertionError):\n        limits.check(10)\n"
        "def test_b():\n    limits.check(1)\n"
        "def test_c():\n    raise ValueError\n"
    )
    monkeypatch.setattr(guards, "ROOT", tmp_path / "root")
    monkeypatch.setattr(guards, "COPIED", ("limits.py", "test_it.py"))

    def verdict(test: str, text: str = "n > 9") -> str:
        guard = Guard(1, "limit", "limits.py", text, "False", f"test_it.py::{test}")
        monkeypatch.setattr(guards, "GUARDS", (guard,))
        status = guards.main(["1"])
        said = capsys.readouterr().out.splitlines()[2].split("|")[-2].strip()
        assert status == (said != "fails without it")
        return said

    assert verdict("test_a") == "fails without it"
    assert verdict("test_b") == "STILL PASSES"
    assert verdict("test_c") == "FAILS ANYWAY"
    assert verdict("test_a", "n > 8") == "GUARD NOT FOUND"
