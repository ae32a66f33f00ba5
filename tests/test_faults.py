"""Faults from outside that no other file tests: hostile checkpoints and names, listings and classes in any order, and
labels that must not be seen.

tests/guards.py lists what stands against each fault, and shows that its test fails without it.
"""

from __future__ import annotations

import math
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
import test_attach
import test_bad_images
import test_folder
import tiny
import torch

from dho_plugin import cli, labels, pool
from dho_plugin.backbones import load_backbone
from dho_plugin.classes import ClassHead, ClassList
from dho_plugin.config import merge_file
from dho_plugin.datasets import imagenet as imagenet_module
from dho_plugin.datasets.split_cache import cache_files
from dho_plugin.errors import UsageError
from dho_plugin.heads import DualHeadLogits
from dho_plugin.host import DATASET_REGISTRY, get_cfg_default, set_random_seed
from dho_plugin.interpolation import interpolate
from dho_plugin.loaders import EpochLoader, StepBatches
from dho_plugin.pool import unlabeled_paths
from dho_plugin.runs import load_run
from dho_plugin.towers import VLM, ImageSpec

FAKE = "x\n* accuracy: 99.9%\n"


def fake_results(out: str) -> list[str]:
    return [line for line in out.splitlines() if "accuracy: 99.9" in line and line.startswith("*")]


# Rows 9 and 10: files that run code when they are unpickled


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


@pytest.fixture
def probe(workspace, tmp_path) -> Path:
    """The output folder of a finished run."""
    runs.run(workspace, "LinearProbe", tmp_path / "probe", "", "TRAIN.CHECKPOINT_FREQ 1")
    return tmp_path / "probe"


def test_a_runs_checkpoint_that_runs_code_is_refused_wherever_it_enters(workspace, probe, tmp_path):
    file, canary = probe / "ce_head" / "model.pth.tar-2", tmp_path / "canary"
    torch.save({**torch.load(file, weights_only=True), "optimizer": Evil(canary)}, file)
    way_out = r"model\.pth\.tar-2.*convert_trusted_checkpoint"
    with pytest.raises(UsageError, match=f"(?s){way_out}"):
        runs.run(workspace, "LinearProbe", tmp_path / "a", f"--eval-only --model-dir {probe}")
    with pytest.raises(UsageError, match=f"(?s){way_out}"):
        runs.run(workspace, "StudentDHO", tmp_path / "b", f"--teacher {probe}")
    with pytest.raises(UsageError, match=f"(?s){way_out}"):
        runs.run(workspace, "LinearProbe", probe, "", "TRAIN.CHECKPOINT_FREQ 1")  # which goes on from it
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.exists()  # it would have run


def test_a_students_weights_that_run_code_are_refused(tmp_path):
    torch.save({"state_dict": Evil(tmp_path / "canary")}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match=r"evil\.pth.*plain tensors"):
        load_backbone(f"resnet18:{tmp_path / 'evil.pth'}")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("options", ["", "DATASET.SPLIT_CACHE coop"])
def test_imagenets_cached_listing_that_runs_code_is_refused(tmp_path, options):
    listing = cache_files(tiny.imagenet_tree(tmp_path) / "imagenet", 2, 1)[1]
    listing.write_bytes(pickle.dumps({"train": [Evil(tmp_path / "canary")], "test": []}))
    with pytest.raises(UsageError, match=r"preprocessed\.pkl is no split.*it asks for '\w+\.open'"):
        imagenet(tmp_path, options)
    assert not (tmp_path / "canary").exists()


# Row 14: file systems list in any order


def imagenet(root: Path, options: str = "", seed: int = 1):
    line = f"--trainer CoOp --dataset imagenet --root {root} --shots 2 --seed {seed} {options}"
    cfg = cli.build_config(cli.parser().parse_args(line.split()))
    set_random_seed(cfg.SEED)
    dataset = DATASET_REGISTRY.get("ImageNet")(cfg)
    return dataset, unlabeled_paths(cfg, dataset.train_x)


class Shuffled:
    """What os.scandir gives, in an order of ours."""

    def __init__(self, entries, order: random.Random) -> None:
        with entries:
            self.entries = iter(order.sample(found := list(entries), len(found)))

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self):
        return self.entries

    def __next__(self):
        return next(self.entries)

    def close(self) -> None:
        pass


