"""What an installation holds: built once from the checkout, without the network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    pytest.importorskip("setuptools", minversion="70.1")
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # a copy, since a build leaves its scraps beside what it builds
    for folder in ("dho_plugin", "trainers", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_nothing_but_the_package_is_claimed(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dho_plugin"}


def test_everything_that_runs_need_is_inside(wheel):
    names = set(wheel.namelist())
    for source in [*ROOT.glob("trainers/*.py"), *ROOT.glob("configs/**/*.yaml")]:
        assert f"dho_plugin/{source.relative_to(ROOT).as_posix()}" in names
    others = [*ROOT.glob("dho_plugin/weights/*.safetensors"), *ROOT.glob("dho_plugin/report/page.*s*")]
    for source in [*ROOT.glob("dho_plugin/**/*.py"), *others]:
        assert source.relative_to(ROOT).as_posix() in names


def test_no_dependency_is_an_address(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist")
    assert requirements and not [line for line in requirements if " @ " in line or "://" in line]


def test_shipped_weights_stay_small():
    total = sum(path.stat().st_size for path in ROOT.glob("dho_plugin/weights/*.safetensors"))
    assert 0 < total < 4 * 2**20


def test_the_one_import_line_works_in_an_uninstalled_clone():
    code = "import dho_plugin.trainers, dho_plugin.config as c; print(c.CONFIGS.is_dir())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("True"), done.stderr
