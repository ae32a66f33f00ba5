"""Runs of several processes are the runs of one: losses, weights, files, logs, results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import runs
import tiny
import torch
from dho_plugin.trainers import base
from dho_plugin.trainers.attached import AttachedDHO
from joint_runs import Left, commands, files, log, manifest, relative
from test_students import RIVALS
from test_trainers import OURS, TRAINED

from dho_plugin import cli
from dho_plugin.config import CONFIGS
from dho_plugin.datasets import drawn
from dho_plugin.datasets.imagenet import ImageNet
from dho_plugin.distributed import joined
from dho_plugin.errors import UsageError
from dho_plugin.host import TRAINER_REGISTRY, TrainerX
from dho_plugin.launch import TORCHRUN

SMALL = "OPTIM.MAX_EPOCH 2 TRAINER.DHO.STEPS_PER_EPOCH 2"
COMPACT = "MODEL.BACKBONE.NAME shufflenet_v2_x0_5 INPUT.SIZE (64,64)"  # random weights, and batch normalisation


def line(workspace: Path, trainer: str, output: Path, options: str = "", flags: str = "") -> list[str]:
    return runs.words(workspace, trainer, output, flags, f"{SMALL} {options}")


def both_stages(workspace: Path, output: Path) -> list[str]:
    """A stage two of four steps, which runs a stage one of two before."""
    whole = line(workspace, "CoOpCasPL", output)
    at = whole.index("TRAINER.CASPL.BOOSTING")
    return whole[:at] + whole[at + 2 :]


# Steps in two parts, which compute what a whole batch does where nothing is normalised over it.
IN_PARTS = ("LinearProbeDHO", "CoOpDHO", "PromptSRC", "CasPL")


def lines(workspace: Path, output: Path) -> dict[str, list[str]]:
    """A small run of every trainer, of all rivals on a compact student, of a whole CLIP with either tower."""
    found = {name: line(workspace, name, output / name, COMPACT if name in RIVALS else "") for name in OURS}
    found["vit"] = line(workspace, "StudentDHO", output / "vit")
    found["rn"] = line(workspace, "CE", output / "rn", f"MODEL.BACKBONE.NAME {workspace}/teacher.pt INPUT.SIZE (64,64)")
    found["stages"] = both_stages(workspace, output / "stages")
    for name in IN_PARTS:
        found[f"{name} in parts"] = line(workspace, name, output / f"{name}_in_parts", "TRAIN.ACCUMULATE 2")
    return found


STEPS = {**dict.fromkeys([*TRAINED, "vit", "rn"], 4), "stages": 2 + 4}


@pytest.fixture(scope="module")
def all_trainers(workspace, tmp_path_factory) -> tuple[Path, dict[str, list[list[Left]]]]:
    """The folder of all runs, and what one process and each of two has of them; in float64."""
    folder = tmp_path_factory.mktemp("joint")
    runs.boosting(workspace)
    left = {}
    for count in (1, 2):
        wanted = lines(workspace, folder / str(count))
        outcomes = processes.run(count, commands, list(wanted.values()), True, seconds=250)
        left[count] = [dict(zip(wanted, outcome, strict=True)) for outcome in outcomes]
    return folder, {name: [[of[name] for of in left[count]] for count in (1, 2)] for name in left[1][0]}


def check_equal(left: list[list[Left]], steps: int) -> None:
    """Losses and weights of two processes are those of one, and both processes' to the bit."""
    (alone,), (first, second) = left
    assert (alone.status, first.status, second.status) == (0, 0, 0), first.said
    assert first.losses == second.losses and first.model == second.model and len(first.losses) == steps
    assert max(relative(alone.losses, first.losses), default=0.0) < 1e-6
    for key, value in alone.learned.items():
        torch.testing.assert_close(
            first.learned[key], value, rtol=1e-6, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", [*OURS, "vit", "rn", "stages"])
def test_two_processes_take_the_steps_of_one(all_trainers, name):
    folder, left = all_trainers
    check_equal(left[name], STEPS.get(name, 0))
    one, two = folder / "1" / name, folder / "2" / name
    assert files(one) == files(two) and log(one) == log(two)
    if name == "stages":
        assert manifest(one / "stage_one") == manifest(two / "stage_one") and log(one / "stage_one") == log(
            two / "stage_one"
        )
    if name != "ZeroshotCLIP":
        assert manifest(one) == manifest(two)


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_step_in_parts_is_the_whole_step_and_shares_gradients_once(all_trainers, name):
    left = all_trainers[1]
    check_equal(left[f"{name} in parts"], 4)
    assert max(relative(left[name][0][0].losses, left[f"{name} in parts"][0][0].losses)) < 1e-6
    assert [of.reductions for of in left[f"{name} in parts"][1]] == [4, 4]


# Answers


@pytest.fixture(scope="module")
def odd(workspace, tmp_path_factory) -> Path:
    """The workspace with 11 test images, 13 validation images of their own, and a probe that knows some classes."""
    root = tmp_path_factory.mktemp("odd")
    tiny.imagenet_tree(root)
    for name in ("student.safetensors", "teacher.pt"):
        (root / name).symlink_to(workspace / name)
    next((root / "imagenet/images/val").rglob("*_1.JPEG")).unlink()
    next((root / "imagenetv2").rglob("*_1.JPEG")).unlink()
    rng = np.random.default_rng(7)
    for number in range(13):
        tiny.write_image(root / f"imagenet/images/own/{tiny.WNIDS[number % 6]}/{number}.JPEG", rng, number % 6)
    runs.run(root, "LinearProbeDHO", root / "model", "", "OPTIM.MAX_EPOCH 6 OPTIM.NAME adam OPTIM.LR 0.01")
    return root


def own_validation() -> None:
    ImageNet.val_folder = "own"


def asked(root: Path, output: Path) -> dict[str, list[str]]:
    shown = "TEST.PER_CLASS_RESULT True TEST.COMPUTE_CMAT True DATALOADER.TEST.BATCH_SIZE"
    loaded = f"--eval-only --ood --model-dir {root / 'model'}"
    found = {
        f"by {size}": runs.words(root, "LinearProbeDHO", output / f"by_{size}", loaded, f"{shown} {size}")
        for size in (2, 4, 20)
    }
    if output.name != "3":  # which cannot share a step of four images
        chosen = "TRAINER.DHO.CHOOSE val TEST.FINAL_MODEL best_val DATALOADER.TEST.BATCH_SIZE 3"
        found["chosen"] = line(root, "LinearProbeDHO", output / "chosen", chosen)
        found["kept"] = line(root, "LinearProbeDHO", output / "kept", f"STORE.DIR {output / 'store'}")
    found["zero-shot"] = runs.words(root, "ZeroshotCLIP", output / "zero-shot", "--eval-only", f"{shown} 2")
    return found


@pytest.fixture(scope="module")
def answers(odd, tmp_path_factory) -> tuple[Path, dict[int, list[dict[str, Left]]]]:
    """The folder of all runs, and what each process has of them, by the number of processes."""
    folder = tmp_path_factory.mktemp("answers")
    left = {}
    for count in (1, 2, 3):
        wanted = asked(odd, folder / str(count))
        outcomes = processes.run(count, commands, list(wanted.values()), False, own_validation)
        left[count] = [dict(zip(wanted, outcome, strict=True)) for outcome in outcomes]
    return folder, left


def said_of(folder: Path) -> list[str]:
    """All that a log says from the first evaluation on, with the folder's name taken out."""
    lines = (folder / "log.txt").read_text().replace(str(folder.parent), "").splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("Evaluate on")) :]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["by 2", "by 4", "by 20", "zero-shot"])
