from __future__ import annotations

from pathlib import Path

import dho_plugin.trainers  # noqa: F401 - registers
import pytest
import reference
import runs
import torch

from dho_plugin import DualHeadLogits, cli, interpolate, precision
from dho_plugin.classes import ClassList, class_list
from dho_plugin.errors import UsageError
from dho_plugin.host import HOST, TRAINER_REGISTRY, set_random_seed
from dho_plugin.shifts import load_shifts

OURS = [n for n in TRAINER_REGISTRY.registered_names() if TRAINER_REGISTRY.get(n).__module__.startswith("dho_plugin.")]
TRAINED = [name for name in OURS if name not in ("ZeroshotCLIP", "TipAdapter")]
DHO = [name for name in OURS if name.endswith("DHO")]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.clone() for n, m in trainer.learned().items() for k, v in m.named_parameters()}


def frozen_weights(trainer) -> dict[str, torch.Tensor]:
    parts = {"student": trainer.student, **trainer.frozen_parts()}
    learned = {tensor.data_ptr() for module in trainer.learned().values() for tensor in module.state_dict().values()}
    states = {f"{n}.{k}": v for n, m in parts.items() for k, v in m.state_dict().items()}
    assert trainer.trains_student or not any(v.data_ptr() in learned for v in states.values())
    return {key: value.clone() for key, value in states.items() if value.data_ptr() not in learned}


