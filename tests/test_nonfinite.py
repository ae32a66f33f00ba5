"""A loss that is not finite stops a run before the step, and says what was not finite, where, and in which images."""

from __future__ import annotations

import kills
import pytest
import runs

from dho_plugin import cli, precision
from dho_plugin.loaders import cut
from dho_plugin.nonfinite import NonFiniteLoss
from dho_plugin.states import States
from dho_plugin.teachers import ZeroShotTeacher

NAN, INF = float("nan"), float("inf")
# A part of the model, the row of its answer that is poisoned, and what the message calls it and its loss.
TEACHER = ("teacher", -1, "the teacher's logits", "loss_kd")
KD_HEAD = ("kd_head", -1, "the KD head's logits", "loss_kd")
CE_HEAD = ("ce_head", 0, "the CE head's logits", "loss_ce")
BACKBONE = ("backbone", 0, "the student's features", "loss_ce nan, loss_kd")


def poison(trainer, monkeypatch, part: str, row: int, value: float) -> None:
    """Let one image's answer be no number in the second step of the second epoch."""

    def spoil(module, args, output):
        if (trainer.epoch, trainer.batch_idx) != (1, 1):
            return output
        output = output.clone()
        output[row, -1] = value
        return output

    getattr(trainer, part).register_forward_hook(spoil)


@pytest.mark.parametrize(
    ("where", "value", "options", "parts"),
    [
        (TEACHER, NAN, "", 1),
        (KD_HEAD, NAN, "", 1),
        (CE_HEAD, INF, "", 1),
        (BACKBONE, NAN, "", 1),
        (TEACHER, NAN, "TRAIN.ACCUMULATE 2", 2),
        (TEACHER, NAN, "TRAINER.LINEARPROBE.PREC amp", 1),
        (BACKBONE, NAN, "TRAIN.CONFLICT_FREQ 1", 1),
        (CE_HEAD, INF, "TRAINER.LINEARPROBE.PREC fp16", 1),
        (KD_HEAD, NAN, "TRAINER.LINEARPROBE.PREC bf16 TRAIN.ACCUMULATE 2", 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_run_stops_before_the_step(workspace, tmp_path, monkeypatch, where, value, options, parts):
    monkeypatch.setattr(precision, "HALF_DEVICES", ("cpu",) if "PREC" in options else ())
    part, row, called, loss = where
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path, "", f"TRAIN.SAVE_MINUTES 0 {options}")
    poison(trainer, monkeypatch, part, row, value)
    with pytest.raises(NonFiniteLoss) as error:
        trainer.train()
    said = str(error.value)
    batches = trainer.train_loader_x.batches
    images = [batches.paths(piece)[row] for piece in cut(batches[4], parts)]
    assert said.startswith("epoch 2, batch 2/3: loss ") and f", {loss} " in said.partition(" Not finite")[0]
    of = 8 // parts
    found = "; ".join(f"{called} of 1 of {of} images ({image})" for image in images)
    assert f"{called} of 1 of {of} images ({images[0]})" in said if part == "backbone" else f": {found}." in said
    last = States(tmp_path / "state").newest()
    assert (last["epoch"], last["batch"]) == (1, 1)
    assert kills.unequal(last, {**trainer.state(1, 1), "random": last["random"]}) == []
    assert not any(parameter.isnan().any() for parameter in trainer.model.parameters())


def test_the_command_line_ends_with_one_line(workspace, tmp_path, monkeypatch, capsys):
    classify = ZeroShotTeacher.classify
    monkeypatch.setattr(ZeroShotTeacher, "classify", lambda teacher, features: classify(teacher, features) * NAN)
    assert cli.main(runs.words(workspace, "CoOpDHO", tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: epoch 1, batch 1/3: loss nan, loss_kd nan. Not finite: the teacher's logits of 8 of")
    assert said.count("\n") == 1 and said.count(".JPEG") == 5 and "..." in said


def test_finite_numbers_whose_loss_is_not(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("dho_plugin.trainers.base.supervised_loss", lambda logits, labels: logits.sum() * INF)
    with pytest.raises(NonFiniteLoss, match=r"loss [a-z-]+\. Not finite: all features and logits are finite"):
        runs.make(workspace, "LinearProbe", tmp_path).train()
