"""Compact students: backbones by name, every rival's loss against a slow reference, which head answers."""

from __future__ import annotations

import math

import pytest
import reference
import runs
import torch

from dho_plugin import DualHeadLogits
from dho_plugin.backbones import find_backbone, load_backbone
from dho_plugin.errors import UsageError
from dho_plugin.losses import binary_distillation_loss, feature_distillation_loss

RIVALS = ("CE", "KD", "KDFeature", "CEKD", "CEKDFeature", "SSKD", "DHKD", "StudentDHO")


def logits(rows: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(teacher, student, eta: float) -> float:
    """eta^2 times the mean over images of KL(teacher || student), by loops."""
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        p, q = reference.softmax(t / eta), reference.softmax(s / eta)
        total += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    return eta**2 * total / len(teacher)


def test_the_binary_loss_against_loops_and_its_gradient():
    own, teacher = logits(3, 0).requires_grad_(), logits(3, 1)
    loss = binary_distillation_loss(own, teacher, temperature=2.0)
    slow = torch.zeros((), dtype=torch.float64)
    for row, other in zip(own, teacher, strict=True):
        for s, t in zip(row, other, strict=True):
            coin = 1 / (1 + torch.exp(-(s - t) / 2))
            slow = slow + 4 * (0.5 * torch.log(0.5 / coin) + 0.5 * torch.log(0.5 / (1 - coin))) / 3
    torch.testing.assert_close(loss, slow)
    assert float(binary_distillation_loss(teacher, teacher, temperature=2.0)) == pytest.approx(0, abs=1e-12)
    mine, other = (torch.autograd.grad(value, own)[0] for value in (loss, slow))
    torch.testing.assert_close(mine, other)


def test_the_feature_loss_against_loops_and_its_gradient():
    own, teacher = logits(3, 0).requires_grad_(), logits(3, 1)
    loss = feature_distillation_loss(own, teacher, 10)
    slow = torch.zeros((), dtype=torch.float64)
    for a, b in zip(own, teacher, strict=True):
        difference = a / a.pow(2).sum().sqrt() - b / b.pow(2).sum().sqrt()
        slow = slow + math.log(10) / 2 * (difference * difference).sum() / 3
    torch.testing.assert_close(loss, slow)
    mine, other = (torch.autograd.grad(value, own)[0] for value in (loss, slow))
    torch.testing.assert_close(mine, other)
    right_angle = torch.eye(2, dtype=torch.float64)
    assert float(feature_distillation_loss(right_angle, right_angle.flip(0), 10)) == pytest.approx(math.log(10))


@pytest.fixture(scope="module")
def step(workspace, tmp_path_factory):
    """For each rival: its trainer, its first batch, and the losses that it computes there."""

    def made(name: str):
        trainer = runs.make(workspace, name, tmp_path_factory.mktemp(name), "", "TRAINER.DHO.LAMBDA 0.3")
        trainer.set_model_mode("eval")
        batch = trainer.train_loader_x.batches[0]
        return trainer, batch, trainer.losses(batch)

    return made


def parts(trainer, batch):
    """Features of the labelled and of the unlabelled images, labels, and both teacher logits; float64."""
    with torch.no_grad():
        sets = [batch, batch["unlabeled"]]
        features = [trainer.backbone(trainer.student.normalize(s["img"])) for s in sets]
        teacher = [trainer.teacher(s["img_teacher"]).double() for s in sets]
    return features, batch["label"], teacher


def cross_entropy(rows, labels) -> float:
    return -sum(math.log(float(reference.softmax(r)[y])) for r, y in zip(rows, labels, strict=True)) / len(labels)


def test_cekd_is_both_losses_on_one_head(step):
    trainer, batch, (losses, _, _) = step("CEKD")
    features, labels, teacher = parts(trainer, batch)
    own = [trainer.ce_head(f).double() for f in features]
    kd = sum(kl(t, o, 2.0) for t, o in zip(teacher, own, strict=True))
    assert float(losses["loss"]) == pytest.approx(0.3 * cross_entropy(own[0], labels) + 0.7 * kd, rel=1e-4)


@pytest.mark.parametrize("name", ["SSKD", "DHKD"])
def test_a_second_head_has_its_own_loss_and_the_first_answers(step, name):
    trainer, batch, (losses, _, _) = step(name)
    features, labels, teacher = parts(trainer, batch)
    own = [trainer.kd_head(f).double() for f in features]
    binary = [float(binary_distillation_loss(o, t, temperature=2.0)) for o, t in zip(own, teacher, strict=True)]
    kd = kl(teacher[1], own[1], 2.0) if name == "SSKD" else sum(binary)  # SSKD: unlabelled images alone
    ce = cross_entropy(trainer.ce_head(features[0]).double(), labels)
    assert float(losses["loss"]) == pytest.approx(0.3 * ce + 0.7 * kd, rel=1e-4)
    images = trainer.student.normalize(batch["img"])
    torch.testing.assert_close(trainer.model_inference(images), torch.softmax(trainer.ce_head(features[0]), dim=-1))


def test_cekdfeature_adds_the_feature_loss_of_both_sets(step):
    trainer, batch, (losses, _, _) = step("CEKDFeature")
    features, labels, _ = parts(trainer, batch)
    ce = cross_entropy(trainer.ce_head(features[0]).double(), labels)
    kd = sum(
        float(feature_distillation_loss(trainer.projection(f), trainer.teacher.features(s["img_teacher"]), 6))
        for f, s in zip(features, [batch, batch["unlabeled"]], strict=True)
    )
    assert float(losses["loss"]) == pytest.approx(0.3 * ce + 0.7 * kd, rel=1e-4)


@pytest.mark.parametrize("name", ["KD", "KDFeature"])
def test_distillation_alone_sees_unlabelled_images_and_no_label(step, name):
    trainer, batch, (losses, shown, answers) = step(name)
    labeled = {item.impath for item in trainer.dm.dataset.train_x}
    source = trainer.train_loader_x.batches.labeled
    assert not labeled & set(source.paths) and set(batch["label"].tolist()) == {-1} and "unlabeled" not in batch
    with torch.no_grad():
        features = trainer.backbone(trainer.student.normalize(batch["img"]))
        teacher = trainer.teacher(batch["img_teacher"])
        if name == "KD":
            expected = kl(teacher.double(), trainer.ce_head(features).double(), 2.0)
        else:
            target = trainer.teacher.features(batch["img_teacher"])
            expected = float(feature_distillation_loss(trainer.projection(features), target, 6))
            # Classified by the teacher's texts on the projected feature.
            unit = torch.nn.functional.normalize
            texts = trainer.teacher.vlm.class_embeddings(trainer.classes.names, trainer.templates())
            cosines = unit(trainer.projection(features), dim=-1) @ texts.T
            torch.testing.assert_close(shown.detach(), 100 * cosines, rtol=1e-4, atol=1e-3)
    assert float(losses["loss"]) == pytest.approx(expected, rel=1e-4) and torch.equal(answers, teacher.argmax(1))


@pytest.mark.parametrize("name", RIVALS)
def test_a_compact_student_of_torchvision_trains_with_every_rival(workspace, tmp_path, name):
    small = "INPUT.SIZE (32,32) TRAINER.DHO.STEPS_PER_EPOCH 1 OPTIM.MAX_EPOCH 1"
    flags = "--backbone shufflenet_v2_x0_5"
    row = runs.run(workspace, name, tmp_path / "a", flags, small)
    again = runs.make(workspace, name, tmp_path / "b", f"{flags} --eval-only --model-dir x", small)
    again.load_model(str(tmp_path / "a"))
    assert again.test() == row["test"]


def test_every_method_of_a_seed_starts_from_the_same_student(workspace, tmp_path):
    flags, size = "--backbone timm/test_resnet", "INPUT.SIZE (32,32)"
    states = [runs.make(workspace, name, tmp_path / name, flags, size).student.state_dict() for name in ("CE", "SSKD")]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    other = runs.make(workspace, "CE", tmp_path / "2", f"{flags} --seed 2", size).student.state_dict()
    assert any(not torch.equal(a, b) for a, b in zip(states[0].values(), other.values(), strict=True))


@pytest.mark.parametrize(("student", "head", "cosine"), [("clip", "auto", True), ("timm/test_resnet", "auto", False)])
def test_the_kd_head_suits_the_student(workspace, tmp_path, student, head, cosine):
    flags = "" if student == "clip" else f"--backbone {student}"
    trainer = runs.make(workspace, "StudentDHO", tmp_path, flags, f"INPUT.SIZE (32,32) TRAINER.DHO.HEAD.KD {head}")
    assert (type(trainer.kd_head.head).__name__ == "CosineHead") is cosine
    assert isinstance(trainer.model(torch.zeros(1, 3, 32, 32)), DualHeadLogits)


def test_nonlinear_heads_of_either_kind(workspace, tmp_path):
    options = "INPUT.SIZE (32,32) TRAINER.DHO.HEAD.KD nonlinear TRAINER.STUDENT.HEAD nonlinear"
    trainer = runs.make(workspace, "StudentDHO", tmp_path, "--backbone timm/test_resnet", options)
    layers = ["Linear", "LayerNorm", "GELU", "Dropout", "Linear"]
    for head in (trainer.ce_head.head, trainer.kd_head.head):
        assert [type(layer).__name__ for layer in head] == layers
    with pytest.raises(UsageError, match="no text tower"):
        runs.make(workspace, "StudentDHO", tmp_path / "b", "--backbone timm/test_resnet", "TRAINER.DHO.HEAD.INIT text")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "Did you mean 'resnet18'"),
        ("vit_tiny_patch16_224", "Did you mean 'timm/vit_tiny_patch16_224'"),
        ("resnet18:dino", "expected a file or one of"),
        ("timm/resnet18.nope", "timm has"),
        ("resnet18:/nowhere.pth", "expected a file"),
    ],
)
def test_an_unknown_backbone_is_named_with_the_way_out(name, message):
    with pytest.raises(UsageError, match=message):
        find_backbone(name)


