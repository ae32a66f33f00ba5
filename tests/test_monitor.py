"""The gradient-conflict monitor: a run is the same with it and without, and what it writes is what autograd gives."""

from __future__ import annotations

import math
import re

import kills
import processes
import pytest
import runs
import torch
from joint_runs import commands
from test_resume import ask
from test_trainers import TRAINED

from dho_plugin import precision
from dho_plugin.analysis.conflict_log import FILE, MEASURES, Observation, read
from dho_plugin.errors import UsageError
from dho_plugin.host import TRAINER_REGISTRY
from dho_plugin.losses import soft_targets
from dho_plugin.stopping import Stopped

EVERY_STEP = "TRAIN.CONFLICT_FREQ 1 TEST.NO_TEST True"
COMPACT = "MODEL.BACKBONE.NAME timm/test_resnet INPUT.SIZE (32,32)"  # random weights, and batch normalisation
STEPS = 6  # of runs.OPTIONS
# Trainers that minimise L_CE and L_KD; of these the ones whose losses share no parameter of the image encoder.
COMPARED = [n for n in TRAINED if n.endswith("DHO")] + ["CEKD", "CEKDFeature", "SSKD", "DHKD"]
APART = ("CoOpDHO", "LinearProbeDHO")


def options(name: str) -> str:
    """A compact student with batch normalisation for the trainers that have one, half of a head dropped out else."""
    cls = TRAINER_REGISTRY.get(name)
    return COMPACT if getattr(cls, "trains_student", False) else "TRAINER.DHO.HEAD.KD nonlinear"


def equal_with_and_without(workspace, folder, name: str, settings: str, capsys) -> list[Observation]:
    """Check that a run is the same to the bit with the monitor and without; the lines of the one with."""
    left = {}
    for which, freq in (("with", 1), ("without", 0)):
        options = f"TEST.NO_TEST True TRAIN.CONFLICT_FREQ {freq} {settings}"
        trainer = runs.make(workspace, name, folder / which, "", options)
        capsys.readouterr()
        trainer.train()
        said = kills.steps_and_results(capsys.readouterr().out)
        left[which] = {**trainer.state(trainer.max_epoch, 0), "log": said}
    assert kills.unequal(left["with"], left["without"]) == []
    assert not (folder / "without" / FILE).exists()
    return read(folder / "with")


@pytest.mark.parametrize("name", TRAINED)
def test_every_trainer_is_the_same_to_the_bit_with_the_monitor(workspace, tmp_path, name, capsys):
    lines = equal_with_and_without(workspace, tmp_path, name, options(name), capsys)
    assert [line.step for line in lines] == (list(range(1, STEPS + 1)) if name in COMPARED else [])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LinearProbeDHO", "STORE.DIR {store}"),  # where features come from a table
        ("CoOpDHO", "STORE.DIR {store} TRAIN.ACCUMULATE 2"),
        ("MaPLeDHO", "MODEL.TEXT_CHUNK 2"),  # where a backward pass computes once more what it needs
        ("PromptSRCDHO", "MODEL.TEXT_CHUNK 2 TRAIN.ACCUMULATE 2 TRAINER.PROMPTSRC.GPA_MEAN 1"),
        ("StudentDHO", f"{COMPACT} TRAIN.ACCUMULATE 2"),
        ("VPTDHO", "TRAINER.VPT.PREC amp"),
        ("StudentDHO", f"{COMPACT} TRAINER.STUDENT.PREC bf16"),
    ],
)
def test_so_is_one_in_parts_of_stored_features_in_chunks_and_in_half_precision(
    workspace, tmp_path, name, settings, capsys, monkeypatch
):
    monkeypatch.setattr(precision, "HALF_DEVICES", ("cpu",) if "PREC" in settings else ())
    lines = equal_with_and_without(workspace, tmp_path, name, settings.format(store=tmp_path / "store"), capsys)
    assert [line.step for line in lines] == list(range(1, STEPS + 1))
    assert not any(math.isnan(line.feature_cosine) for line in lines)
    assert all(math.isnan(line.cosine) == (name in APART) for line in lines)