def test_the_expected_trainers_are_registered():
    assert {"ZeroshotCLIP", "CoOp", "CoOpDHO", "LinearProbe", "LinearProbeDHO"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_every_trainer_trains_evaluates_saves_and_loads(workspace, tmp_path, name):
    row = runs.run(workspace, name, tmp_path / "train", "--ood")
    assert list(row) == ["test", "V2", "Sketch", "R", "A"]
    trainer = runs.make(workspace, name, tmp_path / "again", f"--eval-only --model-dir {tmp_path / 'train'}")
    trainer.load_model(str(tmp_path / "train"))
    assert trainer.test() == row["test"]
    for folder in trainer._models:
        files = sorted(path.name for path in (tmp_path / "train" / folder).iterdir())
        assert files == ["checkpoint", "model-2.safetensors", "model.pth.tar-2"]
        checkpoint = torch.load(tmp_path / "train" / folder / "model.pth.tar-2", weights_only=True)
        assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= set(checkpoint)


@pytest.mark.parametrize("name", TRAINED)
def test_training_moves_what_is_learned_and_nothing_else(workspace, tmp_path, name):
    trainer = runs.make(workspace, name, tmp_path)
    learned, frozen = weights(trainer), frozen_weights(trainer)
    trainer.train()
    for key, value in weights(trainer).items():
        assert not torch.equal(value, learned[key]), key
    assert not any(p.requires_grad for part in trainer.frozen_parts().values() for p in part.parameters())
    for key, value in frozen_weights(trainer).items():
        assert torch.equal(value, frozen[key]), key


@pytest.mark.parametrize("name", DHO)
@pytest.mark.parametrize("pool", ["labels", "unlabelled"])
def test_without_kd_weight_the_ce_pathway_is_the_control_step_for_step(workspace, tmp_path, name, pool, monkeypatch):
    """Exact with labels only; with unlabelled images the features come from a larger batch (last-bit differences)."""
    traces = {}
    for which in (name, {"StudentDHO": "CE"}.get(name, name.removesuffix("DHO"))):
        flags = "--labels-only" if pool == "labels" else ""
        # Not AdamW, which divides a gradient by its size, however small that is.
        options = "TRAINER.DHO.LAMBDA 1.0 OPTIM.NAME sgd OPTIM.LR 0.002"
        trainer = runs.make(workspace, which, tmp_path / which, flags, options)
        trace = traces[which] = []
        step = trainer.forward_backward

        def recording(batch, step=step, trace=trace, trainer=trainer):
            summary = step(batch)
            trace.append({k: v for k, v in weights(trainer).items() if not k.startswith("kd_head")})
            return summary

        monkeypatch.setattr(trainer, "forward_backward", recording)
        trainer.train()
    ours, control = traces.values()
    assert len(ours) == len(control) == 6
    for a, b in zip(ours, control, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if pool == "labels":
                assert torch.equal(a[key], b[key])
            else:
                torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", DHO)
def test_kd_reaches_the_kd_head_and_unlabelled_images_matter(workspace, tmp_path, name):
    def final(flags: str, options: str) -> torch.Tensor:
        trainer = runs.make(workspace, name, tmp_path / f"{flags}{options}".replace(" ", "_"), flags, options)
        trainer.train()
        return next(trainer.kd_head.parameters()).detach().clone()

    base = final("", "")
    assert not torch.equal(base, final("--labels-only", ""))
    assert not torch.equal(base, final("", "TRAINER.DHO.UNLABELED_POOL union"))
    assert not torch.equal(base, final("", "TRAINER.DHO.KD_T2 False OPTIM.NAME sgd"))


def test_labels_of_unlabelled_images_reach_no_loss(workspace, tmp_path, monkeypatch):
    from dho_plugin import pool

    def final(output: str) -> dict[str, torch.Tensor]:
        trainer = runs.make(workspace, "CoOpDHO", tmp_path / output)
        trainer.train()
        return weights(trainer)

    honest = final("honest")
    original = pool.build_dataset

    def garbage(cfg):
        dataset = original(cfg)
        for item in dataset.train_x:
            item._label = 5 - item.label
            item._classname = "garbage"
        return dataset

    monkeypatch.setattr(pool, "build_dataset", garbage)
    poisoned = final("poisoned")
    assert all(torch.equal(honest[key], poisoned[key]) for key in honest)


@pytest.mark.parametrize("name", TRAINED)
def test_epochs_go_on_where_the_last_one_ended(workspace, tmp_path, name, monkeypatch):
    trainer = runs.make(workspace, name, tmp_path)
    seen = []
    step = trainer.forward_backward
    monkeypatch.setattr(trainer, "forward_backward", lambda batch: (seen.append(batch["img"]), step(batch))[1])
    trainer.train()
    expected = [trainer.train_loader_x.batches[k]["img"] for k in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_the_step_is_the_papers_loss_on_the_images_and_their_own_teacher_views(workspace, tmp_path, monkeypatch):
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path, "", "TRAINER.DHO.LAMBDA 0.3 TRAINER.DHO.ETA 3.0")
    batch = trainer.train_loader_x.batches[0]
    # A random teacher says nearly the same of every image; this one does not.
    colours = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) / 5
    monkeypatch.setattr(trainer.teacher, "forward", lambda views: views.float().mean((2, 3)) @ colours)

    def logits(part):  # one image at a time: nothing of the batch can leak between images
        rows = [trainer.model(trainer.vlm.normalize(image[None])) for image in part["img"]]
        teacher = [trainer.teacher(view[None]) for view in part["img_teacher"]]
        return torch.cat([r.ce for r in rows]), torch.cat([r.kd for r in rows]), torch.cat(teacher)

    ce, kd, teacher = (t.double() for t in logits(batch))
    _, kd_u, teacher_u = (t.double() for t in logits(batch["unlabeled"]))
    slow = reference.dual_head(ce, kd, batch["label"], teacher, kd_u, teacher_u, 0.3, 3.0, True)
    losses, *_ = trainer.losses(batch)
    assert losses["loss"].item() == pytest.approx(slow.item(), rel=1e-4)


@pytest.mark.parametrize("head", ["cosine", "linear", "official"])
@pytest.mark.parametrize("init", ["text", "kaiming"])
def test_heads_and_initialisations_run(workspace, tmp_path, head, init):
    options = f"TRAINER.DHO.HEAD.KD {head} TRAINER.DHO.HEAD.INIT {init} TRAINER.DHO.HEAD.LR 0.01"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path, "", options)
    rates = {name: optim.param_groups[0]["initial_lr"] for name, optim in trainer._optims.items()}
    assert rates == {"ce_head": 0.01, "kd_head": 0.01}
    trainer.train()
    assert 0 <= trainer.last_accuracy <= 100


@pytest.mark.parametrize("options", ["TRAINER.COOP.CSC True", "TRAINER.COOP.CLASS_TOKEN_POSITION middle",
                                     "TRAINER.COOP.CLASS_TOKEN_POSITION front", "TRAINER.COOP.N_CTX 4"])  # fmt: skip
def test_coops_options_run_and_survive_a_change_of_test_set(workspace, tmp_path, options):
    row = runs.run(workspace, "CoOpDHO", tmp_path / "train", "--ood", options)
    cfg = f"--eval-only --model-dir {tmp_path / 'train'} --dataset imagenet_r"
    assert runs.run(workspace, "CoOpDHO", tmp_path / "eval", cfg, f"{options} DATASET.NUM_SHOTS -1")["test"] == row["R"]


