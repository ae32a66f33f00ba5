"""Alpha and beta searched by a trainer, the start of the CE head, token merging at evaluation."""

from __future__ import annotations

import pytest
import runs
import tiny
import torch

from dho_plugin import DualHeadLogits, interpolate
from dho_plugin.errors import UsageError
from dho_plugin.interpolation import ALPHA_GRID, BETA_GRID
from dho_plugin.runs import load_run


@pytest.fixture(scope="module")
def with_validation(workspace, tmp_path_factory):
    """The workspace's images with validation images of their own."""
    import shutil

    import numpy as np

    root = tmp_path_factory.mktemp("with_validation")
    shutil.copytree(workspace, root, dirs_exist_ok=True)
    rng = np.random.default_rng(7)
    for wnid in tiny.WNIDS:
        for number in range(4):
            tiny.write_image(root / "imagenet/images/own" / wnid / f"{number}.JPEG", rng, tiny.WNIDS.index(wnid))
    return root


@pytest.fixture
def own_validation(monkeypatch):
    from dho_plugin.datasets.imagenet import ImageNet

    monkeypatch.setattr(ImageNet, "val_folder", "own")


def logits_on(trainer, loader):
    parts = [(trainer.heads(images), labels) for images, labels in map(trainer.parse_batch_test, loader)]
    both = DualHeadLogits(torch.cat([p.ce for p, _ in parts]), torch.cat([p.kd for p, _ in parts]))
    return both, torch.cat([labels for _, labels in parts])


def accuracy(logits, labels, alpha, beta):
    return 100 * interpolate(logits, alpha=alpha, beta=beta).argmax(dim=-1).eq(labels).double().mean().item()


def test_the_search_takes_the_best_point_on_validation_and_the_checkpoint_carries_it(
    with_validation, own_validation, tmp_path
):
    row = runs.run(with_validation, "StudentDHO", tmp_path / "a", "", "TRAINER.DHO.CHOOSE val")
    again = runs.make(with_validation, "StudentDHO", tmp_path / "b")  # the command does not say how it was chosen
    again.load_model(str(tmp_path / "a"))
    chosen = again.interpolation
    assert chosen.source == "val" and (chosen.alpha, chosen.beta) != (0.4, 0.5)
    logits, labels = logits_on(again, again.val_loader)
    best = max(accuracy(logits, labels, alpha, beta) for alpha in ALPHA_GRID for beta in BETA_GRID)
    assert accuracy(logits, labels, chosen.alpha, chosen.beta) == pytest.approx(best)
    assert again.test() == row["test"]
    loaded = load_run(tmp_path / "a")
    assert (loaded.interpolation.alpha, loaded.interpolation.beta) == (chosen.alpha, chosen.beta)


def test_a_run_with_fixed_values_can_be_searched_when_it_is_evaluated(with_validation, own_validation, tmp_path):
    runs.run(with_validation, "StudentDHO", tmp_path / "a")
    flags = f"--eval-only --model-dir {tmp_path / 'a'}"
    runs.run(with_validation, "StudentDHO", tmp_path / "b", flags, "TRAINER.DHO.CHOOSE val")
    searched = runs.make(with_validation, "StudentDHO", tmp_path / "c", flags, "TRAINER.DHO.CHOOSE val")
    searched.load_model(str(tmp_path / "a"))
    assert searched.interpolation.source == "val"
    fixed = load_run(tmp_path / "a")
    assert (fixed.interpolation.alpha, fixed.interpolation.source) == (0.4, "fixed")


def test_a_search_on_the_test_images_is_called_oracle_wherever_its_result_stands(workspace, tmp_path, capsys):
    row = runs.run(workspace, "LinearProbeDHO", tmp_path, "--ood", "TRAINER.DHO.CHOOSE oracle")
    assert list(row) == [f"{name} (oracle)" for name in ("test", "V2", "Sketch", "R", "A")]
    assert "oracle, not a result" in capsys.readouterr().out
    trainer = load_run(tmp_path)
    logits, labels = logits_on(trainer, trainer.test_loader)
    best = max(accuracy(logits, labels, alpha, beta) for alpha in ALPHA_GRID for beta in BETA_GRID)
    assert row["test (oracle)"] == pytest.approx(best)


def test_a_misspelt_choice_is_refused(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"TRAINER.DHO.CHOOSE 'vall'.*val"):
        runs.make(workspace, "StudentDHO", tmp_path, "", "TRAINER.DHO.CHOOSE vall")


def test_the_ce_head_of_a_clip_student_starts_from_texts_or_not(workspace, tmp_path):
    texts = runs.make(workspace, "CE", tmp_path, "", "TRAINER.STUDENT.INIT text").ce_head.head.weight
    auto = runs.make(workspace, "CE", tmp_path).ce_head.head.weight
    kaiming = runs.make(workspace, "CE", tmp_path, "", "TRAINER.STUDENT.INIT kaiming").ce_head.head.weight
    assert torch.equal(texts, auto) and not torch.allclose(texts, kaiming, atol=0.05)
    with pytest.raises(UsageError, match="cannot start from texts"):
        runs.make(
            workspace, "CE", tmp_path, "--backbone timm/test_resnet", "TRAINER.STUDENT.INIT text INPUT.SIZE (32,32)"
        )


@pytest.mark.parametrize("name", ["StudentDHO", "VPTDHO", "CoOp"])
def test_tokens_are_merged_when_a_model_evaluates_and_not_when_it_learns(workspace, tmp_path, name):
    plain = runs.make(workspace, name, tmp_path)
    merging = runs.make(workspace, name, tmp_path, "--tome 4")
    images = plain.student.normalize(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    for trainer in (plain, merging):
        trainer.set_model_mode("train")
    torch.testing.assert_close(merging.backbone(images), plain.backbone(images))
    for trainer in (plain, merging):
        trainer.set_model_mode("eval")
    assert not torch.allclose(merging.backbone(images), plain.backbone(images), atol=1e-4)
    torch.testing.assert_close(
        merging.backbone(images),
        merging.backbone.at_test.encode_image(
            images, [] if merging.backbone.visual is None else [merging.backbone.visual()]
        ),
    )


def test_token_merging_without_a_vit_is_refused(workspace, tmp_path):
    with pytest.raises(UsageError, match="no plain CLIP ViT"):
        runs.make(workspace, "CE", tmp_path, "--backbone timm/test_resnet --tome 4", "INPUT.SIZE (32,32)")
    with pytest.raises(UsageError, match="plain ViT"):
        runs.make(workspace, "LinearProbe", tmp_path, f"--backbone {workspace}/teacher.pt --tome 4")
