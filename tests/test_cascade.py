"""CasPL: the cascade against a slow reference, both stages, and the artefact between them."""

from __future__ import annotations

import math
import shutil

import pytest
import reference
import runs
import tiny
import torch

from dho_plugin import cli
from dho_plugin.cascade import BoostedVLM, BoostingPrompts
from dho_plugin.classes import ClassList
from dho_plugin.errors import UsageError
from dho_plugin.prompts import PromptedClassifier, PromptLearner, VisualPrompts
from dho_plugin.vlm import load_vlm

LAYERS = 3
CLASSES = ClassList(("crane", "tank suit"), ("crane", "tank suit"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    vision = {**tiny.VIT, "layers": LAYERS}
    path = tiny.save_self_describing(tmp_path_factory.mktemp("v") / "v.safetensors", tiny.tiny_clip(vision), vision)
    return load_vlm(str(path)).double()


def boosting_of(vlm, depth_text: int = 2, depth_visual: int = 3) -> BoostingPrompts:
    depths = {"depth_text": depth_text, "depth_visual": depth_visual}
    return BoostingPrompts(vlm, n_text=2, n_visual=3, ctx_init="a photo of a", **depths, seed=5).double()


@pytest.mark.parametrize("depths", [(1, 1), (1, 3), (3, 1), (2, 3)], ids=str)
def test_visual_prompts_stand_behind_the_boosting_ones_in_every_layer(vlm, depths):
    boosting = boosting_of(vlm, depth_visual=depths[0])
    own = VisualPrompts(vlm, n=2, depth=depths[1], seed=9).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ours = BoostedVLM(vlm, boosting).encode_image(images, [own()])
    state, blocks = dict(vlm.model.state_dict()), [boosting.visual(), own()]
    slow = torch.stack([reference.prompted_image(image, blocks, state, LAYERS, heads=1) for image in images])
    torch.testing.assert_close(ours, slow, rtol=1e-8, atol=1e-8)
    learned = [own.prompts, boosting.visual.prompts]
    for mine, other in zip(*(torch.autograd.grad(out.pow(2).sum(), learned) for out in (ours, slow)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("order", ["boosting_first", "adapting_first"])
@pytest.mark.parametrize("depths", [(1, 1), (1, 2), (2, 1), (2, 2)], ids=str)
def test_text_prompts_stand_behind_the_boosting_ones_in_every_layer(vlm, order, depths):
    boosting = boosting_of(vlm, depth_text=depths[0])
    own = PromptLearner(vlm, CLASSES, n_ctx=3, depth=depths[1], seed=9).double()
    embeddings, end, deep, shared = own()
    ours = BoostedVLM(vlm, boosting, text_order=order).encode_text_embeddings(embeddings, end, deep, shared)
    none = torch.zeros(0, 2, 64, dtype=torch.float64)
    blocks = [none if boosting.deep is None else boosting.deep, *deep]
    slow = []
    for row in range(2):
        start, context, rest = embeddings[row, :1], own.ctx, embeddings[row, 4:]
        parts = [boosting.ctx, context] if order == "boosting_first" else [context, boosting.ctx]
        ordered = blocks if order == "boosting_first" else blocks[::-1]
        cascade = torch.cat([start, *parts, rest])
        slow.append(
            reference.prompted_text(cascade, int(end[row]) + 2, ordered, dict(vlm.model.state_dict()), 2, heads=1)
        )
    torch.testing.assert_close(ours, torch.stack(slow), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("CoOpCasPL", "TRAINER.COOP.N_CTX 0"),
        ("PromptSRCCasPL", "TRAINER.PROMPTSRC.N_CTX_TEXT 0 TRAINER.PROMPTSRC.N_CTX_VISION 0"),
    ],
)
def test_stage_two_without_adapting_prompts_is_stage_one_exactly(workspace, tmp_path, name, nothing):
    one = runs.make(workspace, "CasPL", tmp_path / "one")
    untrained = {k: v.clone() for k, v in one.boosted.boosting.state_dict().items()}
    one.load_model(str(runs.boosting(workspace)))
    assert any(not torch.equal(v, untrained[k]) for k, v in one.boosted.boosting.state_dict().items())
    section = "COOP" if name.startswith("CoOp") else "PROMPTSRC"
    words = [*runs.words(workspace, name, tmp_path / "two", "", nothing), f"TRAINER.{section}.CTX_INIT", ""]
    two = runs.build_trainer(cli.build_config(cli.parser().parse_args(words)))
    images = one.parse_batch_test(next(iter(one.test_loader)))[0]
    for trainer in (one, two):
        trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = one.model(images)
        assert logits.std() > 0 and torch.equal(two.model(images), logits)


def test_the_classifier_of_a_boosted_model_is_scaled_cosine(vlm):
    boosted = BoostedVLM(vlm, boosting_of(vlm))
    classifier = PromptedClassifier(boosted, PromptLearner(vlm, CLASSES, n_ctx=0).double())
    features = torch.randn(3, vlm.width, dtype=torch.float64)
    texts = boosted.encode_text_embeddings(*classifier.prompt_learner())
    slow = [[vlm.logit_scale * float(f @ t / (f.norm() * t.norm())) for t in texts] for f in features]
    torch.testing.assert_close(classifier(features).double(), torch.tensor(slow).double(), rtol=1e-4, atol=1e-3)


def test_stage_one_matches_the_seniors_probabilities_on_all_images_without_a_label(workspace, tmp_path):
    trainer = runs.make(workspace, "CasPL", tmp_path, options="TRAINER.CASPL.TEMPERATURE 2.0")
    batches = trainer.train_loader_x.batches
    assert len(batches.labeled.paths) == 24 and set(batches.labels.tolist()) == {-1}  # 4 images of each of 6 classes
    batch = batches[0]
    losses, logits, shown = trainer.losses(batch)
    with torch.no_grad():
        senior = trainer.senior(batch["img_teacher"])
    assert torch.equal(shown, senior.argmax(1))
    slow = 0.0
    for own, other in zip(logits.detach().double(), senior.double(), strict=True):
        q, p = reference.softmax(own / 2), reference.softmax(other / 2)
        slow += 4 * sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True)) / len(logits)
    assert float(losses["loss"]) == pytest.approx(slow, rel=1e-3)
    # The senior speaks at the student's scale.
    cosines = senior / trainer.vlm.logit_scale
    assert cosines.abs().max() <= 1 + 1e-5


def test_train_py_runs_both_stages_and_goes_on_where_it_was(workspace, tmp_path, capsys):
    words = runs.words(workspace, "CoOpCasPL", tmp_path / "out")
    at = words.index("TRAINER.CASPL.BOOSTING")
    args = cli.parser().parse_args([*words[:at], *words[at + 2 :]])
    row = cli.run(cli.build_config(args), args)
    first = capsys.readouterr().out
    assert "Stage one, CasPL" in first and row["test"] >= 0
    # Stage one learns as long as its own file says, whatever OPTIM options are for stage two.
    files = ("stage_one/boosting/model.pth.tar-20", "boosting/model.pth.tar-2")
    saved = [torch.load(tmp_path / "out" / file) for file in files]
    for key, value in saved[0]["state_dict"].items():
        assert torch.equal(value, saved[1]["state_dict"][key])
    assert cli.run(cli.build_config(args), args) == row
    again = capsys.readouterr().out
    assert all(text in first and text not in again for text in ("epoch [1/20]", "epoch [1/2]"))


def test_boosting_prompts_serve_other_classes(workspace, tmp_path):
    options = "DATASET.SUBSAMPLE_CLASSES base"
    runs.run(workspace, "CoOpCasPL", tmp_path / "base", options=options)
    new = runs.make(workspace, "CoOpCasPL", tmp_path / "new", "--eval-only --model-dir x", options[:-4] + "new")
    new.load_model(str(tmp_path / "base"))
    assert new.test() >= 0 and len(new.classes.names) == 3


def test_stage_two_says_what_is_missing_or_wrong(workspace, tmp_path, vlm):
    trainer = runs.make(workspace, "CoOpCasPL", tmp_path / "a")
    trainer.cfg.defrost()
    trainer.cfg.TRAINER.CASPL.BOOSTING = ""
    with pytest.raises(UsageError, match="no boosting prompts"):
        trainer.train()
    with pytest.raises(UsageError, match=r"model-best\.pth\.tar|holds nothing"):
        runs.make(workspace, "CoOpCasPL", tmp_path / "b", options=f"TRAINER.CASPL.BOOSTING {tmp_path}")
    state = boosting_of(vlm).state_dict()
    narrow = {**state, "visual.prompts": state["visual.prompts"][..., :32]}
    with pytest.raises(UsageError, match="another model"):
        BoostingPrompts.like(vlm, narrow)
    with pytest.raises(UsageError, match="expected boosting prompts"):
        BoostingPrompts.like(vlm, {"weight": torch.zeros(1)})
    front = PromptLearner(vlm, CLASSES, n_ctx=2, position="front").double()
    with pytest.raises(UsageError, match="adapting_first"):
        BoostedVLM(vlm, boosting_of(vlm), text_order="adapting_first").encode_text_embeddings(*front())
    with pytest.raises(UsageError, match="reads at most 77"):
        long = PromptLearner(vlm, CLASSES, n_ctx=71).double()
        BoostedVLM(vlm, boosting_of(vlm)).encode_text_embeddings(*long())


def test_a_resnet_is_refused(workspace, tmp_path):
    with pytest.raises(UsageError, match="plain ViT"):
        runs.make(workspace, "CasPL", tmp_path, f"--backbone {workspace}/teacher.pt")


def test_artefact_keeps_its_own_sizes_whatever_the_options_say(workspace, tmp_path):
    options = "TRAINER.CASPL.N_CTX_TEXT 1 TRAINER.CASPL.PROMPT_DEPTH_VISION 1"
    runs.run(workspace, "CasPL", tmp_path / "one", options=options)
    trainer = runs.make(workspace, "CoOpCasPL", tmp_path / "two", options=f"TRAINER.CASPL.BOOSTING {tmp_path}/one")
    assert trainer.boosted.boosting.ctx.shape[0] == 1 and len(trainer.boosted.boosting.visual()) == 1


def test_other_boosting_prompts_in_the_same_folder_are_refused(workspace, tmp_path):
    runs.run(workspace, "CasPL", tmp_path / "one", options="OPTIM.LR 0.02")
    first = f"TRAINER.CASPL.BOOSTING {runs.boosting(workspace)}"
    row = runs.run(workspace, "CoOpCasPL", tmp_path / "two", options=first)
    assert runs.run(workspace, "CoOpCasPL", tmp_path / "two", options=first) == row
    with pytest.raises(UsageError, match="behind other boosting prompts"):
        runs.run(workspace, "CoOpCasPL", tmp_path / "two", options=f"TRAINER.CASPL.BOOSTING {tmp_path}/one")


def test_stage_one_must_be_finished_and_of_this_student(workspace, tmp_path):
    folder = tmp_path / "one"
    runs.run(workspace, "CasPL", folder, options="TRAIN.CHECKPOINT_FREQ 1")
    other = runs.words(workspace, "CoOpCasPL", tmp_path / "b", options=f"TRAINER.CASPL.BOOSTING {folder}")
    other[other.index("--backbone") + 1] = str(
        shutil.copy(workspace / "student.safetensors", tmp_path / "s.safetensors")
    )
    with pytest.raises(UsageError, match="its student is"):
        runs.build_trainer(cli.build_config(cli.parser().parse_args(other)))
    (folder / "boosting" / "checkpoint").write_text("model.pth.tar-1\n")  # as after a kill
    with pytest.raises(UsageError, match="its number of epochs is 1, and 2 is wanted"):
        runs.make(workspace, "CoOpCasPL", tmp_path / "a", options=f"TRAINER.CASPL.BOOSTING {folder}")


def test_an_evaluation_keeps_the_order_that_was_trained(workspace, tmp_path):
    order = "TRAINER.CASPL.TEXT_ORDER adapting_first"
    runs.run(workspace, "CoOpCasPL", tmp_path / "a", options=order)
    again = runs.make(workspace, "CoOpCasPL", tmp_path / "b", f"--eval-only --model-dir {tmp_path}/a")
    assert again.boosted.text_order == "boosting_first"
    again.load_model(str(tmp_path / "a"))
    assert again.boosted.text_order == "adapting_first"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("TRAINER.CASPL.TEXT_ORDER boosting_frist", "Did you mean 'boosting_first'"),
        ("TRAINER.CASPL.TEXT_ORDER adapting_first TRAINER.COOP.CLASS_TOKEN_POSITION middle", "in front of the class"),
    ],
)
def test_what_stage_two_cannot_do_is_said_before_stage_one(workspace, tmp_path, options, message, capsys):
    words = runs.words(workspace, "CoOpCasPL", tmp_path / "out", options=options)
    at = words.index("TRAINER.CASPL.BOOSTING")
    args = cli.parser().parse_args([*words[:at], *words[at + 2 :]])
    with pytest.raises(UsageError, match=message):
        cli.run(cli.build_config(args), args)
    assert "epoch [" not in capsys.readouterr().out


def test_stage_two_has_no_labels_only(workspace, tmp_path):
    with pytest.raises(UsageError, match="CoOpCasPL needs unlabelled images"):
        runs.make(workspace, "CoOpCasPL", tmp_path, "--labels-only")
