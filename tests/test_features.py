from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import runs
import tiny
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from dho_plugin.__main__ import main as command
from dho_plugin.analysis import answers, features, linear_evaluation, separation
from dho_plugin.analysis.answers import answers_of
from dho_plugin.analysis.compared import find_runs
from dho_plugin.analysis.features import features_of
from dho_plugin.analysis.linear_evaluation import PAPER, fit_head, score, standardise
from dho_plugin.errors import UsageError
from dho_plugin.runs import load_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dho(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "dho"
    runs.run(workspace, "StudentDHO", folder)
    return folder


@pytest.fixture(scope="module")
def ce(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "ce"
    runs.run(workspace, "CE", folder, "--seed 2", "OPTIM.MAX_EPOCH 1")
    return folder


def clusters(classes: int, each: int, *, seed: int = 0, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the same centres for every seed, in 5 dimensions of very different scales."""
    centres = 3 * torch.randn(classes, 5, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(classes).repeat_interleave(each)
    noise = torch.randn(classes * each, 5, generator=torch.Generator().manual_seed(seed))
    return (centres[labels] + spread * noise) * torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0]), labels


# Features of a run


@pytest.mark.parametrize("trainer", ["StudentDHO", "LinearProbeDHO", "VPTDHO", "CEKDFeature"])
def test_they_are_what_the_heads_read(trainer, workspace, tmp_path):
    runs.run(workspace, trainer, tmp_path, "", "OPTIM.MAX_EPOCH 1")
    found, kept = features_of(tmp_path), answers_of(tmp_path)
    model = load_run(tmp_path)
    with torch.no_grad():
        heads = {"ce": model.ce_head, **({"kd": model.kd_head} if hasattr(model, "kd_head") else {})}
        for name, head in heads.items():
            torch.testing.assert_close(head(found.z), getattr(kept, name).float(), atol=1e-3, rtol=1e-3)
    assert torch.equal(found.labels, kept.labels) and found.classes == kept.classes
    if trainer == "VPTDHO":
        images = torch.stack([answers.TestImages(model.dm.dataset.test, size=32, interpolation=3)[0]["img"]])
        assert not torch.allclose(model.vlm.features(images), found.z[:1], atol=1e-2)


def test_the_training_images_are_all_of_them_with_their_labels(dho):
    found = features_of(dho, "train")
    assert found.z.shape == (24, 32) and found.labels.bincount().tolist() == [4] * 6
    assert len(load_run(dho).dm.dataset.train_x) == 12  # of which the run has seen the labels
    assert features_of(dho, "V2").z.shape == (12, 32)


def test_the_model_looks_once(dho, monkeypatch):
    first = features_of(dho)
    monkeypatch.setattr(features, "load", lambda *_: pytest.fail("loaded again"))
    assert torch.equal(features_of(dho).z, first.z)


def test_no_head_learns_from_test_images(workspace, tmp_path):
    tiny.imagenet_tree(tmp_path)
    for name in ("student.safetensors", "teacher.pt"):
        shutil.copy(workspace / name, tmp_path / name)
    runs.run(tmp_path, "CE", tmp_path / "run", "", "OPTIM.MAX_EPOCH 1")
    images = tmp_path / "imagenet" / "images"
    shutil.copy(next((images / "val" / tiny.WNIDS[0]).iterdir()), images / "train" / tiny.WNIDS[0] / "copy.JPEG")
    assert features_of(tmp_path / "run").z.shape == (12, 32)
    with pytest.raises(UsageError, match="remove them from the training images"):
        features_of(tmp_path / "run", "train")


# Linear evaluation


def test_features_are_standardised_as_scikit_learn_does():
    (train, _), (test, _) = clusters(3, 20), clusters(3, 7, seed=1)
    train[:, 3], test[:, 3] = 7.0, 7.0  # which says nothing
    scaler = StandardScaler().fit(train.numpy())
    for ours, points in zip(standardise(train, test), (train, test), strict=True):
        theirs = scaler.transform(points.numpy()) * np.sqrt(59 / 60)  # the sample's deviation
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-3)


def test_the_head_is_a_logistic_regression():
    """An independent solver: scikit-learn's, with next to no regularisation."""
    (train, labels), (test, wanted) = clusters(6, 60, spread=2.0), clusters(6, 200, seed=1, spread=2.0)
    ours = linear_evaluation.linear_evaluation((train, labels), (test, wanted), 6, seed=1, device=CPU)
    x, y = standardise(train, test)
    theirs = LogisticRegression(C=100.0, max_iter=1000).fit(x.numpy(), labels.numpy())
    reached = 100 * theirs.score(y.numpy(), wanted.numpy())
    assert 50 < reached < 95 and ours.top1 == pytest.approx(reached, abs=1.5)


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 9, generator=generator), torch.randint(9, (200,), generator=generator)
    found = score(nn.Identity(), logits, labels)
    for ours, k in ((found.top1, 1), (found.top5, 5)):
        theirs = 100 * top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=np.arange(9))
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert score(nn.Identity(), logits[:, :3], labels % 3).top5 == 100.0  # three classes have no fifth


def test_a_head_is_its_seeds():
    train, labels = clusters(3, 20)
    state = torch.random.get_rng_state()
    one, again, other = (fit_head(train, labels, 3, seed=seed).weight for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_papers_numbers():
    """Table 3."""
    assert PAPER.rows == {"CEKDFeature": (62.3, 85.0), "CEKD": (66.2, 88.8), "StudentDHO": (67.1, 89.3)}


# t-SNE


def test_the_silhouette_by_loops():
    points, labels = clusters(3, 6)
    x = nn.functional.normalize(points.double(), dim=1)
    distance = 1 - x @ x.T
    widths = []
    for i in range(len(x)):
        to = {c: distance[i, (labels == c) & (torch.arange(len(x)) != i)].mean().item() for c in range(3)}
        own, nearest = to.pop(int(labels[i])), min(to.values())
        widths.append((nearest - own) / max(own, nearest))
    assert separation.separation(points, labels).silhouette == pytest.approx(np.mean(widths), abs=1e-5)


def test_the_neighbours_are_asked_with_the_image_left_out():
    points, labels = clusters(4, 15, spread=3.0)
    knn = KNeighborsClassifier(separation.NEIGHBOURS, metric="cosine", algorithm="brute")
    guessed = cross_val_predict(knn, points.numpy(), labels.numpy(), cv=LeaveOneOut())
    found = separation.separation(points, labels).neighbours
    assert 30 < found < 95 and found == pytest.approx(100 * np.mean(guessed == labels.numpy()))
    one, two = torch.zeros(4, 2), torch.tensor([[0.0, 1.0]] * 4)
    assert separation.separation(torch.cat([one, two]), torch.arange(8) // 4, metric="euclidean").neighbours == 0.0


def test_the_images_shown_are_few_and_the_same_each_time():
    labels = torch.arange(7).repeat(30)
    rows = separation.shown_images(labels, images=50, classes=3)
    assert len(rows) == 50 and len(labels[rows].unique()) == 3 and torch.equal(rows, rows.sort().values)
    assert torch.equal(rows, separation.shown_images(labels, images=50, classes=3))
    assert len(separation.shown_images(labels, images=1000, classes=3)) == 90
    with pytest.raises(UsageError, match="one class"):
        separation.shown_images(torch.zeros(9, dtype=torch.long), images=5, classes=3)


def test_a_figure_has_a_panel_a_run_and_its_images_in_it():
    points, labels = clusters(6, 5)
    planes = {name: separation.embed(part, labels) for name, part in (("a", points), ("b", points), ("c", -points))}
    assert torch.equal(planes["a"].places, planes["b"].places)  # the same features, the same picture
    names = [f"class {number}" for number in range(6)]
    figure = separation.tsne_figure({**planes, "d": planes["a"]}, labels, names, "30 of 30 test images")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(figure.axes) == 6 and [axis.get_title("left").partition("\n")[0] for axis in shown] == list("abcd")
    assert "30 of 30 test images" in figure.get_suptitle()
    drawn = torch.tensor(np.concatenate([part.get_offsets() for part in shown[2].collections]))
    torch.testing.assert_close(drawn.float(), planes["c"].places)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


# The command


def test_the_command_compares_runs(dho, ce, tmp_path, capsys):
    words = ["features", str(ce), str(dho), "--images", "11", "--classes", "4", "--output-dir", str(tmp_path / "out")]
    assert command(words) == 0
    document = (tmp_path / "out" / "features.md").read_text()
    assert document in capsys.readouterr().out
    assert "| StudentDHO minus CE " in document and "|        67.1 |" in document
    assert "8 of 12 test images, 4 of 6 classes" in (tmp_path / "out" / "tsne.svg").read_text()
    assert (tmp_path / "out" / "tsne.png").stat().st_size > 1000
    values = json.loads((tmp_path / "out" / "features.json").read_text())
    assert {value["row"] for value in values} == {"CE", "StudentDHO"} and len(values) == 2 * (3 * 2 + 4)
    assert (tmp_path / "out" / "features.csv").read_text().count("\n") == 1 + len(values)
    train, test = features_of(ce, "train"), features_of(ce)
    sets = (train.z, train.labels), (test.z, test.labels)
    again = linear_evaluation.linear_evaluation(*sets, 6, seed=2, device=CPU).top1
    (found,) = [v["value"] for v in values if v["row"] == "CE" and v["measure"] == "top1, head of seed 2"]
    assert found == pytest.approx(again, abs=1e-3)


def test_one_part_alone(dho, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(separation, "embed", lambda *_: pytest.fail("not asked for"))
    assert command(["features", str(dho), "--linear", "--seeds", "4", "--output-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Figure 7" not in shown and " minus " not in shown and "of different seeds" not in shown
    assert not (tmp_path / "tsne.svg").exists()


def test_runs_of_a_trainer_that_differ_in_their_seed_share_a_row(dho, ce, workspace, tmp_path):
    runs.run(workspace, "CE", tmp_path / "a", "--seed 3", "OPTIM.MAX_EPOCH 1")
    assert [(run.row, run.seed) for run in find_runs([str(ce), str(tmp_path / "a"), str(dho)])] == [
        *(("CE", 2), ("CE", 3), ("StudentDHO", 1))
    ]
    shutil.copytree(ce, tmp_path / "b")
    assert [run.row for run in find_runs([str(ce), str(tmp_path / "b")])] == [str(ce), str(tmp_path / "b")]


def test_mistakes_are_said_before_a_model_looks(dho, ce, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "load", lambda *_: pytest.fail("too late"))
    for words, message in (
        ([str(tmp_path)], "no run in"),
        ([str(ce), str(ce)], "stands twice"),
        ([str(ce), "--images", "3"], "--images 3: expected 10 or more"),
        ([str(ce), "--seeds", "1", "1"], "--seeds 1 1"),
    ):
        assert command(["features", *words]) == 2
        assert message in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(ce, other)
    record = other / "config.yaml"
    record.write_text(record.read_text().replace("ImageNet", "Shapes"))
    assert command(["features", str(ce), str(other)]) == 2
    assert "give runs on one dataset" in capsys.readouterr().err


def test_a_missing_scikit_learn_is_said(ce, monkeypatch, capsys):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(separation.importlib, "import_module", missing)
    assert features.parse([str(ce)]).tsne
    with pytest.raises(UsageError, match=r"dho_plugin\[report\]"):
        features.main([str(ce), "--tsne"])
