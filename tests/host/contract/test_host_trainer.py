"""Trainers: hooks and their order, log lines, the pairing of batches, evaluation and what is saved when."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch import nn

from dho_plugin import host

NUMBER = r"\d+\.\d{3} \(\d+\.\d{3}\)"
METRIC = r"\d+\.\d{4} \(\d+\.\d{4}\)"


def _train(cfg):
    trainer = host.build_trainer(cfg)
    trainer.train()
    return trainer


def _lines(captured: str, start: str) -> list[str]:
    return [line for line in captured.splitlines() if line.startswith(start)]


def test_hooks_are_called_in_order(config) -> None:
    epoch = ["before_epoch", "run_epoch", "forward_backward", "forward_backward", "after_epoch"]
    trainer = _train(config())
    assert trainer.hooks == ["before_train", *epoch, *epoch, "after_train", "test"]


def test_best_val_tests_after_each_epoch_before_saving(config) -> None:
    trainer = _train(config("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1))
    assert trainer.hooks[-4:] == ["after_epoch", "test", "after_train", "test"]


def test_attributes_that_trainers_use(config) -> None:
    trainer = _train(config())
    assert (trainer.start_epoch, trainer.epoch, trainer.max_epoch) == (0, 1, 2)
    assert (trainer.batch_idx, trainer.num_batches) == (1, 2)
    assert trainer.device == torch.device("cpu")
    assert (trainer.num_classes, trainer.num_source_domains) == (3, 0)
    assert trainer.lab2cname == {0: "ash", 1: "birch", 2: "cedar"}
    assert trainer.dm.test_loader is trainer.test_loader
    assert trainer.output_dir == trainer.cfg.OUTPUT_DIR
    assert trainer.get_model_names() == ["toy"]
    assert trainer._models["toy"] is trainer.model


@pytest.mark.parametrize(("count", "expected"), [("train_x", 2), ("train_u", 5), ("smaller_one", 2)])
def test_pairs_are_counted_as_configured_and_loaders_start_again(config, count: str, expected: int) -> None:
    trainer = _train(config("TRAINER.NAME", "ToyXU", "TRAIN.COUNT_ITER", count, "OPTIM.MAX_EPOCH", 1))
    assert trainer.num_batches == len(trainer.steps) == expected
    labelled = [index for batch_x, _ in trainer.steps for index in batch_x]
    # Ten labelled images give two batches of four, so that each pass shows eight different ones.
    passes = [labelled[start : start + 8] for start in range(0, len(labelled), 8)]
    assert all(len(set(one)) == len(one) for one in passes)
    assert all(len(batch_u) == 4 for _, batch_u in trainer.steps)


def test_an_unknown_count_is_refused(config) -> None:
    trainer = host.build_trainer(config("TRAINER.NAME", "ToyXU", "TRAIN.COUNT_ITER", "train_y"))
    with pytest.raises(ValueError):
        trainer.train()


def test_log_lines(config, capsys: pytest.CaptureFixture[str]) -> None:
    _train(config("TRAIN.PRINT_FREQ", 2))
    out = capsys.readouterr().out
    lines = _lines(out, "epoch [")
    assert len(lines) == 2
    pattern = (
        rf"epoch \[2/2\] batch \[2/2\] time {NUMBER} data {NUMBER} loss {METRIC} acc {METRIC} "
        r"lr 5\.0000e-02 eta 0:00:00"
    )
    # The rate shown for the last batch of epoch 1 is already that of the next epoch: the step comes first.
    assert re.fullmatch(pattern, lines[0].replace("epoch [1/2]", "epoch [2/2]"))
    assert re.fullmatch(pattern.replace(r"5\.0000e-02", r"0\.0000e\+00"), lines[1])
    assert "Finish training\nDeploy the last-epoch model\nEvaluate on the *test* set\n=> result\n* total: 6\n" in out
    assert re.search(r"^Elapsed: 0:00:\d\d$", out, re.MULTILINE)


def test_short_epochs_are_logged_batch_by_batch(config, capsys: pytest.CaptureFixture[str]) -> None:
    _train(config("OPTIM.MAX_EPOCH", 1))
    assert [line.split(" time")[0] for line in _lines(capsys.readouterr().out, "epoch [")] == [
        "epoch [1/1] batch [1/2]",
        "epoch [1/1] batch [2/2]",
    ]


def test_scalars_are_written_under_dassls_tags(config, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = host.build_trainer(config("OPTIM.MAX_EPOCH", 1))
    written = []
    monkeypatch.setattr(trainer, "write_scalar", lambda *call: written.append((call[0], call[2])))
    trainer.train()
    assert written[:3] == [("train/loss", 0), ("train/acc", 0), ("train/lr", 0)]
    assert written[3:6] == [("train/loss", 1), ("train/acc", 1), ("train/lr", 1)]
    assert written[6:] == [("test/accuracy", 0), ("test/error_rate", 0), ("test/macro_f1", 0)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(config, bad: float) -> None:
    trainer = host.build_trainer(config())
    before = trainer.model[1].weight.detach().clone()
    with pytest.raises(FloatingPointError, match="infinite or NaN"):
        trainer.model_backward_and_update(trainer.model[1].weight.sum() * bad)
    assert torch.equal(trainer.model[1].weight, before)


def test_backward_and_update_takes_one_step_from_zero_gradients(config) -> None:
    trainer = host.build_trainer(config("OPTIM.WEIGHT_DECAY", 0.0))
    bias = trainer.model[1].bias
    before = bias.detach().clone()
    bias.grad = torch.full_like(bias, 100.0)
    trainer.model_backward_and_update(bias.sum())
    torch.testing.assert_close(bias, before - 0.1)


def test_modes_and_names(config) -> None:
    trainer = host.build_trainer(config())
    other = nn.Dropout()
    trainer.register_model("other", other)
    trainer.set_model_mode("eval")
    assert not (trainer.model.training or other.training)
    trainer.set_model_mode("train", "other")
    assert (trainer.model.training, other.training) == (False, True)
    trainer.set_model_mode("test", ["other"])
    assert not other.training
    with pytest.raises(KeyError):
        trainer.set_model_mode("sleep")
    with pytest.raises((KeyError, AssertionError)):
        trainer.get_model_names(["absent"])
    with pytest.raises((KeyError, AssertionError)):
        trainer.register_model("other", other)
    # A model without optimiser and schedule is updated as a matter of course.
    trainer.model_update()
    trainer.update_lr()


def test_models_cannot_be_registered_before_init() -> None:
    class Hasty(host.TrainerBase):
        def __init__(self) -> None:
            self.register_model("early", nn.Linear(1, 1))

    with pytest.raises(AttributeError, match=r"super\(\)\.__init__"):
        Hasty()


def test_testing_returns_the_accuracy_of_the_split(config, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = host.build_trainer(config("TEST.SPLIT", "val"))
    with torch.no_grad():
        trainer.model[1].weight.zero_()
        trainer.model[1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    capsys.readouterr()
    assert trainer.test() == pytest.approx(100 * 2 / 6)
    assert trainer.test(split="test") == pytest.approx(100 * 2 / 6)
    trainer.val_loader = None
    trainer.test(split="val")
    assert [line.split("*")[1] for line in _lines(capsys.readouterr().out, "Evaluate")] == ["val", "test", "test"]
    assert not trainer.model.training


def test_the_last_epoch_and_every_nth_are_saved(config) -> None:
    trainer = _train(config("OPTIM.MAX_EPOCH", 5, "TRAIN.CHECKPOINT_FREQ", 2, "TEST.NO_TEST", True))
    assert "test" not in trainer.hooks
    assert sorted(os.listdir(os.path.join(trainer.output_dir, "toy"))) == [
        "checkpoint",
        *(f"model-{epoch}.safetensors" for epoch in (2, 4, 5)),
        "model.pth.tar-2",
        "model.pth.tar-4",
        "model.pth.tar-5",
    ]


def test_what_a_checkpoint_holds(config) -> None:
    trainer = _train(config("OPTIM.WARMUP_EPOCH", 1))
    state = torch.load(os.path.join(trainer.output_dir, "toy", "model.pth.tar-2"), weights_only=True)
    assert list(state) == ["state_dict", "epoch", "optimizer", "scheduler", "val_result"]
    assert (state["epoch"], state["val_result"]) == (2, None)
    assert state["optimizer"]["param_groups"][0]["lr"] == trainer.get_current_lr()
    assert state["scheduler"]["successor"]["last_epoch"] == 1


def test_the_best_model_on_val_is_saved_and_tested(config, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = host.build_trainer(config("OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val"))
    results = iter([10.0, 30.0, 30.0])
    biases = []

    def test(split: str | None = None) -> float | None:
        biases.append(trainer.model[1].bias.detach().clone())
        return next(results) if split == "val" else None

    monkeypatch.setattr(trainer, "test", test)
    trainer.train()
    assert trainer.best_result == 30.0
    best = host.load_checkpoint(os.path.join(trainer.output_dir, "toy", "model-best.pth.tar"))
    assert (best["epoch"], best["val_result"]) == (2, 30.0)
    # Fourth call: the final test, of the model of epoch 2.
    assert torch.equal(biases[3], biases[1])
    assert not torch.equal(biases[3], biases[2])


def test_loading_a_model_by_epoch_or_as_the_best(config, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = host.build_trainer(config())
    trainer.save_model(6, trainer.output_dir)
    trainer.save_model(7, trainer.output_dir, is_best=True, val_result=61.25)
    saved = trainer.model[1].weight.detach().clone()
    capsys.readouterr()
    for epoch, shown in ((7, "epoch=7"), (None, "epoch=8, val_result=61.2")):
        nn.init.zeros_(trainer.model[1].weight)
        trainer.load_model(trainer.output_dir, epoch=epoch)
        assert torch.equal(trainer.model[1].weight, saved)
        assert shown in capsys.readouterr().out
    trainer.load_model("")
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-99"):
        trainer.load_model(trainer.output_dir, epoch=99)


def test_meters(config) -> None:
    meter = host.AverageMeter()
    meter.update(2.0)
    meter.update(torch.tensor(5.0), n=2)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5.0, 4.0, 12.0, 3)
    smooth = host.AverageMeter(ema=True)
    smooth.update(10.0)
    smooth.update(20.0)
    assert smooth.avg == pytest.approx(0.9 * 1.0 + 2.0)
    metrics = host.MetricMeter(delimiter=", ")
    metrics.update({"loss": torch.tensor(1.0), "acc": 50})
    metrics.update({"loss": 2.0})
    metrics.update(None)
    assert str(metrics) == "loss 2.0000 (1.5000), acc 50.0000 (50.0000)"
    with pytest.raises(TypeError):
        metrics.update([1.0])
