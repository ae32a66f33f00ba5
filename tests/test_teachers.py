"""Few-shot teachers, and finished runs as teachers."""

from __future__ import annotations

import json
import random

import pytest
import runs
import torch

from dho_plugin.adapter import ALPHAS, BETAS, TipAdapterHead
from dho_plugin.errors import UsageError
from dho_plugin.runs import load_run

F = torch.nn.functional


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(alpha: float = 1.5, beta: float = 2.0) -> TipAdapterHead:
    """Three classes, five shots, features of width four, in float64."""
    texts = F.normalize(drawn(3, 4, seed=0), dim=-1)
    head = TipAdapterHead(texts, 5, scale=10.0, alpha=alpha, beta=beta).double()
    head.texts = texts
    head.fill(F.normalize(drawn(5, 4, seed=1), dim=-1), torch.tensor([0, 0, 1, 2, 2]))
    return head


def slow_logits(head: TipAdapterHead, features: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """scale * f w_c + alpha * sum of exp(-beta (1 - f k)) over the shots of class c, entry by entry."""
    rows = []
    for feature in features:
        f = feature / feature.pow(2).sum().sqrt()
        row = []
        for c in range(3):
            cache = torch.zeros((), dtype=torch.float64)
            for key, label in zip(keys, head.labels, strict=True):
                if int(label) == c:
                    cache = cache + torch.exp(-head.beta * (1 - (f * key).sum()))
            row.append(10.0 * (f * head.texts[c]).sum() + head.alpha * cache)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_the_adapter_against_loops_and_its_gradient():
    head, features, labels = adapter(), drawn(6, 4, seed=2), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(head(features), slow_logits(head, features, head.keys))
    own = torch.autograd.grad(F.cross_entropy(head(features), labels), head.keys)[0]
    slow = torch.autograd.grad(F.cross_entropy(slow_logits(head, features, head.keys), labels), head.keys)[0]
    torch.testing.assert_close(own, slow)
    assert own.abs().max() > 1e-3


def test_the_search_finds_the_best_of_its_grid_and_prefers_to_trust_the_texts():
    head, features, labels = adapter(), drawn(40, 4, seed=3), torch.arange(40) % 3
    found = head.search(features, labels)
    chosen = float(head.alpha), float(head.beta)
    scores = {}
    for beta in BETAS:
        for alpha in ALPHAS:
            head.alpha.fill_(alpha)
            head.beta.fill_(beta)
            scores[alpha, beta] = 100 * head(features).argmax(dim=-1).eq(labels).double().mean().item()
    assert found == pytest.approx(max(scores.values())) and scores[chosen] == pytest.approx(found)
    texts_alone = 100 * (F.normalize(features, dim=-1) @ head.texts.t()).argmax(dim=-1).eq(labels).double().mean()
    assert found >= float(texts_alone)
    perfect = (F.normalize(features, dim=-1) @ head.texts.t()).argmax(dim=-1)
    assert head.search(features, perfect) == 100 and float(head.alpha) == 0


def test_the_cache_is_the_mean_of_the_training_views(workspace, tmp_path):
    trainer = runs.make(workspace, "TipAdapterF", tmp_path, "", "TRAINER.TIPADAPTER.VIEWS 2")
    trainer.before_train()
    source, total = trainer.train_loader_x.batches.labeled, torch.zeros(12, 32)
    for position in range(24):  # two passes over the twelve shots, one view at a time
        view = source.batch(position, 1)
        feature = trainer.backbone(trainer.student.normalize(view["img"]))[0]
        total[int(view["index"][0])] += feature / feature.norm()
    torch.testing.assert_close(trainer.adapter.keys.detach(), F.normalize(total, dim=-1), rtol=1e-4, atol=1e-5)
    assert trainer.adapter.labels.tolist() == [item.label for item in trainer.dm.dataset.train_x]


@pytest.fixture(scope="module")
def artefact(workspace, tmp_path_factory):
    """The output folder of a trained few-shot teacher."""
    folder = tmp_path_factory.mktemp("artefact") / "tip"
    runs.run(workspace, "TipAdapterF", folder)
    return folder


def test_a_run_answers_as_a_teacher_what_it_answers_itself(workspace, tmp_path, artefact):
    student = runs.make(workspace, "StudentDHO", tmp_path, f"--teacher {artefact}")
    itself = load_run(artefact)
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    logits = student.teacher(views)
    torch.testing.assert_close(logits, itself.model_inference(itself.student.normalize(views)))
    assert student.teacher_size() == 32 and not logits.requires_grad
    assert student.teacher.train().training is False
    torch.testing.assert_close(student.teacher.directions(), itself.adapter.texts)


def test_two_heads_as_a_teacher_give_the_logarithm_of_their_answer(workspace, tmp_path):
    runs.run(workspace, "LinearProbeDHO", tmp_path / "run")
    student = runs.make(workspace, "KDFeature", tmp_path / "student", f"--teacher {tmp_path / 'run'}")
    itself = load_run(tmp_path / "run")
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    answers = itself.model_inference(itself.student.normalize(views))
    torch.testing.assert_close(student.teacher(views), answers.log())
    rows = F.normalize(itself.ce_head.head.weight.detach(), dim=-1)
    torch.testing.assert_close(student.texts.head.weight, rows)


@pytest.mark.parametrize("name", ["StudentDHO", "CEKD", "CEKDFeature", "CoOpDHO"])
def test_students_train_on_a_run(workspace, tmp_path, artefact, name):
    assert "test" in runs.run(workspace, name, tmp_path, f"--teacher {artefact}")


def test_a_teacher_of_other_shots_is_refused_unless_allowed_by_name(workspace, tmp_path, artefact):
    flags = f"--teacher {artefact} --seed 2"
    with pytest.raises(UsageError, match=r"same shots and seed.*OTHER_LABELS True"):
        runs.run(workspace, "StudentDHO", tmp_path / "a", flags)
    assert not (tmp_path / "a" / "backbone").exists()
    runs.run(workspace, "StudentDHO", tmp_path / "b", flags, "TRAINER.DHO.TEACHER.OTHER_LABELS True")


def test_a_run_without_a_manifest_counts_as_one_of_other_labels(workspace, tmp_path, artefact):
    (tmp_path / "copy").mkdir()
    for file in artefact.rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            copy = tmp_path / "copy" / file.relative_to(artefact)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match="unknown images"):
        runs.run(workspace, "StudentDHO", tmp_path / "out", f"--teacher {tmp_path / 'copy'}")


