"""Which engine serves: DHO_HOST, and what happens where Dassl is missing or broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dho_plugin import host


@pytest.fixture(autouse=True)
def no_dassl() -> Iterator[None]:
    """With a patch of its own: pytest's would keep this path for later tests where one of these adds to it."""
    with pytest.MonkeyPatch.context() as patch:
        hidden = ("dassl", "wilds")
        kept = [entry for entry in sys.path if not any(Path(entry, name).is_dir() for name in hidden)]
        patch.setattr(sys, "path", kept)
        patch.delenv("DHO_HOST", raising=False)
        for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
            patch.delitem(sys.modules, name)
        yield


@pytest.fixture
def broken_dassl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dassl").mkdir()
    (tmp_path / "dassl" / "__init__.py").write_text("__version__ = '0'\n")
    (tmp_path / "dassl" / "engine.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)


def _dassl_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "dassl"]


@pytest.mark.parametrize("choice", [None, "", "auto", "embedded"])
def test_the_embedded_engine_serves_where_dassl_is_missing(choice, monkeypatch: pytest.MonkeyPatch) -> None:
    if choice is not None:
        monkeypatch.setenv("DHO_HOST", choice)
    assert host._choose() == ("embedded", ())
    assert not _dassl_modules()


def test_dassl_asked_for_but_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHO_HOST", "dassl")
    with pytest.raises(ImportError, match=r"(?s)No module named 'dassl'.*git clone.*PYTHONPATH.*--no-build-isolation"):
        host._choose()


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHO_HOST", "embeded")
    with pytest.raises(ValueError, match="Did you mean 'embedded'"):
        host._choose()


def test_a_broken_dassl_gives_way_with_one_warning(broken_dassl) -> None:
    with pytest.warns(UserWarning, match="surely_not_installed") as caught:
        assert host._choose() == ("embedded", ())
    assert [str(w.message).count("\n") for w in caught] == [0]
    assert not _dassl_modules()


def test_a_broken_dassl_that_was_asked_for_is_an_error(broken_dassl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHO_HOST", "dassl")
    with pytest.raises(ImportError, match="surely_not_installed"):
        host._choose()
    assert not _dassl_modules()


def test_embedded_asked_for_does_not_touch_a_dassl_that_is_there(
    broken_dassl, monkeypatch: pytest.MonkeyPatch, recwarn
) -> None:
    monkeypatch.setenv("DHO_HOST", "embedded")
    assert host._choose() == ("embedded", ())
    assert not recwarn.list


def test_wilds_is_stubbed_only_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dassl.data.datasets.dg.wilds"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wilds.py").touch()
    host.stub_wilds()
    assert name not in sys.modules
    (tmp_path / "wilds.py").unlink()
    host.importlib.invalidate_caches()
    host.stub_wilds()
    stub = sys.modules.pop(name)
    assert stub.__path__ == []
    assert stub.__spec__ is not None


def test_a_mended_function_reaches_the_modules_that_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, other = (lambda: 0), (lambda: 1), (lambda: 2)
    user, bystander = ModuleType("user"), ModuleType("bystander")
    user.load, bystander.load = old, other
    monkeypatch.setitem(sys.modules, "user", user)
    monkeypatch.setitem(sys.modules, "bystander", bystander)
    host._replace_everywhere("load", old, new)
    assert (user.load, bystander.load) == (new, other)
