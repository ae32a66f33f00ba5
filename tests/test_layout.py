"""Rules of the source tree: one seam for each foreign library, and who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("dho_plugin/**/*.py"), *ROOT.glob("trainers/*.py")])
CORE = ("contenders", "heads", "losses", "interpolation", "student")


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, and ".name" for modules of the project."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            found.add(f".{module}" if node.level else module)
    return found


def mentions(path: Path, name: str) -> bool:
    """Whether a string of the file names a module of that package (imported by name)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "import_module"]
    constants = [a.value for call in calls for a in call.args if isinstance(a, ast.Constant)]
    return any(str(value).partition(".")[0] == name for value in constants)


@pytest.mark.parametrize(
    ("library", "seam"),
    [("dassl", "host.py"), ("open_clip", "vlm.py")],
)
def test_one_seam_for_each_foreign_library(library, seam):
    importers = {path.name for path in SOURCES if library in imports(path) or mentions(path, library)}
    assert importers == {seam}


@pytest.mark.parametrize("module", CORE)
def test_the_core_needs_torch_alone(module):
    allowed = {"__future__", "math", "typing", "torch", ".errors", *(f".{name}" for name in CORE)}
    assert imports(ROOT / "dho_plugin" / f"{module}.py") <= allowed


def test_only_trainers_config_and_command_line_know_a_configuration():
    knowing = {path.name for path in ROOT.glob("dho_plugin/*.py") if ".config" in imports(path)}
    assert knowing == {"cli.py", "registration.py"}  # the latter adds a trainer's own keys


def test_trainers_do_not_import_each_others_methods():
    shared = {".base", ".dho", ".caspl", ".data", ".evaluated", ".resumable", ".section", ".stepping", ".storing"}
    shared |= {".student"}
    methods = {f".{path.stem}" for path in ROOT.glob("trainers/*.py")} - shared
    for path in ROOT.glob("trainers/*.py"):
        assert not imports(path) & methods, path.name


def test_no_device_is_named_in_passing():
    for path in SOURCES:
        assert ".cuda()" not in path.read_text(encoding="utf-8"), path.name