def test_a_folder_that_is_no_run_is_said_before_anything_is_built(workspace, tmp_path):
    with pytest.raises(UsageError, match="not the output folder"):
        runs.run(workspace, "StudentDHO", tmp_path / "out", f"--teacher {tmp_path}")


def test_loading_a_teacher_leaves_the_random_states_alone(workspace, tmp_path, artefact):
    student = runs.make(workspace, "StudentDHO", tmp_path, f"--teacher {artefact}")
    before = random.getstate(), torch.get_rng_state()
    assert student.teacher.size == 32
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_a_teacher_of_all_classes_serves_half_of_them(workspace, tmp_path, artefact):
    options = "DATASET.SUBSAMPLE_CLASSES base TRAINER.DHO.TEACHER.OTHER_LABELS True"
    student = runs.make(workspace, "StudentDHO", tmp_path, f"--teacher {artefact}", options)
    itself, views = load_run(artefact), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    whole = itself.model_inference(itself.student.normalize(views))
    torch.testing.assert_close(student.teacher(views), whole[:, :3])


def test_an_adapter_of_other_shots_loads(workspace, tmp_path, artefact):
    one_shot = runs.make(workspace, "TipAdapterF", tmp_path, "--shots 1 --eval-only --model-dir x")
    one_shot.load_model(str(artefact))
    assert len(one_shot.adapter.keys) == len(one_shot.adapter.labels) == 12


def test_the_untrained_adapter_keeps_its_cache_and_is_saved(workspace, tmp_path):
    row = runs.run(workspace, "TipAdapter", tmp_path, "", "TRAINER.TIPADAPTER.ALPHA 3.0")
    again = load_run(tmp_path)
    assert again.test() == row["test"] and float(again.adapter.alpha) == 3
    torch.testing.assert_close(again.adapter.keys.norm(dim=-1), torch.ones(12))
    assert runs.run(workspace, "TipAdapter", tmp_path, "", "TRAINER.TIPADAPTER.ALPHA 3.0") == row


def test_a_search_on_test_images_is_refused_before_training(workspace, tmp_path):
    with pytest.raises(UsageError, match="returns its test set as validation set"):
        runs.run(workspace, "TipAdapterF", tmp_path / "a", "", "TRAINER.TIPADAPTER.CHOOSE val")
    with pytest.raises(UsageError, match="returns its test set as validation set"):
        runs.run(workspace, "StudentDHO", tmp_path / "b", "", "TRAINER.DHO.CHOOSE val")
    assert not (tmp_path / "b" / "config.yaml").exists()


def test_the_manifest_names_the_labelled_images(workspace, tmp_path):
    runs.run(workspace, "CoOp", tmp_path / "a")
    runs.run(workspace, "CE", tmp_path / "b")
    runs.run(workspace, "CE", tmp_path / "c", "--seed 2")
    a, b, c = (json.loads((tmp_path / name / "manifest.json").read_text())["labeled"] for name in "abc")
    assert a == b and a["images"] == 12 and a["sha256"] != c["sha256"]


def test_prompts_are_those_of_a_zero_shot_teacher(workspace, tmp_path):
    option = "TRAINER.DHO.TEACHER.TEMPLATES ['tip-adapter']"
    seven = runs.make(workspace, "TipAdapter", tmp_path, "", option)
    assert len(seven.templates()) == 7 and "itap of a {}." in seven.templates()
    texts = seven.vlm.class_embeddings(seven.classes.names, seven.templates())
    torch.testing.assert_close(seven.adapter.texts, texts)
    teacher = runs.make(workspace, "LinearProbeDHO", tmp_path, "", option).teacher
    torch.testing.assert_close(teacher.texts, teacher.vlm.class_embeddings(seven.classes.names, seven.templates()))