def test_a_subset_of_classes_is_chosen_by_wordnet_id_before_the_softmax(workspace, tmp_path):
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path)
    trainer.train()
    dataset = load_shifts(trainer.cfg, {"R": "ImageNetR"})["R"]
    assert [trainer.classes.ids[i] for i in trainer.classes.rows(class_list(dataset))] == list(dataset.class_ids)
    batch = next(iter(trainer.dm.evaluation_loader(dataset.test)))
    images, _ = trainer.parse_batch_test(batch)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        full = trainer.model(images)
        with trainer.testing_on(dataset):
            shown = trainer.model_inference(images)
    rows = [1, 3, 5]
    expected = interpolate(DualHeadLogits(full.ce[:, rows], full.kd[:, rows]), alpha=0.5, beta=1.0)
    torch.testing.assert_close(shown, expected)
    assert not torch.allclose(shown, interpolate(full, alpha=0.5, beta=1.0)[:, rows])


def test_a_class_that_cannot_be_mapped_stops_the_run_before_training(workspace, tmp_path):
    known = ClassList(("n1", "n2"), ("crane", "crane"))
    with pytest.raises(UsageError, match=r"n3 \(owl\)"):
        known.rows(ClassList(("n2", "n3"), ("crane", "owl")))
    assert known.rows(ClassList(("n2",), ("crane",))).tolist() == [1]


@pytest.mark.parametrize("name", ["StudentDHO", "PromptSRCDHO"])
def test_resumed_run_equals_the_unbroken_one(workspace, tmp_path, name):
    """From checkpoints alone, as Dassl goes on; states, test_resume.py."""
    options = "OPTIM.MAX_EPOCH 4 OPTIM.WARMUP_EPOCH 1 TRAIN.CHECKPOINT_FREQ 1 TRAINER.PROMPTSRC.GPA_MEAN 2"
    unbroken = runs.make(workspace, name, tmp_path / "a", "", options)
    unbroken.train()

    class Stopped(Exception):
        pass

    first = runs.make(workspace, name, tmp_path / "b", "", options)
    save = first.after_epoch

    def stop_after_two() -> None:
        save()
        if first.epoch == 1:
            raise Stopped

    first.after_epoch = stop_after_two
    with pytest.raises(Stopped):
        first.train()
    first.over()
    second = runs.make(workspace, name, tmp_path / "b", "", options)
    second.train()
    for key, value in weights(second).items():
        assert torch.equal(value, weights(unbroken)[key]), key


def shapes(tmp_path, options: str):
    """A short run on the demo's pictures, which have a validation split of their own."""
    line = (
        f"--trainer LinearProbe --dataset shapes --shots 1 --root {tmp_path.parent / 'shapes'} --output-dir {tmp_path}"
    )
    line += " OPTIM.MAX_EPOCH 3 TRAINER.DHO.STEPS_PER_EPOCH 1 TEST.FINAL_MODEL best_val TRAIN.CHECKPOINT_FREQ 1"
    cfg = cli.build_config(cli.parser().parse_args(f"{line} {options}".split()))
    set_random_seed(cfg.SEED)
    return TRAINER_REGISTRY.get("LinearProbe")(cfg)