def test_half_precision_is_measured_at_the_scale_of_its_losses(workspace, tmp_path, monkeypatch):
    """The first line is that of single precision but for float16's three digits."""
    monkeypatch.setattr(precision, "HALF_DEVICES", ("cpu",))
    for name in ("fp32", "amp"):
        runs.run(workspace, "VPTDHO", tmp_path / name, "", f"{EVERY_STEP} TRAINER.VPT.PREC {name}")
    one, other = (read(tmp_path / name)[0] for name in ("fp32", "amp"))
    assert one != other and one == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize("name", COMPARED)
def test_what_each_trainer_has_to_compare(workspace, tmp_path, name):
    runs.run(workspace, name, tmp_path, "", EVERY_STEP)
    for line in read(tmp_path):
        known = {measure for measure in MEASURES if not math.isnan(getattr(line, measure))}
        expected = {"discrepancy"} if name != "CEKDFeature" else set()
        expected |= {"feature_cosine"} if name != "SSKD" else set()  # whose L_KD sees no labelled image
        expected |= {"feature_inner_product"}
        expected |= {"cosine", "inner_product"} if name not in APART else set()
        rows = name not in ("CoOpDHO", "MaPLeDHO", "PromptSRCDHO")  # whose CE pathways are learned prompts
        if name != "CEKDFeature":
            expected |= {"kd_eigenvalue"}
            expected |= {"ce_eigenvalue", "singular_value", "eigenvalue"} if rows else set()
        assert known == expected


def test_the_file_and_what_is_said(workspace, tmp_path, capsys):
    trainer = runs.make(workspace, "VPTDHO", tmp_path / "some", "", "TRAIN.CONFLICT_FREQ 4 TEST.NO_TEST True")
    trainer.train()
    assert [(line.epoch, line.step) for line in read(tmp_path / "some")] == [(1, 1), (2, 4)]
    said = capsys.readouterr().out
    cost = rf"Gradient conflict: 2 observations in .*{FILE} took [\d.]+ s, [\d.]+ % of [\d.]+ s of training, [\d.]+ ms"
    assert len(re.findall(cost, said)) == 1 and "TRAIN.CONFLICT_FREQ:" not in said
    for name, expected in (
        ("CoOp", "CoOp has no L_CE beside an L_KD, so that there is nothing to compare"),
        ("KD", "KD has no L_CE beside an L_KD"),
        ("LinearProbeDHO", "LinearProbeDHO's losses share no parameter: features alone are compared"),
    ):
        runs.run(workspace, name, tmp_path / name, "", EVERY_STEP)
        said = capsys.readouterr().out
        assert said.count("TRAIN.CONFLICT_FREQ: ") == 1 and expected in said


def by_hand(trainer, batch):
    """Gradients of both losses by two backward passes: (CE, KD), each the encoder's by parameter and the features'."""
    seen = []
    hook = trainer.backbone.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[0])
    found = []
    for name in ("loss_ce", "loss_kd"):
        trainer.model_zero_grad()
        losses, _, _ = trainer.losses(batch)
        losses[name].backward()
        parameters = [p for p in trainer.backbone.parameters() if p.requires_grad]
        found.append(([p.grad.double().clone() for p in parameters], seen[-1].grad.double()))
    hook.remove()
    trainer.model_zero_grad()
    return found


@pytest.mark.parametrize("name", ["StudentDHO", "CEKD", "VPTDHO", "MaPLeDHO"])
def test_a_line_is_what_two_backward_passes_and_loops_give(workspace, tmp_path, name):
    """At the first step, from the weights and the batch of another trainer that is the same."""
    runs.run(workspace, name, tmp_path / "run", "", EVERY_STEP)
    line = read(tmp_path / "run")[0]
    trainer = runs.make(workspace, name, tmp_path / "same", "", EVERY_STEP)
    batch = trainer.train_loader_x.batches[0]
    trainer.set_model_mode("train")
    (ce, ce_z), (kd, kd_z) = by_hand(trainer, batch)
    one, other = (torch.cat([gradient.reshape(-1) for gradient in part]) for part in (ce, kd))
    assert line.inner_product == pytest.approx(float(one @ other), rel=1e-3)
    assert line.cosine == pytest.approx(float(one @ other / (one.norm() * other.norm())), rel=1e-3)
    labels = batch["label"].tolist()
    n = len(labels)
    pairs = [(n * ce_z[i], n * kd_z[i]) for i in range(n)]
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
    assert line.feature_cosine == pytest.approx(sum(cosines) / n, rel=1e-3)
    assert line.feature_inner_product == pytest.approx(sum(float(a @ b) for a, b in pairs) / n, rel=1e-3)
    with torch.no_grad():
        features = trainer.features(batch)[:n]
        kd_head = trainer.ce_head if name == "CEKD" else trainer.kd_head
        p_ce = trainer.ce_logits(features).double().softmax(dim=-1)
        p_kd = (kd_head(features).double() / 2).softmax(dim=-1)
        p = soft_targets(trainer.teacher(batch["img_teacher"]).double(), temperature=2.0)
    terms = [
        sum((p_ce[i, c] - int(c == labels[i])) * (p_kd[i, c] - p[i, c]) for c in range(p.shape[1])) for i in range(n)
    ]
    assert line.discrepancy == pytest.approx(float(sum(terms)) / n, rel=1e-3)