def shuffle_listings(monkeypatch, seed: int) -> None:
    order = random.Random(seed)  # an own one: the draws must not depend on these
    listdir, scandir, iterdir = os.listdir, os.scandir, Path.iterdir
    monkeypatch.setattr(os, "listdir", lambda *path: order.sample(found := listdir(*path), len(found)))
    monkeypatch.setattr(os, "scandir", lambda *path: Shuffled(scandir(*path), order))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(order.sample(found := list(iterdir(self)), len(found))))


def content(dataset) -> list[list[tuple[str, int]]]:
    sets = (dataset.train_x, dataset.val, dataset.test, dataset.train_u)
    return [[(item.impath, item.label) for item in items or []] for items in sets]


def test_the_order_of_listings_changes_no_split(workspace, monkeypatch):
    dataset, rest = imagenet(workspace)
    for seed in range(3):
        with monkeypatch.context() as patch:
            shuffle_listings(patch, seed)
            assert os.listdir(workspace) != sorted(os.listdir(workspace))
            again, rest_again = imagenet(workspace)
        assert (content(again), rest_again) == (content(dataset), rest)


def test_the_order_of_listings_changes_no_split_of_ones_own(tmp_path, monkeypatch):
    for number in range(24):
        test_folder.image(tmp_path / "train" / f"class {number % 4}" / f"sub {number % 3}" / f"{number}.jpg", number)
        test_folder.image(tmp_path / "unlabeled" / f"{number % 5}" / f"{number}.jpg", 100 + number)

    def built():
        set_random_seed(1)
        dataset, cfg = test_folder.build(tmp_path, "--shots 2")
        return content(dataset), cfg.DATASET.CONTENT

    plain = built()
    for seed in range(3):
        with monkeypatch.context() as patch:
            shuffle_listings(patch, seed)
            assert built() == plain


# Row 23: batch normalisation over one image


@pytest.mark.parametrize("name", ["CE", "StudentDHO", "KD"])
def test_a_batch_of_one_image_is_not_normalised(workspace, tmp_path, name):
    def train(flags: str, backbone: str = "timm/test_resnet"):
        options = "DATALOADER.TRAIN_X.BATCH_SIZE 1 INPUT.SIZE (32,32)"
        runs.make(workspace, name, tmp_path / "out", f"{flags} --backbone {backbone}", options).train()

    labels_only = "" if name == "KD" else "--labels-only"  # beside an unlabelled image it is no batch of one
    with pytest.raises(UsageError, match="timm/test_resnet normalises over the batch"):
        train(labels_only)
    train(labels_only, f"{workspace}/student.safetensors")
    if name == "StudentDHO":
        train(f"--output-dir {tmp_path / 'more'}")


# Row 25: alpha and beta searched where they must not be


@pytest.mark.parametrize("choose", ["val", "oracle"])
def test_an_attached_trainer_does_not_search(workspace, tmp_path, choose):
    with pytest.raises(UsageError, match=f"TRAINER.DHO.CHOOSE {choose}: an attached trainer takes fixed values"):
        test_attach.make(workspace, "LogitsHostDHO", tmp_path, f"TRAINER.DHO.CHOOSE {choose}")


# Row 26: labels of unlabelled images


def relabelled(build):
    """A dataset builder whose training images have other labels than they should; names stay with the labels."""

    def garbage(cfg):
        dataset = build(cfg)
        for item in dataset.train_x:
            item._label = 5 - item.label
        return dataset

    return garbage


@pytest.mark.parametrize("name", ["StudentDHO", "CEKD", "KD", "CasPL"])
def test_labels_that_a_loss_must_not_see_change_nothing(workspace, tmp_path, monkeypatch, name):
    def final(output: str) -> dict[str, torch.Tensor]:
        trainer = runs.make(workspace, name, tmp_path / output)
        trainer.train()
        return {key: value for module in trainer.learned().values() for key, value in module.state_dict().items()}

    honest = final("honest")
    monkeypatch.setattr(pool, "build_dataset", relabelled(pool.build_dataset))
    if name in ("KD", "CasPL"):  # which show no loss the labels of the few either
        monkeypatch.setattr(labels, "build_dataset", relabelled(labels.build_dataset))
    poisoned = final("poisoned")
    assert honest and all(torch.equal(honest[key], poisoned[key]) for key in honest)


# Row 28: teacher and student have their classes in other orders

ORDER = [3, 0, 5, 2, 1, 4]