def test_best_model_is_kept_over_a_resume(tmp_path):
    trainer = shapes(tmp_path, "")
    results = iter([90.0, 50.0, 60.0])

    def scripted(split=None):
        trainer.last_accuracy = next(results) if split == "val" else 0.0
        return trainer.last_accuracy

    trainer.test = scripted
    trainer.max_epoch = 2
    trainer.train()
    best = torch.load(tmp_path / "ce_head" / "model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (1, 90.0)
    for part in (tmp_path / "ce_head").glob("checkpoint"):
        part.write_text("model.pth.tar-2\n")
    again = shapes(tmp_path, "")
    again.test = scripted
    trainer = again
    again.train()
    assert torch.load(tmp_path / "ce_head" / "model-best.pth.tar", weights_only=True)["epoch"] == 1


def test_no_training_and_no_choice_of_epoch_on_test_images(workspace, tmp_path):
    trainer = runs.make(workspace, "CoOp", tmp_path, "", "TEST.FINAL_MODEL best_val")
    with pytest.raises(UsageError, match="choose the epoch on test images"):
        trainer.train()
    trainer = runs.make(workspace, "CoOp", tmp_path, "--dataset imagenet_r --shots 1")
    with pytest.raises(UsageError, match="for testing only"):
        trainer.train()


def test_a_folder_of_another_run_is_not_gone_on_from(workspace, tmp_path):
    first = runs.run(workspace, "CoOpDHO", tmp_path)
    assert runs.run(workspace, "CoOpDHO", tmp_path) == first  # the same run: finished, so only evaluated
    with pytest.raises(UsageError, match=r"other settings \(OPTIM.LR: 0.002 there, 0.1 now; TRAINER.DHO.LAMBDA"):
        runs.run(workspace, "CoOpDHO", tmp_path, "", "TRAINER.DHO.LAMBDA 0.9 OPTIM.LR 0.1")
    with pytest.raises(UsageError, match=r"TRAIN.COUNT_ITER: 'train_x' there, 'train_u' now"):
        runs.run(workspace, "CoOpDHO", tmp_path, "", "TRAIN.COUNT_ITER train_u TRAIN.PRINT_FREQ 7")
    with pytest.raises(UsageError, match="nothing to resume"):
        runs.run(workspace, "CoOpDHO", tmp_path / "new", f"--resume {tmp_path / 'typo'}")


def test_parts_of_different_epochs_go_on_from_the_last_that_all_have(workspace, tmp_path):
    """As after a kill between the writing of two parts."""
    options = "TRAIN.CHECKPOINT_FREQ 1"
    runs.run(workspace, "CoOpDHO", tmp_path, "", options)
    final = torch.load(tmp_path / "kd_head" / "model.pth.tar-2", weights_only=True)["state_dict"]
    (tmp_path / "prompt_learner" / "model.pth.tar-2").unlink()
    (tmp_path / "prompt_learner" / "checkpoint").write_text("model.pth.tar-1\n")
    trainer = runs.make(workspace, "CoOpDHO", tmp_path, "", options)
    trainer.train()
    assert trainer.start_epoch == 1
    assert torch.equal(trainer.kd_head.state_dict()["head.weight"], final["head.weight"])


def test_base_to_new_classes(workspace, tmp_path):
    """A generic context serves new classes; a KD head does not, and says so; a linear probe cannot answer at all."""
    for name in ("CoOp", "CoOpDHO", "LinearProbe"):
        runs.run(workspace, name, tmp_path / name, "", "DATASET.SUBSAMPLE_CLASSES base")
    new = "DATASET.SUBSAMPLE_CLASSES new"
    coop = runs.make(workspace, "CoOp", tmp_path / "e", "", new)
    coop.load_model(str(tmp_path / "CoOp"))
    assert len(coop.ce_head.prompt_learner.end) == 3 and coop.test_rows is None
    both = runs.make(workspace, "CoOpDHO", tmp_path / "f", "", new)
    both.load_model(str(tmp_path / "CoOpDHO"))
    assert both.ce_only
    both.set_model_mode("eval")
    images, _ = both.parse_batch_test(next(iter(both.test_loader)))
    with torch.no_grad():
        expected = torch.softmax(both.ce_head(both.backbone(images)), dim=-1)
        torch.testing.assert_close(both.model_inference(images), expected)
    probe = runs.make(workspace, "LinearProbe", tmp_path / "g", "", new)
    with pytest.raises(UsageError, match="not among the 3 classes"):
        probe.load_model(str(tmp_path / "LinearProbe"))


def test_the_command_of_the_readme_without_shots_labels_everything(workspace, tmp_path, capsys):
    words = f"--trainer CoOpDHO --dataset imagenet --root {workspace} --teacher {workspace}/teacher.pt --ood"
    words += f" --backbone {workspace}/student.safetensors --output-dir {tmp_path} OPTIM.MAX_EPOCH 1"
    args = cli.parser().parse_args(words.split())
    assert list(cli.run(cli.build_config(args), args)) == ["test", "V2", "Sketch", "R", "A"]
    assert "All 24 training images are labelled" in capsys.readouterr().out


def test_shots_do_not_matter_to_an_evaluation(workspace, tmp_path):
    row = runs.run(workspace, "ZeroshotCLIP", tmp_path, "--dataset imagenetv2 --shots 16 --eval-only")
    assert 0 <= row["test"] <= 100


def test_without_a_test_there_is_no_accuracy(workspace, tmp_path):
    assert runs.run(workspace, "CoOp", tmp_path, "", "TEST.NO_TEST True") == {}


def test_shifts_leave_the_runs_own_confusion_matrix_alone(workspace, tmp_path):
    runs.run(workspace, "CoOp", tmp_path, "--ood", "TEST.COMPUTE_CMAT True")
    load = {"map_location": "cpu", "weights_only": False}  # the real Dassl writes a numpy array
    assert torch.load(tmp_path / "cmat.pt", **load).shape == (6, 6)
    assert torch.load(tmp_path / "shifts" / "R" / "cmat.pt", **load).shape == (3, 3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("TRAINER.DHO.UNLABELED_POOL unoin", "Did you mean 'union'"),
        ("TRAINER.DHO.HEAD.INIT kaimming", "Did you mean 'kaiming'"),
        ("TRAINER.DHO.HEAD.KD cosin", "Did you mean 'cosine'"),
        ("TRAINER.DHO.ALPHA 1.5", "ALPHA must be in"),
        ("TRAINER.DHO.BETA 0.0", "BETA must be positive"),
        ("INPUT.INTERPOLATION bicubik", "Did you mean 'bicubic'"),
        ("TRAIN.COUNT_ITER train_y", "Did you mean 'train_"),
        ("TRAINER.COOP.PREC fp6", "Did you mean 'fp16'"),
    ],
)
def test_a_misspelt_choice_is_refused_before_the_data_is_read(workspace, tmp_path, option, message):
    with pytest.raises(UsageError, match=message):
        runs.make(workspace, "CoOpDHO", tmp_path, "--root nowhere", option)