@pytest.mark.parametrize("name", ["VPTDHO", "LinearProbeDHO"])
def test_a_step_in_parts_is_seen_whole(workspace, tmp_path, name):
    lines = {}
    for parts in (1, 2):
        runs.run(workspace, name, tmp_path / str(parts), "", f"{EVERY_STEP} TRAIN.ACCUMULATE {parts}")
        lines[parts] = read(tmp_path / str(parts))
    for one, other in zip(lines[1], lines[2], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6, nan_ok=True)


def test_two_processes_write_what_one_does(workspace, tmp_path):
    """In float64, with batch normalisation and without, and in parts."""
    words = {}
    for count in (1, 2):
        words[count] = [
            runs.words(workspace, name, tmp_path / f"{count}" / folder, "", f"{EVERY_STEP} {further}")
            for folder, name, further in (
                ("student", "StudentDHO", COMPACT),
                ("vpt", "VPTDHO", "TRAIN.ACCUMULATE 2"),
                ("probe", "LinearProbeDHO", ""),
                ("ce", "CE", COMPACT),
            )
        ]
        for left in processes.run(count, commands, words[count], True, seconds=200):
            assert [of.status for of in left] == [0] * 4, [of.said for of in left]
    for folder in ("student", "vpt", "probe"):
        one, two = (read(tmp_path / count / folder) for count in "12")
        assert len(one) == len(two) == STEPS
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=2e-5, abs=1e-9, nan_ok=True)
    assert not (tmp_path / "2" / "ce" / FILE).exists()


@pytest.mark.parametrize("name", ["StudentDHO", "CoOpDHO"])
def test_a_run_that_is_stopped_and_goes_on_leaves_the_file_of_an_unbroken_one(workspace, tmp_path, name, monkeypatch):
    def run(folder: str, freq: int = 1) -> bytes:
        runs.run(workspace, name, tmp_path / folder, "", f"{EVERY_STEP} TRAIN.CONFLICT_FREQ {freq}")
        path = tmp_path / folder / FILE
        return path.read_bytes() if path.exists() else b""

    whole = run("whole")
    ask(monkeypatch, 4)
    with pytest.raises(Stopped):
        run("broken")
    ask(monkeypatch, 0)
    with (tmp_path / "broken" / FILE).open("a") as file:  # of steps that a kill has lost
        file.write((tmp_path / "whole" / FILE).read_text().splitlines()[5] + "\n2,6,0.1")
    assert run("broken") == whole
    assert run("broken") == whole  # and again, finished


def test_the_frequency_may_change_on_the_way_and_a_new_start_forgets(workspace, tmp_path, monkeypatch):
    ask(monkeypatch, 3)
    with pytest.raises(Stopped):
        runs.run(workspace, "VPTDHO", tmp_path, "", EVERY_STEP)
    ask(monkeypatch, 0)
    runs.run(workspace, "VPTDHO", tmp_path, "", "TEST.NO_TEST True TRAIN.CONFLICT_FREQ 5")
    assert [line.step for line in read(tmp_path)] == [1, 2, 3, 5]
    for folder in ("prompt_learner", "ce_head", "kd_head"):
        for file in (tmp_path / folder).iterdir():
            file.unlink()
    runs.run(workspace, "VPTDHO", tmp_path, "", "TEST.NO_TEST True")
    assert not (tmp_path / FILE).exists()


def test_a_negative_frequency_is_refused(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"TRAIN\.CONFLICT_FREQ -1: expected a number of steps"):
        runs.make(workspace, "VPTDHO", tmp_path, "", "TRAIN.CONFLICT_FREQ -1")
