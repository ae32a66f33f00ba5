"""The default configuration and the order in which files and options override it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dho_plugin import host


def test_defaults_that_coop_relies_on() -> None:
    cfg = host.get_cfg_default()
    assert tuple(cfg.INPUT.SIZE) == (224, 224)
    assert cfg.OUTPUT_DIR == "./output"
    assert cfg.OPTIM.LR_SCHEDULER == "single_step"
    assert cfg.OPTIM.WARMUP_EPOCH == -1
    assert cfg.DATALOADER.TRAIN_U.SAME_AS_X is True
    assert cfg.TRAIN.COUNT_ITER == "train_x"
    assert cfg.TEST.FINAL_MODEL == "last_step"
    assert cfg.DATASET.NUM_SHOTS == -1


def test_each_call_gives_an_own_copy_of_the_mutable_default() -> None:
    first = host.get_cfg_default()
    first.OPTIM.LR = 123.0
    assert host.get_cfg_default().OPTIM.LR == host.cfg_default.OPTIM.LR == 0.0003
    host.cfg_default.TRAINER.NAME = "Added"
    try:
        assert host.get_cfg_default().TRAINER.NAME == "Added"
    finally:
        host.cfg_default.TRAINER.NAME = ""


def test_later_files_and_options_win(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("DATASET:\n  NAME: FromDataset\nOPTIM:\n  LR: 1.0\n  MAX_EPOCH: 7\n")
    (tmp_path / "trainer.yaml").write_text("OPTIM:\n  LR: 2.0\n  NAME: sgd\nINPUT:\n  SIZE: (32, 32)\n")
    cfg = host.get_cfg_default()
    cfg.merge_from_file(str(tmp_path / "dataset.yaml"))
    cfg.merge_from_file(str(tmp_path / "trainer.yaml"))
    cfg.merge_from_list(["OPTIM.NAME", "adamw"])
    assert (cfg.DATASET.NAME, cfg.OPTIM.MAX_EPOCH) == ("FromDataset", 7)
    assert (cfg.OPTIM.LR, tuple(cfg.INPUT.SIZE)) == (2.0, (32, 32))
    assert cfg.OPTIM.NAME == "adamw"


def test_unknown_keys_and_wrong_types_are_refused() -> None:
    cfg = host.get_cfg_default()
    with pytest.raises((KeyError, AssertionError)):
        cfg.merge_from_list(["OPTIM.LEARNING_RATE", 0.1])
    with pytest.raises(ValueError):
        cfg.merge_from_list(["OPTIM.MAX_EPOCH", "ten"])


def test_clean_cfg_keeps_the_name_and_the_own_section() -> None:
    cfg = host.get_cfg_default()
    for section in ("MINE", "OTHER"):
        cfg.TRAINER[section] = type(cfg)({"A": 1})
    host.clean_cfg(cfg, "Mine")
    assert sorted(cfg.TRAINER) == ["MINE", "NAME"]