def test_another_number_of_context_tokens_does_not_load(workspace, tmp_path):
    runs.run(workspace, "CoOp", tmp_path)
    trainer = runs.make(workspace, "CoOp", tmp_path / "e", "", "TRAINER.COOP.N_CTX 4")
    with pytest.raises(UsageError, match="does not fit this model"):
        trainer.load_model(str(tmp_path))


def test_initialisation_from_the_teachers_texts_needs_equal_widths(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"\(6, 32\).*got \(6, 48\)"):
        runs.make(workspace, "CoOpDHO", tmp_path, "", "TRAINER.DHO.HEAD.INIT teacher")
    same = f"--teacher {workspace}/student.safetensors"
    trainer = runs.make(workspace, "CoOpDHO", tmp_path, same, "TRAINER.DHO.HEAD.INIT teacher")
    torch.testing.assert_close(trainer.kd_head.head.weight, trainer.teacher.head.weight)


def test_epochs_may_be_counted_by_the_unlabelled_images_for_every_row(workspace, tmp_path):
    options = "TRAINER.DHO.STEPS_PER_EPOCH 0 TRAIN.COUNT_ITER train_u"
    for name, flags in (("CoOp", "--shots 1"), ("CoOpDHO", "--shots 1"), ("CoOpDHO", "--shots 1 --labels-only")):
        assert len(runs.make(workspace, name, tmp_path, flags, options).train_loader_x) == 18 // 4


def test_epochs_are_passes_over_the_labelled_images_where_no_unlabelled_batch_is(workspace, tmp_path, capsys):
    options = "TRAINER.DHO.STEPS_PER_EPOCH 0 TRAIN.COUNT_ITER train_u"
    trainer = runs.make(workspace, "LinearProbe", tmp_path, "--shots -1", options)
    assert len(trainer.train_loader_x) == 24 // 4 and "make no batch" in capsys.readouterr().out


def test_settings_of_other_trainers_and_newer_keys_do_not_part_two_runs(workspace, tmp_path):
    runs.run(workspace, "CoOp", tmp_path)
    record = tmp_path / "config.yaml"
    lines = [line for line in record.read_text().splitlines() if "TRAINER.COOP.CSC" not in line]
    record.write_text("\n".join([*lines, "TRAINER.LONG_GONE.KEY: 3", ""]))
    runs.run(workspace, "CoOp", tmp_path, "", "TRAINER.PROMPTSRC.N_CTX_TEXT 2")
    with pytest.raises(UsageError, match=r"TRAINER.COOP.CSC: False there, True now"):
        runs.run(workspace, "CoOp", tmp_path, "", "TRAINER.COOP.CSC True")


