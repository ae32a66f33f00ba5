"""Stored features in awkward runs: odd batches, shared files, other processes, a killed run, merged tokens."""

from __future__ import annotations

import pickle
import shutil

import pytest
import runs
import torch
from test_stored_features import Looked, learned, train, views_of
from torch.utils.data import DataLoader


def check_same(live: list[torch.Tensor], stored: list[torch.Tensor]) -> None:
    for one, other in zip(live, stored, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


UNEVEN = "DATALOADER.TRAIN_U.SAME_AS_X False DATALOADER.TRAIN_U.BATCH_SIZE"
CASES = {
    "files in both sets": "TRAINER.DHO.UNLABELED_POOL union",
    "more in a batch than unlabelled images": f"{UNEVEN} 40",
    "more in a batch than labelled images": "DATALOADER.TRAIN_X.BATCH_SIZE 50",
    "a last pass cut short": f"{UNEVEN} 5 STORE.VIEWS 2 OPTIM.MAX_EPOCH 5",
    "no crop": "INPUT.TRANSFORMS ['random_flip','normalize']",
    "files decoded in the main process": "INPUT.READER cuda DATALOADER.NUM_WORKERS 1",
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_awkward_runs_learn_the_same_and_look_once(workspace, tmp_path, monkeypatch, options):
    live = train(workspace, "LinearProbeDHO", tmp_path / "live", options)
    looked = Looked(monkeypatch)
    stored = f"{options} STORE.DIR {tmp_path / 'store'}"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "stored", "", stored)
    trainer.train()
    check_same(live, learned(trainer))
    assert looked.views["teacher"] == looked.views["student"] == views_of(trainer)


@pytest.mark.parametrize("name", ["LinearProbeDHO", "VPTDHO"])
def test_loader_processes_may_be_spawned(workspace, tmp_path, monkeypatch, name):
    """What such a process is given survives pickling, as it would on its way there."""
    live = train(workspace, name, tmp_path / "live")

    def pickled(dataset, **options):
        return DataLoader(pickle.loads(pickle.dumps(dataset)), **options)

    monkeypatch.setattr("dho_plugin.stored_features.DataLoader", pickled)
    monkeypatch.setattr("dho_plugin.loaders.DataLoader", pickled)
    check_same(live, train(workspace, name, tmp_path / "stored", f"STORE.DIR {tmp_path / 'store'}"))


@pytest.mark.parametrize("begun", ["live", "stored", "store deleted since"])
def test_a_killed_run_goes_on(workspace, tmp_path, begun):
    epochs, folder = "OPTIM.MAX_EPOCH 3 TRAIN.CHECKPOINT_FREQ 1 ", tmp_path / "store"
    live = train(workspace, "PromptSRCDHO", tmp_path / "live", epochs)
    options = f"{epochs}STORE.DIR {folder}"
    killed = runs.make(workspace, "PromptSRCDHO", tmp_path / "a", "", epochs if begun == "live" else options)
    run_epoch = killed.run_epoch

    def stop() -> None:
        if killed.epoch == 1:
            raise KeyboardInterrupt
        run_epoch()

    killed.run_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    if begun == "store deleted since":
        shutil.rmtree(folder)
    again = runs.make(workspace, "PromptSRCDHO", tmp_path / "a", "", options)
    again.train()
    assert again.start_epoch == 1
    check_same(live, learned(again))


def test_a_run_reads_its_own_views_while_another_adds_to_the_store(workspace, tmp_path):
    live = train(workspace, "LinearProbeDHO", tmp_path / "live")
    options = f"STORE.DIR {tmp_path / 'store'}"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", options)
    before_train = trainer.before_train

    def then_another() -> None:
        before_train()
        runs.make(workspace, "LinearProbeDHO", tmp_path / "b", "", f"{options} SEED 5").before_train()

    trainer.before_train = then_another
    trainer.train()
    check_same(live, learned(trainer))


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF"])
def test_a_cache_of_merged_tokens_is_not_filled_from_the_store(workspace, tmp_path, name):
    caches = []
    for run, store in (("live", ""), ("stored", f"STORE.DIR {tmp_path / 'store'}")):
        options = f"TRAINER.TIPADAPTER.CHOOSE fixed MODEL.TOKEN_MERGING 2 {store}"
        trainer = runs.make(workspace, name, tmp_path / run, "", options)
        trainer.train()
        caches.append([value.clone() for value in trainer.ce_head.state_dict().values() if value.is_floating_point()])
    check_same(*caches)