@pytest.mark.parametrize("name", ["KD", "KDFeature", "SSKD", "CasPL"])
def test_what_needs_unlabelled_images_says_so(workspace, tmp_path, name):
    with pytest.raises(UsageError, match=f"{name} needs unlabelled images"):
        runs.make(workspace, name, tmp_path, "--labels-only")


def test_distillation_alone_is_refused_where_every_image_is_labelled(workspace, tmp_path):
    with pytest.raises(UsageError, match="no image is left for KD"):
        runs.run(workspace, "KD", tmp_path, "--shots -1")


def test_networks_that_cannot_serve_are_refused():
    with pytest.raises(UsageError, match="linear classifier"):
        load_backbone("squeezenet1_0")
    with pytest.raises(UsageError, match="takes no images of 32 pixels"):
        load_backbone("vit_b_16", 32)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "module."])
def test_local_weights_with_or_without_their_classifier(tmp_path, wrapped):
    source = load_backbone("shufflenet_v2_x0_5", 32)
    state = {("module." if wrapped else "") + key: value for key, value in source.network.state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {**state, "fc.weight": torch.zeros(3, 3)}}, path)
    loaded = load_backbone(f"shufflenet_v2_x0_5:{path}", 32)
    for key, value in source.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], value)
    torch.save({key: value for key, value in state.items() if "conv5" not in key}, path)
    with pytest.raises(UsageError, match="lacks"):
        load_backbone(f"shufflenet_v2_x0_5:{path}", 32)


def test_a_name_that_is_no_student_says_what_it_could_be(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"As a classifier: .*As a CLIP"):
        runs.run(workspace, "StudentDHO", tmp_path, "--backbone nothing")
