"""Checkpoint files: names, contents, safe loading, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dho_plugin import host


def _state(epoch: int = 3, **other) -> dict:
    model = nn.Linear(2, 2)
    return {
        "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()},
        "epoch": epoch,
        "optimizer": None,
        "scheduler": None,
        "val_result": None,
        **other,
    }


def test_file_and_pointer_are_named_as_in_dassl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "model"
    host.save_checkpoint(_state(3), str(folder))
    host.save_checkpoint(_state(4), str(folder), is_best=True)
    host.save_checkpoint(_state(5), str(folder), model_name="model-best.pth.tar")
    weights = ["model-3.safetensors", "model-4.safetensors", "model-best.pth.tar", "model-best.safetensors"]
    assert sorted(os.listdir(folder)) == ["checkpoint", *weights, "model.pth.tar-3", "model.pth.tar-4"]
    assert (folder / "checkpoint").read_text() == "model-best.pth.tar\n"
    assert f"Checkpoint saved to {folder / 'model.pth.tar-3'}\n" in capsys.readouterr().out
    assert host.load_checkpoint(str(folder / "model-best.pth.tar"))["epoch"] == 5


def test_the_best_checkpoint_is_a_copy(tmp_path: Path) -> None:
    host.save_checkpoint(_state(4), str(tmp_path), is_best=True)
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-4\n"
    assert (tmp_path / "model-best.pth.tar").read_bytes() == (tmp_path / "model.pth.tar-4").read_bytes()
    assert (tmp_path / "model-best.safetensors").read_bytes() == (tmp_path / "model-4.safetensors").read_bytes()


def test_module_prefix_is_removed_unless_told_otherwise(tmp_path: Path) -> None:
    host.save_checkpoint(_state(1), str(tmp_path))
    host.save_checkpoint(_state(2), str(tmp_path), remove_module_from_keys=False)
    assert list(host.load_checkpoint(str(tmp_path / "model.pth.tar-1"))["state_dict"]) == ["weight", "bias"]
    prefixed = host.load_checkpoint(str(tmp_path / "model.pth.tar-2"))["state_dict"]
    assert list(prefixed) == ["module.weight", "module.bias"]


def test_a_numpy_result_does_not_spoil_safe_loading(tmp_path: Path) -> None:
    host.save_checkpoint(_state(1, val_result=np.float64(12.5)), str(tmp_path))
    result = torch.load(tmp_path / "model.pth.tar-1", weights_only=True)["val_result"]
    assert type(result) is float
    assert result == 12.5


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = _state(1)
    host.save_checkpoint(state, str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_, file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        host.save_checkpoint(state, str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_loading_names_the_file_that_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="None"):
        host.load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match="absent"):
        host.load_checkpoint(str(tmp_path / "absent"))
    host.save_checkpoint(_state(1), str(tmp_path))
    whole = (tmp_path / "model.pth.tar-1").read_bytes()
    (tmp_path / "model.pth.tar-1").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match=r"model\.pth\.tar-1.*cut off"):
        host.load_checkpoint(str(tmp_path / "model.pth.tar-1"))


class _Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save(_state(val_result=_Canary(tmp_path / "canary")), tmp_path / "evil")
    with pytest.raises(pickle.UnpicklingError, match="any code"):
        host.load_checkpoint(str(tmp_path / "evil"))
    assert not (tmp_path / "canary").exists()


def _legacy_checkpoint(path: Path) -> None:
    """Write what Dassl writes by itself for a run with warm-up: the successor is an object, not a state dict."""
    optim = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    successor = CosineAnnealingLR(optim, 10)
    optim.step()
    successor.step()
    scheduler = {"successor": successor, "warmup_epoch": 1, "cons_lr": 0.01, "last_epoch": 1, "base_lrs": [0.1]}
    torch.save(_state(2, scheduler=scheduler, optimizer=optim.state_dict(), val_result=np.float64(7)), path)


def test_a_legacy_checkpoint_is_refused_with_the_way_out(tmp_path: Path) -> None:
    old, new = tmp_path / "model.pth.tar-2", tmp_path / "model.pth.tar-2.converted"
    _legacy_checkpoint(old)
    with pytest.raises(
        pickle.UnpicklingError, match=r"(?s)pickle.*warm-up.*trust.*convert_trusted_checkpoint"
    ) as error:
        host.load_checkpoint(str(old))
    command = str(error.value).split('python -c "')[1].split('"\n')[0]
    exec(command, {})
    state = host.load_checkpoint(str(new))
    assert (state["epoch"], state["val_result"]) == (2, 7.0)
    assert state["scheduler"]["successor"]["last_epoch"] == 1
    assert state["scheduler"]["warmup_epoch"] == 1


def test_a_converted_checkpoint_resumes_the_schedule(config, tmp_path: Path) -> None:
    _legacy_checkpoint(tmp_path / "model.pth.tar-2")
    host.convert_trusted_checkpoint(tmp_path / "model.pth.tar-2", tmp_path / "model.pth.tar-2")
    cfg = config("OPTIM.MAX_EPOCH", 10, "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant")
    optim = host.build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM)
    sched = host.build_lr_scheduler(optim, cfg.OPTIM)
    state = host.load_checkpoint(str(tmp_path / "model.pth.tar-2"))
    optim.load_state_dict(state["optimizer"])
    sched.load_state_dict(state["scheduler"])
    optim.step()
    sched.step()
    assert optim.param_groups[0]["lr"] == pytest.approx(0.1 * (1 + np.cos(0.2 * np.pi)) / 2)


def test_a_scheduler_object_in_a_state_dict_is_refused(config) -> None:
    cfg = config("OPTIM.WARMUP_EPOCH", 1)
    optim = host.build_optimizer(nn.Linear(1, 1), cfg.OPTIM)
    sched = host.build_lr_scheduler(optim, cfg.OPTIM)
    with pytest.raises(ValueError, match=r"CosineAnnealingLR.*convert_trusted_checkpoint"):
        sched.load_state_dict({**sched.state_dict(), "successor": CosineAnnealingLR(optim, 2)})


def test_pretrained_weights_load_where_they_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"module.0.weight": torch.full((2, 2), 5.0), "0.bias": torch.zeros(7), "other": torch.zeros(1)}
    torch.save({"state_dict": source}, tmp_path / "wrapped.pth")
    torch.save({"0.weight": torch.full((2, 2), 6.0)}, tmp_path / "bare.pth")
    model = nn.Sequential(nn.Linear(2, 2))
    bias = model[0].bias.detach().clone()
    host.load_pretrained_weights(model, str(tmp_path / "wrapped.pth"))
    assert model[0].weight.unique().tolist() == [5.0]
    assert torch.equal(model[0].bias, bias)
    assert "['0.bias', 'other']" in capsys.readouterr().out
    host.load_pretrained_weights(model, str(tmp_path / "bare.pth"))
    assert model[0].weight.unique().tolist() == [6.0]
    with pytest.warns(UserWarning, match="wrapped"):
        host.load_pretrained_weights(nn.Conv2d(1, 1, 1), str(tmp_path / "wrapped.pth"))