def test_a_checkpoint_of_coops_own_is_loaded(workspace, tmp_path):
    """It has token_prefix and token_suffix beside ctx, and no class list."""
    ctx = torch.randn(16, 64)
    state = {"ctx": ctx, "token_prefix": torch.zeros(6, 1, 64), "token_suffix": torch.zeros(6, 60, 64)}
    folder = tmp_path / "prompt_learner"
    folder.mkdir()
    checkpoint = {"state_dict": state, "epoch": 50, "optimizer": None, "scheduler": None, "val_result": None}
    torch.save(checkpoint, folder / "model.pth.tar-50")
    trainer = runs.make(workspace, "CoOp", tmp_path / "out")
    trainer.load_model(str(tmp_path), epoch=50)
    assert torch.equal(trainer.ce_head.prompt_learner.ctx, ctx)
    with pytest.raises(UsageError, match=r"model\.pth\.tar-50"):
        trainer.load_model(str(tmp_path), epoch=7)


def test_an_evaluation_needs_no_teacher(workspace, tmp_path):
    runs.run(workspace, "CoOpDHO", tmp_path / "train")
    flags = f"--eval-only --model-dir {tmp_path / 'train'} --teacher nowhere.pt"
    assert "test" in runs.run(workspace, "CoOpDHO", tmp_path / "eval", flags)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(workspace, tmp_path):
    def final(seed: int, output: str) -> dict[str, torch.Tensor]:
        trainer = runs.make(workspace, "CoOpDHO", tmp_path / output, f"--seed {seed}")
        trainer.train()
        return weights(trainer)

    first, again, other = final(0, "a"), final(0, "b"), final(2, "c")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_half_precision_on_a_cpu_becomes_fp32_with_a_warning(workspace, tmp_path):
    with pytest.warns(UserWarning, match="computes in fp32"):
        trainer = runs.make(workspace, "CoOpDHO", tmp_path, "", "TRAINER.COOP.PREC fp16")
    assert trainer.precision.name == "fp32"
    with pytest.raises(UsageError, match="Did you mean 'fp16'"):
        runs.make(workspace, "CoOpDHO", tmp_path, "", "TRAINER.COOP.PREC fp6")


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("prec", ["amp", "fp16", "bf16"])
def test_half_precision_trains_close_to_fp32(workspace, tmp_path, monkeypatch, name, prec):
    """The path that a GPU takes, computed on the CPU: autocast, loss scaling, and towers that are stored in half."""
    monkeypatch.setattr(precision, "HALF_DEVICES", ("cpu",))
    moves = {}
    for which in ("fp32", prec):
        options = runs.PRECISION.replace("fp32", which) + " TRAINER.DHO.STEPS_PER_EPOCH 1"
        trainer = runs.make(workspace, name, tmp_path / which, "", f"{options} OPTIM.MAX_EPOCH 1 OPTIM.NAME sgd")
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(which, torch.float32)
        assert trainer.vlm.dtype == (torch.float32 if trainer.trains_student else half)
        # The usual first scale overflows and the step is skipped, as it should be; one step is to be compared here.
        scaled = which in ("fp16", "amp")
        assert trainer.precision.scaler.is_enabled() == scaled
        trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=scaled)
        before = weights(trainer)
        trainer.train()
        assert 0 <= trainer.last_accuracy <= 100
        moves[which] = {key: (value - before[key]).detach() for key, value in weights(trainer).items()}
        assert all(move.dtype == torch.float32 for move in moves[which].values())
    for key, move in moves["fp32"].items():
        assert not torch.equal(moves[prec][key], move)
        assert float(torch.cosine_similarity(moves[prec][key].flatten(), move.flatten(), dim=0)) > 0.98, key


@pytest.mark.parametrize("name", ["VPTDHO", "StudentDHO"])
def test_compiled_towers_learn_the_same(workspace, tmp_path, name):
    final = []
    for options in ("", "MODEL.COMPILE aot_eager"):
        trainer = runs.make(workspace, name, tmp_path / options[-5:].strip(), "", f"{options} OPTIM.MAX_EPOCH 1")
        trainer.train()
        assert (trainer.backbone._compiled_call_impl is not None) == bool(options)
        assert (trainer.teacher.vlm.model.visual._compiled_call_impl is not None) == bool(options)
        final.append(weights(trainer))
    assert all(torch.allclose(value, final[1][key], rtol=0, atol=1e-5) for key, value in final[0].items())
    with pytest.raises(UsageError, match="Did you mean 'inductor'"):
        runs.make(workspace, name, tmp_path / "b", "", "MODEL.COMPILE induktor")


