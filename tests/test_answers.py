from __future__ import annotations

import json

import pytest
import runs
import torch

from dho_plugin.analysis import answers
from dho_plugin.analysis.answers import answers_of, sets_of, teacher_of
from dho_plugin.errors import UsageError
from dho_plugin.runs import load_run


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    """A finished StudentDHO and what it was evaluated to."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    return folder, runs.run(workspace, "StudentDHO", folder, "--ood")


def accuracy(found) -> float:
    return 100 * found.probabilities().argmax(dim=-1).eq(found.labels).double().mean().item()


def test_the_stored_logits_give_the_accuracies_of_the_run(run):
    folder, row = run
    assert sets_of(folder) == ["test", "val", "V2", "Sketch", "R", "A"]
    for split in row:
        assert accuracy(answers_of(folder, split)) == pytest.approx(row[split])


def test_a_set_of_some_classes_has_their_logits_alone(run):
    folder, _ = run
    whole, some = answers_of(folder), answers_of(folder, "A")
    assert whole.ce.shape == (12, 6) and some.ce.shape == some.logits.kd.shape == (6, 3)
    assert some.classes == ("goldfish", "crane", "tank suit") and some.labels.max() == 2
    trainer = load_run(folder)
    trainer.test_rows = torch.tensor([1, 3, 5])
    image = torch.stack(
        [
            answers.TestImages(answers.images_of(trainer, "A")[0], size=32, interpolation=trainer.dm.interpolation)[0][
                "img"
            ]
        ]
    )
    at_once = trainer.heads(trainer.student.normalize(image))
    torch.testing.assert_close(some.logits.kd[:1].float(), at_once.kd, atol=1e-4, rtol=1e-4)


def test_the_model_looks_once(run, monkeypatch):
    folder, _ = run
    first = answers_of(folder)
    monkeypatch.setattr(answers, "load_run", lambda *_: pytest.fail("loaded again"))
    again = answers_of(folder)
    assert torch.equal(first.ce, again.ce) and first.paths == again.paths and first.alpha == again.alpha == 0.4


def test_other_weights_are_asked_anew(workspace, tmp_path):
    runs.run(workspace, "CE", tmp_path, "", "OPTIM.MAX_EPOCH 1")
    before = answers_of(tmp_path)
    assert before.kd is None and before.chosen == ""
    with pytest.raises(UsageError, match="one head"):
        _ = before.logits
    pointer = tmp_path / "ce_head" / "checkpoint"
    part = tmp_path / "ce_head" / pointer.read_text().strip()
    state = torch.load(part, weights_only=True)
    state["state_dict"]["head.bias"] += torch.arange(6)
    torch.save(state, part)
    torch.testing.assert_close(answers_of(tmp_path).ce, before.ce + torch.arange(6), atol=1e-4, rtol=1e-4)


def test_the_student_before_its_training_is_asked_by_class_names(run, workspace, tmp_path):
    folder, _ = run
    row = runs.run(workspace, "ZeroshotCLIP", tmp_path, "--ood")
    for split in ("test", "A"):
        found = answers_of(folder, split, zero_shot=True)
        assert found.kd is None and accuracy(found) == pytest.approx(row[split])
    assert answers_of(folder).kd is not None  # kept apart


def test_half_a_file_is_written_again(run):
    folder, _ = run
    whole = answers_of(folder)
    file = folder / "answers" / "test.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(answers_of(folder).ce, whole.ce)
    assert [path.name for path in file.parent.glob("*.tmp")] == []


def test_the_teacher_is_asked_about_the_same_images(run, monkeypatch):
    folder, _ = run
    trainer = load_run(folder)
    items, _, _ = answers.images_of(trainer, "test")
    views = answers.TestImages(items, size=trainer.teacher.size, interpolation=trainer.dm.interpolation)
    wanted = trainer.teacher(torch.stack([views[i]["img"] for i in range(len(views))]))
    torch.testing.assert_close(teacher_of(folder).float(), wanted, atol=1e-3, rtol=1e-3)
    assert teacher_of(folder, "A").shape == (6, 3)


def test_what_cannot_be_asked(run, workspace, tmp_path):
    folder, _ = run
    with pytest.raises(UsageError, match=r"no set 'sketch'.*Sketch"):
        answers_of(folder, "sketch")
    with pytest.raises(UsageError, match="no run in"):
        answers_of(tmp_path)
    runs.run(workspace, "CE", tmp_path / "ce", "", "OPTIM.MAX_EPOCH 1")
    with pytest.raises(UsageError, match="CE has no teacher"):
        teacher_of(tmp_path / "ce")
    assert json.loads((folder / "manifest.json").read_text())["results"]  # nothing of the run was touched
