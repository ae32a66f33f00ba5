"""The exact states of a run: which are kept, which one is gone on from, and the random generators in them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import children
import numpy as np
import pytest
import torch
from children import fork

from dho_plugin import sealed
from dho_plugin.errors import UsageError
from dho_plugin.sealed import UnsafeCheckpoint, save_tensors
from dho_plugin.states import States, random_states, restore_random_states


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((5000,), float(step)), "nested": [(None, b"x", {"lr": 0.1})]}


def saved(folder: Path, *steps: int) -> States:
    states = States(folder / "state")
    for step in steps:
        states.save(state(step), step)
    return states


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "state").iterdir())


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_the_newest_comes_back_and_one_before_it_is_kept(tmp_path, capsys):
    assert States(tmp_path / "state").newest() is None and not (tmp_path / "state").exists()
    states = saved(tmp_path, 8, 9, 10)
    assert names(tmp_path) == ["step-000000009.pt", "step-000000010.pt"]
    found = States(tmp_path / "state").newest()
    assert found["nested"] == state(0)["nested"] and torch.equal(found["weights"], state(10)["weights"])
    saved(tmp_path, 10**9, 10**10)  # numbers, not names, are in order
    assert states.newest()["step"] == 10**10
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("position", [0, 50, 2000, 15000, -100, -92, -73, -60, -1])
def test_a_changed_byte_is_named_and_the_state_before_is_taken(tmp_path, capsys, position):
    saved(tmp_path, 1, 2)
    flip(tmp_path / "state" / "step-000000002.pt", position)
    states = States(tmp_path / "state")
    assert states.newest()["step"] == 1
    said = capsys.readouterr().out
    assert "step-000000002.pt' is damaged (sha256 " in said and said.endswith("; going on from step-000000001.pt\n")


@pytest.mark.parametrize("size", [0, 1, 100, 9000, -80, -1])
def test_a_cut_state_is_named_and_the_one_before_is_taken(tmp_path, capsys, size):
    saved(tmp_path, 1, 2)
    newest = tmp_path / "state" / "step-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:size] if size else b"")
    assert States(tmp_path / "state").newest()["step"] == 1
    assert "step-000000002.pt'" in (said := capsys.readouterr().out) and "going on from step-000000001.pt" in said


def test_a_damaged_state_is_not_the_one_that_is_kept(tmp_path):
    states = saved(tmp_path, 10, 20)
    flip(tmp_path / "state" / "step-000000020.pt", 500)
    assert states.newest()["step"] == 10
    states.save(state(25), 25)
    assert names(tmp_path) == ["step-000000010.pt", "step-000000025.pt"]
    saved(tmp_path, 20)  # a later file, whose future this run does not share
    assert names(tmp_path) == ["step-000000010.pt", "step-000000020.pt"]


def test_none_whole_is_an_error(tmp_path):
    saved(tmp_path, 1, 2)
    for name in names(tmp_path):
        flip(tmp_path / "state" / name, 700)
    with pytest.raises(
        UsageError, match=r"no state in .*state is whole: .*2\.pt' is damaged.*1\.pt' is damaged.*Delete"
    ):
        States(tmp_path / "state").newest()


@fork
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_kill_while_saving_leaves_the_state_before(tmp_path, capsys, where):
    saved(tmp_path, 1, 2)

    def work(reached) -> None:
        if where == "write":
            sealed._Hashed.write = lambda self, content: self.file.write(content[:7]) and reached()
        else:
            setattr(os, where, lambda *args: reached())
        saved(tmp_path, 3)

    children.killed(work)
    assert len(names(tmp_path)) == 3
    assert States(tmp_path / "state").newest()["step"] == 2
    assert names(tmp_path) == ["step-000000001.pt", "step-000000002.pt"]
    assert capsys.readouterr().out == ""


@fork
def test_a_full_disk_leaves_the_states_before(tmp_path):
    saved(tmp_path, 1, 2)
    error = children.error_of(lambda: saved(tmp_path, 3), 10_000)
    assert isinstance(error, UsageError)
    assert "step-000000003.pt (File too large): it needs about 20,000 bytes, and " in str(error)
    assert names(tmp_path) == ["step-000000001.pt", "step-000000002.pt"]


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def test_a_state_that_runs_code_is_refused(tmp_path, capsys):
    states, canary = saved(tmp_path, 1, 2), tmp_path / "canary"
    torch.save({**state(3), "x": Evil(canary)}, tmp_path / "state" / "step-000000003.pt")
    assert states.newest()["step"] == 2 and "no sha256" in capsys.readouterr().out
    save_tensors(tmp_path / "state" / "step-000000003.pt", {**state(3), "x": Evil(canary)})
    with pytest.raises(UnsafeCheckpoint, match=r"step-000000003\.pt' is refused: .*\(\w*\.?open\).*any code"):
        states.newest()
    assert not canary.exists()


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        ({"a": [1, np.zeros(3)]}, r"state\['a'\]\[1\] is a ndarray"),
        ({"a": {1: torch.optim.SGD}}, r"state\['a'\]\[1\] is a type"),
        ({Path("x"): 1}, "a key of state is a PosixPath"),
        ({"a": {1, 2}}, r"state\['a'\] is a set"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, odd, name):
    with pytest.raises(TypeError, match=name):
        States(tmp_path / "state").save(odd, 1)
    assert not (tmp_path / "state").exists()


def test_numpys_scalars_and_what_torch_makes_are_plain(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(0.1))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": torch.amp.GradScaler("cpu")}
    given = {"best": np.float32(0.5), **{name: part.state_dict() for name, part in parts.items()}}
    states = States(tmp_path / "state")
    states.save(given, np.int64(3))
    found = states.newest()
    assert type(found["best"]) is float and names(tmp_path) == ["step-000000003.pt"]
    for name, part in parts.items():
        part.load_state_dict(found[name])
    assert schedule.last_epoch == 1 and optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_clearing_removes_the_states_alone(tmp_path):
    states = saved(tmp_path, 1, 2)
    (tmp_path / "state" / f"step-000000003.pt.{sealed._HOST}-999999999.tmp").write_text("half")
    states.clear()
    assert not (tmp_path / "state").exists()
    states.clear()
    saved(tmp_path, 1)
    (tmp_path / "state" / "notes").write_text("mine")
    states.clear()
    assert names(tmp_path) == ["notes"] and states.newest() is None


def draws() -> list:
    return [torch.randn(3).tolist(), random.gauss(0, 1), np.random.normal(size=3).tolist(), random.random()]


def test_all_random_generators_go_on_where_they_were(tmp_path):
    for seed in range(3):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        random.gauss(0, 1), np.random.normal()  # each keeps a second number in hand
        States(tmp_path / str(seed)).save({"random": random_states()}, 0)
        wanted = [draws() for _ in range(300)]  # beyond the 624 words of one block
        torch.manual_seed(9), random.seed(9), np.random.seed(9)
        restore_random_states(States(tmp_path / str(seed)).newest()["random"])
        assert [draws() for _ in range(300)] == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generators_of_gpus_too(tmp_path):
    torch.rand(1, device="cuda")
    States(tmp_path).save({"random": random_states()}, 0)
    wanted = torch.randn(10, device="cuda")
    restore_random_states(States(tmp_path).newest()["random"])
    assert torch.equal(torch.randn(10, device="cuda"), wanted)


def test_the_states_of_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["first", "second"])
    kept, restored = random_states(), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *pair: restored.append(pair))
    restore_random_states(kept)
    assert restored == [("first", 0)]