def test_any_number_of_images_is_counted_as_by_one_process(answers, count, name):
    """11 images in 6, 3 and 1 batches: also fewer batches than processes."""
    folder, left = answers
    assert [of[name].status for of in left[count]] == [0] * count
    one, many = (folder / str(n) / name.replace(" ", "_") for n in (1, count))
    assert said_of(one) == said_of(many) and files(one) == files(many)
    assert "* total: 11" in said_of(one) and any(line.startswith("* class: ") for line in said_of(one))
    for file in [Path("cmat.pt"), *(Path("shifts", shift, "log.txt") for shift in ("V2", "A") if "by" in name)]:
        if file.suffix == ".pt":
            assert torch.equal(torch.load(one / file), torch.load(many / file))
        else:
            assert said_of((one / file).parent) == said_of((many / file).parent)


def test_some_answers_are_right_and_some_wrong(answers):
    """Else an evaluation that mixes them up would not show."""
    right = [line for line in said_of(answers[0] / "1" / "by_2") if line.startswith("* correct")]
    assert 0 < int(right[0].split()[-1]) < 11


def test_what_is_chosen_on_validation_images_is_chosen_alike(answers):
    folder, left = answers
    check_equal([[left[1][0]["chosen"]], [of["chosen"] for of in left[2]]], 4)
    one, two = folder / "1" / "chosen", folder / "2" / "chosen"
    assert files(one) == files(two) and manifest(one) == manifest(two) and log(one) == log(two)
    assert manifest(two)["interpolation"]["chosen"] == "val" and "* total: 13" in log(two)