def permute(run: Path) -> None:
    """Bring the rows of a linear probe's checkpoint, and its own list of classes, into another order."""
    file = run / "ce_head" / "model.pth.tar-2"
    checkpoint = torch.load(file, weights_only=True)
    state = checkpoint["state_dict"]
    for key in ("head.weight", "head.bias"):
        state[key] = state[key][ORDER]
    ids, names = ClassList.decode(state["_extra_state"])
    state["_extra_state"] = ClassList(tuple(ids[i] for i in ORDER), tuple(names[i] for i in ORDER)).encode()
    torch.save(checkpoint, file)


def test_a_teacher_with_its_classes_in_another_order_teaches_the_same(workspace, probe, tmp_path):
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)

    def answers() -> tuple[torch.Tensor, torch.Tensor]:
        teacher = runs.make(workspace, "StudentDHO", tmp_path / "a", f"--teacher {probe}").teacher
        return teacher(views), teacher.directions()

    before = answers()
    permute(probe)
    torch.testing.assert_close(answers(), before)
    assert load_run(probe).class_logits(torch.zeros(1, 3, 32, 32)).shape == (1, 6)


def test_a_run_does_not_go_on_from_classes_in_another_order(workspace, probe):
    permute(probe)
    with pytest.raises(UsageError, match="trained on other classes"):
        runs.run(workspace, "LinearProbe", probe, "", "TRAIN.CHECKPOINT_FREQ 1")


def test_rows_of_another_order_do_not_load():
    head = ClassHead(torch.nn.Linear(2, 2), ClassList(("n1", "n2"), ("crane", "crane")))
    other = ClassHead(torch.nn.Linear(2, 2), ClassList(("n2", "n1"), ("crane", "crane")))
    with pytest.raises(UsageError, match="other classes"):
        head.load_state_dict(other.state_dict())


# Row 29: a test set with five of ten classes


def test_golden_numbers_of_five_of_ten_classes():
    """By hand: CE's exp(logits) are 1 to 10, KD's are 2 to the power of its row; wanted are the rows 9, 1, 4, 0, 6."""
    ids = tuple(f"n{number:08d}" for number in range(10))
    wanted = tuple(ids[row] for row in (9, 1, 4, 0, 6))
    rows = ClassList(ids, ids).rows(ClassList(wanted, wanted))
    ce = torch.tensor([[math.log(1 + row) for row in range(10)]], dtype=torch.float64)
    kd = torch.tensor([[math.log(2) * row for row in range(10)]], dtype=torch.float64)
    found = interpolate(DualHeadLogits(ce, kd).restrict(rows), alpha=0.25, beta=0.5)
    # CE: 10, 2, 5, 1, 7 of 25. KD at temperature 1/2: 4 to the power of 9, 1, 4, 0, 6, of 266501 together.
    by_hand = [
        0.25 * share / 25 + 0.75 * power / 266501
        for share, power in zip((10, 2, 5, 1, 7), (262144, 4, 256, 1, 4096), strict=True)
    ]
    golden = [0.837738319931, 0.020011256993, 0.050720447578, 0.010002814248, 0.081527161249]
    assert by_hand == pytest.approx(golden, abs=1e-12) and sum(golden) == pytest.approx(1)
    assert found[0].tolist() == pytest.approx(golden, abs=1e-12)


# Row 32: prompts that a tokenizer would cut


class CuttingTokenizer:
    """A token a word, padded or cut, as the tokenizers of other libraries do it that open_clip wraps (SigLIP's)."""

    def __call__(self, texts: list[str], context_length: int) -> torch.Tensor:
        rows = [[49406, *(10 + len(word) for word in text.split()), 49407] for text in texts]
        return torch.tensor([(row + [1] * context_length)[:context_length] for row in rows])


def test_prompts_are_not_cut_by_a_tokenizer_that_would():
    spec = ImageSpec(32, tuple(tiny.MEAN), tuple(tiny.STD))
    vlm = VLM(tiny.tiny_clip(), name="tiny", tokenizer=CuttingTokenizer(), image=spec)
    assert vlm.tokenize(["crane " * 75]).shape == (1, 77)
    with pytest.raises(UsageError, match=r"tiny reads at most 77 tokens.*'a photo of a crane crane"):
        vlm.class_embeddings(["tench", "crane " * 72], ["a photo of a {}."])


# Row 44: names that would pass for a result in a log