@pytest.mark.skipif(HOST == "dassl", reason="Dassl's own loop reads every loss")
@pytest.mark.parametrize("name", ["CoOpDHO", "PromptSRCDHO", "StudentDHO", "CoOpCasPL"])
def test_no_step_waits_for_numbers_that_are_not_printed(workspace, tmp_path, monkeypatch, name):
    read: list[str] = []
    for method in ("item", "__float__", "__int__", "tolist"):
        plain = getattr(torch.Tensor, method)
        monkeypatch.setattr(torch.Tensor, method, lambda self, m=method, p=plain: read.append(m) or p(self))
    counts = {}
    for frequency in (8, 2):
        options = f"TRAINER.DHO.STEPS_PER_EPOCH 8 TRAIN.PRINT_FREQ {frequency}"
        trainer = runs.make(workspace, name, tmp_path / str(frequency), "", options)
        trainer.before_train()
        trainer.epoch = 0
        trainer.before_epoch()
        monkeypatch.setattr(trainer.train_loader_x.batches, "receive", lambda batch: batch)
        batches = [trainer.train_loader_x.batches[step] for step in range(8)]
        monkeypatch.setattr(type(trainer.train_loader_x), "__iter__", lambda self, made=batches: iter(made))
        trainer.losses(batches[0])  # what hangs on the prompts alone is known from here on
        read.clear()
        trainer.run_epoch()
        counts[frequency] = len(read)
    assert counts[2] == 4 * counts[8] > 0  # of what is printed, and nothing else


def test_a_nan_loss_stops_before_the_step_is_applied(workspace, tmp_path, monkeypatch):
    trainer = runs.make(workspace, "CoOpDHO", tmp_path)
    before = weights(trainer)
    teacher = trainer.teacher.forward
    monkeypatch.setattr(trainer.teacher, "forward", lambda views: teacher(views) * float("nan"))
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert all(torch.equal(before[key], value) for key, value in weights(trainer).items())


def test_too_many_shots_and_an_empty_pool_are_said_at_once(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"6 classes have fewer.*tench \(4\)"):
        runs.make(workspace, "CoOp", tmp_path, "--shots 16").train()
    trainer = runs.make(workspace, "CoOpDHO", tmp_path, "--shots 4")
    with pytest.raises(UsageError, match="--labels-only"):
        trainer.train()


def test_every_row_of_a_comparison_takes_the_same_steps(workspace, tmp_path):
    steps = {
        len(runs.make(workspace, name, tmp_path / name, flags).train_loader_x)
        for name, flags in (("CoOp", ""), ("CoOpDHO", ""), ("CoOpDHO", "--labels-only"), ("LinearProbe", ""))
    }
    assert steps == {3}
    assert len(runs.make(workspace, "CoOp", tmp_path / "y", "", "TRAINER.DHO.STEPS_PER_EPOCH 5").train_loader_x) == 5
    derived = runs.make(workspace, "CoOp", tmp_path / "x", "", "TRAINER.DHO.STEPS_PER_EPOCH 0")
    assert len(derived.train_loader_x) == 3  # 12 labelled images in batches of 4


def test_labelled_split_is_the_one_dassl_draws(workspace, tmp_path):
    import random

    trainer = runs.make(workspace, "CoOp", tmp_path, "--seed 5")
    random.seed(5)
    expected = []
    for wnid in sorted(path.name for path in Path(workspace, "imagenet/images/train").iterdir()):
        files = sorted(str(path) for path in Path(workspace, "imagenet/images/train", wnid).iterdir())
        expected += random.sample(files, 2)
    assert [item.impath for item in trainer.dm.dataset.train_x] == expected


def test_base_and_new_classes_split_the_list_in_the_middle(workspace, tmp_path):
    ids = {}
    for part in ("base", "new"):
        trainer = runs.make(workspace, "CoOp", tmp_path / part, "", f"DATASET.SUBSAMPLE_CLASSES {part}")
        ids[part] = trainer.classes.ids
        assert trainer.num_classes == 3
        assert {item.label for item in trainer.dm.dataset.test} == {0, 1, 2}
    full = runs.make(workspace, "CoOp", tmp_path / "all").classes.ids
    assert ids["base"] + ids["new"] == full