def test_steps_read_what_two_processes_have_stored(answers):
    folder, left = answers
    check_equal([[left[1][0]["kept"]], [of["kept"] for of in left[2]]], 4)
    found = [[file for file in (folder / n / "store").rglob("*") if file.is_file()] for n in "12"]
    blocks = [sum(file.suffix == ".blocks" for file in files) for files in found]
    stored = [sum(file.stat().st_size for file in files if file.suffix != ".blocks") for files in found]
    assert stored[0] == stored[1] and blocks[1] == 2 * blocks[0]  # each process has files of its own


# Beginning


def two_seeds(workspace: Path, folder: Path) -> tuple[list[Left], list[Any]]:
    """A run by --seed -1 of this process, with random weights everywhere, and the shots that it has drawn."""
    words = line(workspace, "StudentDHO", folder / "run", f"{COMPACT} TRAINER.DHO.HEAD.INIT kaiming", "--seed -1")
    shots, begin = [], base.begin

    def noted(cfg: Any, dataset: Any, *args: Any, **keywords: Any) -> bool:
        shots.append(sorted(item.impath for item in dataset.train_x))
        return begin(cfg, dataset, *args, **keywords)

    base.begin = noted
    return commands([words], False), shots


def test_a_random_seed_is_one_for_all_processes_and_another_for_each_run(workspace, tmp_path):
    (first,), shots = (found := processes.run(2, two_seeds, workspace, tmp_path / "a"))[0]
    (second,), others = found[1]
    assert first.status == second.status == 0 and first.losses == second.losses and shots == others
    assert first.model == second.model
    (again,), _ = processes.run(2, two_seeds, workspace, tmp_path / "b")[0]
    assert again.model != first.model and again.losses[0] != first.losses[0]


def written(workspace: Path, root: Path, output: Path) -> int:
    """Build a run on pictures that are not there yet; how many folders of them this process has begun."""
    begun, make = [], drawn.tempfile.mkdtemp

    def counted(*args: Any, **keywords: Any) -> str:
        begun.append(make(*args, **keywords))
        return begun[-1]

    drawn.tempfile.mkdtemp = counted
    words = f"--trainer LinearProbe --dataset digits --no-train --root {root} --output-dir {output} --backbone "
    left = commands([[*words.split(), f"{workspace}/student.safetensors"]], False)
    assert left[0].status == 0, left[0].said
    return len([folder for folder in begun if Path(folder).parent == root])


def test_the_first_process_draws_the_pictures_alone(workspace, tmp_path):
    assert processes.run(2, written, workspace, tmp_path / "data", tmp_path / "run") == [1, 0]


class Foreign(TrainerX):
    """A trainer of somebody else's."""


def refused(workspace: Path, output: Path) -> list[str]:
    """What is said of three commands before anything is built."""
    TRAINER_REGISTRY.register(Foreign)
    found = []
    with joined():
        for trainer, options in (
            ("Foreign", ""),
            ("LinearProbe", "TRAIN.ACCUMULATE 4"),
            ("LinearProbe", "DATALOADER.TRAIN_X.BATCH_SIZE 3"),
        ):
            words = [*line(workspace, "LinearProbe", output, options), "TRAINER.NAME", trainer]
            words[words.index("--trainer") + 1] = trainer
            if trainer == "Foreign":
                words[2:2] = ["--config-file", str(CONFIGS / "trainers/LinearProbe/vit_b16_ep20.yaml")]
            with pytest.raises(UsageError) as raised:
                cli.build_config(cli.parser().parse_args(words))
            found.append(str(raised.value))
    return found


def test_what_cannot_be_shared_is_refused_at_once(workspace, tmp_path):
    for foreign, parts, batch in processes.run(2, refused, workspace, tmp_path):
        assert "Foreign is no trainer of dho_plugin's own" in foreign and "without torchrun" in foreign
        assert "TRAIN.ACCUMULATE 4: 2 images of DATALOADER.TRAIN_X.BATCH_SIZE" in parts
        assert "DATALOADER.TRAIN_X.BATCH_SIZE 3 is the batch of all 2 processes" in batch


def test_an_attached_trainer_is_refused_under_torchrun(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match=r"under torchrun: .* start it without"):
        AttachedDHO.check_cfg(object.__new__(AttachedDHO), None)


def test_data_parallel_is_refused_with_the_command_to_use(workspace, tmp_path):
    trainer = runs.make(workspace, "LinearProbe", tmp_path)
    trainer.model = torch.nn.DataParallel(trainer.model)
    with pytest.raises(UsageError, match=r"LinearProbe in a DataParallel: leave it out, .* torchrun --nproc_per_node"):
        trainer.train()