def test_a_file_that_is_passed_over_cannot_pass_for_a_result(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(4):
        tiny.write_image(tmp_path / f"{number}.jpg", rng, number)
    bad = tmp_path / f"4{FAKE}.jpg"
    bad.write_bytes(b"")
    paths = [str(tmp_path / f"{number}.jpg") for number in range(4)] + [str(bad)]
    batches = StepBatches(test_bad_images.source(paths, "skip"), [0] * 5, 5, None, 0)
    list(EpochLoader(batches, steps=1, workers=0, pin_memory=False))
    said = capsys.readouterr().out
    assert r"4x\n* accuracy: 99.9%\n.jpg" in said and not fake_results(said)


def test_a_model_folder_cannot_pass_for_a_result(workspace, probe, tmp_path, capsys):
    folder = tmp_path / FAKE
    shutil.move(probe, folder)
    checkpoint = torch.load(folder / "ce_head" / "model.pth.tar-2", weights_only=True)
    torch.save({**checkpoint, "epoch": FAKE}, folder / "ce_head" / "model.pth.tar-2")
    line = runs.words(workspace, "LinearProbe", tmp_path / "a", "--eval-only")
    args = cli.parser().parse_args(line)
    args.model_dir = str(folder)
    cli.run(cli.build_config(args), args)
    said = capsys.readouterr().out
    assert r"x\n* accuracy: 99.9%\n/ce_head" in said and not fake_results(said)


def test_a_class_of_an_attached_trainer_cannot_pass_for_a_result(workspace, tmp_path, monkeypatch):
    """Dassl's own evaluator prints the names that the trainer hands to it."""
    monkeypatch.setattr(imagenet_module, "read_classnames", lambda path: {wnid: FAKE for wnid in tiny.WNIDS})
    trainer = test_attach.make(workspace, "LogitsHostDHO", tmp_path)
    assert set(trainer.lab2cname.values()) == {r"x\n* accuracy: 99.9%\n"}


def test_a_record_that_runs_code_is_refused(workspace, probe, tmp_path):
    """The settings that a run has left, read back where it is gone on from or teaches."""
    record = probe / "config.yaml"
    record.write_text(f"SEED: !!python/object/apply:builtins.open ['{tmp_path}/canary', 'w']\n")
    for call in (lambda: load_run(probe), lambda: runs.run(workspace, "LinearProbe", probe)):
        with pytest.raises(UsageError, match=r"config\.yaml.*no record of a run"):
            call()
    assert not (tmp_path / "canary").exists()


# Row 45: configuration files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: !!python/object/apply:builtins.open ['CANARY', 'w']\n", "not valid yaml.*python/object"),
        ("SEED: !!python/name:os.system\n", "not valid yaml.*python/name"),
        ("TRAINER:\n  DHO:\n    LAMDA: 1.0\n", "'TRAINER.DHO.LAMDA' in .*t.yaml. Did you mean 'TRAINER.DHO.LAMBDA'"),
        ("OPTIM:\n  LR:\n    X: 1.0\n", "'OPTIM.LR.X' in .*t.yaml. Did you mean 'OPTIM.LR'"),
        ("OPTIM: 3\n", "'OPTIM' in .*t.yaml"),
        (f"SEED: {'9' * 5000}\n", "not valid yaml.*4300"),
        ("OPTIM: &a\n  LR: *a\n", "not valid yaml.*recursion"),
        ("SEED: 1 # \xe9\n", "not valid yaml.*utf-8"),
        ("- SEED\n- 1\n", "t.yaml: expected sections with keys"),
        ("OPTIM:\n  LR: 2026-01-01\n", "t.yaml: Key OPTIM.LR with value <class 'datetime.date'>"),
    ],
    ids=range(10),
)
def test_what_a_configuration_file_may_not_say(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text.replace("CANARY", str(tmp_path / "canary")), encoding="latin-1")
    cfg = get_cfg_default()
    before = str(cfg)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        merge_file(cfg, tmp_path / "t.yaml")
    assert str(cfg) == before and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("text", [f"SEED: {2**32}\n", f"OPTIM:\n  MAX_EPOCH: 0x{'f' * 6000}\n"], ids=["seed", "epochs"])
def test_a_number_that_nothing_can_hold(tmp_path, text):
    (tmp_path / "t.yaml").write_text(text)
    line = ["--trainer", "CoOp", "--dataset", "shapes", "--config-file", str(tmp_path / "t.yaml")]
    line += ["--seed", str(2**32)] if "SEED" in text else []
    with pytest.raises(UsageError, match=r"SEED: a number of 33 bits|MAX_EPOCH: a number of 24000 bits"):
        cli.build_config(cli.parser().parse_args(line))
