"""What `estimate` predicts is what a real step does, whatever the trainer; the numbers of the true models by hand."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import open_clip
import pytest
import runs
import torch

from dho_plugin import estimate
from dho_plugin.classes import ClassList
from dho_plugin.datasets.catalogue import PUBLISHED
from dho_plugin.errors import UsageError
from dho_plugin.estimate.counting import PARTS, count_step
from dho_plugin.estimate.imagined import LABELED, imagined
from dho_plugin.estimate.weightless import MEMORY, Shape, empty, weightless
from dho_plugin.host import DATASET_REGISTRY, TRAINER_REGISTRY, build_dataset
from dho_plugin.measuring import counted_flops
from dho_plugin.prompts import PromptLearner
from dho_plugin.saved import read_checkpoint
from dho_plugin.text_memory import kept_bytes
from dho_plugin.vlm import imagenet_classnames, random_vlm, untrained

BATCH = "DATALOADER.TRAIN_X.BATCH_SIZE 5"  # others than those of the tests' other runs


@pytest.fixture(scope="module", autouse=True)
def cheap_texts():
    """One tokenizer for all models, and few of PromptSRC's templates: both are taken many times here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "SimpleTokenizer", cache(open_clip.SimpleTokenizer))
        patch.setattr("dho_plugin.trainers.promptsrc.NUM_TEMPLATES", 2)
        yield


@cache
def predict(workspace: Path, name: str, options: str = BATCH, flags: str = "") -> dict:
    """The estimate of a small run of the tests."""
    args = estimate.parse(runs.words(workspace, name, workspace / "none", flags, options))
    return estimate.estimate(estimate.configuration(args), args)


def total(found: dict, way: str = "live") -> int:
    return sum(found["flops"][way].values())


@pytest.fixture(scope="module")
def real(workspace, tmp_path_factory):
    """A function that makes a real trainer in training mode and one of its batches."""

    @cache
    def make(name: str, options: str = BATCH) -> tuple:
        trainer = runs.make(workspace, name, tmp_path_factory.mktemp("run"), "", options)
        trainer.taught_by()
        trainer.set_model_mode("train")
        trainer.batch_idx, trainer.num_batches = 0, 9
        return trainer, trainer.train_loader_x.batches[0]

    return make


def kept_of(trainer, batch) -> int:
    modules = [trainer.model, trainer.student, trainer.taught_by(), *trainer.learned().values()]
    frozen = [t for m in modules if m is not None for t in (*m.parameters(), *m.buffers())]
    return kept_bytes(lambda: trainer.losses(batch), frozen)


OURS = [name for name in TRAINER_REGISTRY.registered_names() if hasattr(TRAINER_REGISTRY.get(name), "learned")]


@pytest.mark.parametrize("name", ["CoOpDHO", "VPTDHO"])
def test_a_step_in_parts_keeps_those_of_one(workspace, real, name):
    whole, found = predict(workspace, name, ""), predict(workspace, name, "TRAIN.ACCUMULATE 2")
    trainer, batch = real(name, "TRAIN.ACCUMULATE 2")
    with counted_flops() as counter:
        trainer.forward_backward(batch)
    assert total(found) == pytest.approx(counter.get_total_flops(), rel=0.01)
    kept = [each["memory"]["kept image"] for each in (found, whole)]
    assert kept[0] <= kept[1] / 2


@pytest.mark.parametrize("name", OURS)
def test_a_step_costs_what_was_predicted(workspace, real, name):
    found, (trainer, batch) = predict(workspace, name), real(name)
    kept = sum(found["memory"][f"kept {part}"] for part in PARTS)
    assert kept == pytest.approx(kept_of(trainer, batch), rel=0.1)
    with counted_flops() as counter:
        trainer.forward_backward(batch) if trainer.learned() else trainer.losses(batch)
    assert total(found) == pytest.approx(counter.get_total_flops(), rel=0.01)
    learned = {id(p): p.numel() for m in trainer.learned().values() for p in m.parameters() if p.requires_grad}
    assert found["memory"]["learned"] == sum(learned.values())
    state = [v for o in trainer._optims.values() if o for s in o.state.values() for v in s.values()]
    assert found["memory"]["optimizer"] == sum(v.nbytes for v in state if torch.is_tensor(v) and v.dim())
    assert found["run"]["steps_per_epoch"] == len(trainer.train_loader_x)


def test_parts_of_a_step_are_those_that_run_apart(workspace, real):
    found, (trainer, batch) = predict(workspace, "PromptSRCDHO")["flops"]["live"], real("PromptSRCDHO")
    images = torch.cat([trainer.student.normalize(part["img"]) for part in (batch, batch["unlabeled"])])
    views = torch.cat([part["img_teacher"] for part in (batch, batch["unlabeled"])])
    calls = {
        "teacher forward": lambda: trainer.teacher.features(views),
        "image forward": lambda: trainer.backbone(images),
        "reference forward": lambda: trainer.student.encode_image(images[:5]),
        "text forward": lambda: trainer.ce_head.text_features(),
    }
    for part, call in calls.items():
        with counted_flops() as counter:
            result = call()
            assert found[part] == counter.get_total_flops(), part
            if result.requires_grad:
                before = counter.get_total_flops()
                result.sum().backward()
                assert found[part.replace("forward", "backward")] == counter.get_total_flops() - before, part


def test_counting_changes_nothing_of_the_trainer(real):
    trainer, batch = real("PromptSRCDHO")
    before = trainer.losses(batch)[0]["loss"].item()
    step = count_step(trainer, batch)
    assert trainer.losses(batch)[0]["loss"].item() == before and step.peak == 0
    assert all(p.grad is None for module in trainer.learned().values() for p in module.parameters())
    assert "forward" not in vars(trainer.backbone)


def test_steps_that_are_said_to_cost_more_take_longer(workspace, real):
    """Of order, not of seconds: rows whose predictions lie a factor of three apart."""
    options = "DATALOADER.TRAIN_X.BATCH_SIZE 16"
    names = ("LinearProbe", "VPT", "StudentDHO")
    predicted = [total(predict(workspace, name, options)) for name in names]
    taken = []
    for name in names:
        trainer, batch = real(name, options)
        times = []
        for _ in range(3):
            start = time.process_time()
            trainer.forward_backward(batch)
            times.append(time.process_time() - start)
        taken.append(min(times))
    pairs = [(a, b) for a in range(len(names)) for b in range(len(names)) if predicted[a] > 2 * predicted[b]]
    assert len(pairs) >= 2
    for a, b in pairs:
        assert taken[a] > taken[b], (names[a], names[b], predicted, taken)


@pytest.mark.parametrize(("name", "options"), [("CoOpDHO", ""), ("PromptSRCDHO", "STORE.LABELED_VIEWS 2")])
def test_the_store_takes_the_bytes_that_were_predicted(workspace, tmp_path, name, options):
    options = f"STORE.DIR {tmp_path / 'store'} OPTIM.MAX_EPOCH 4 {options}"
    found = predict(workspace, name, options)["store"]
    runs.make(workspace, name, tmp_path / "run", "", options).train()
    written = [p.stat().st_size for kind in ("views", "features") for p in (tmp_path / "store").glob(f"*/*.{kind}")]
    assert sum(row["bytes"] for row in found["kept"] if not row["fresh"]) == sum(written)
    assert found["free"] > 0


def test_what_is_stored_costs_no_step(workspace):
    flops = predict(workspace, "PromptSRCDHO")["flops"]
    gone = {key for key, value in flops["stored"].items() if value != flops["live"][key]}
    assert gone == {"teacher forward", "reference forward"}
    flops = predict(workspace, "CoOpDHO")["flops"]
    assert {key for key in flops["stored"] if flops["stored"][key] != flops["live"][key]} == {
        "teacher forward",
        "image forward",
    }


def test_the_peers_text_is_all_tokens_of_all_prompts(workspace, real):
    found = predict(workspace, "CoOp")
    trainer, _ = real("CoOp")
    prompts, end, _, _ = trainer.ce_head.prompt_learner()
    whole = torch.nn.functional.pad(prompts, (0, 0, 0, trainer.vlm.context_length - prompts.shape[1]))
    with counted_flops() as counter:
        trainer.vlm.encode_text_embeddings(whole, end, shared=0)
    assert found["flops"]["peers"]["text forward"] == counter.get_total_flops() > found["flops"]["live"]["text forward"]


def test_a_text_in_parts_keeps_less_and_costs_more(workspace):
    whole, parts = predict(workspace, "CoOp"), predict(workspace, "CoOp", f"{BATCH} MODEL.TEXT_CHUNK 2")
    assert parts["memory"]["kept text"] < whole["memory"]["kept text"]
    assert parts["flops"]["live"]["text backward"] > whole["flops"]["live"]["text backward"]


# True sizes, without numbers


def test_the_true_models_cost_what_hand_arithmetic_says():
    """GFLOP a picture and a class, from layers, widths and tokens (12 w^2 a token and layer, and the attention)."""

    def tower(layers: int, width: int, tokens: int) -> float:
        return layers * (2 * 12 * width**2 * tokens + 2 * 2 * tokens**2 * width) / 1e9

    with weightless():
        for name, size, layers, width, patches in (
            ("ViT-B/16", 224, 12, 768, 196),
            ("ViT-L/14@336px", 336, 24, 1024, 576),
        ):
            vlm = random_vlm(name)
            with counted_flops() as counter:
                vlm.encode_image(empty((2, 3, size, size)))
            assert counter.get_total_flops() / 2e9 == pytest.approx(tower(layers, width, patches + 1), rel=0.02), name
            if name == "ViT-B/16":
                student = vlm
        names = imagenet_classnames()[:10]
        prompts, end, _, _ = PromptLearner(student, ClassList(names, names)).forward()
        whole = torch.nn.functional.pad(prompts, (0, 0, 0, 77 - prompts.shape[1]))
        with counted_flops() as counter:
            student.encode_text_embeddings(whole, end, shared=0)
    assert (
        counter.get_total_flops() / 1e10 == pytest.approx(tower(12, 512, 77), rel=0.02) == pytest.approx(5.96, rel=0.02)
    )
    assert tower(12, 768, 197) == pytest.approx(35.1, rel=0.02) and tower(24, 1024, 577) == pytest.approx(
        381.9, rel=0.02
    )


def test_coop_on_imagenet_without_its_images(capsys, monkeypatch, tmp_path):
    """The table of the research notes: 13.19, 25.4, 38.7 TFLOP; 24.9 GiB of text in fp32."""
    out, images = tmp_path / "e.json", 50_000  # of 1.28 million, which take seconds
    monkeypatch.setitem(PUBLISHED, "ImageNet", (1000, images, 0, 1000))
    words = f"--trainer CoOpDHO --dataset imagenet --shots 16 --gpu h200 --json {out}"
    assert estimate.main(words.split()) == 0
    found = json.loads(out.read_text())
    assert found["run"]["steps"] == 50 * 500 and found["run"]["unlabeled"] == images - 16_000
    assert total(found, "peers") / 1e12 == pytest.approx(38.7, rel=0.01)
    assert total(found) / 1e12 == pytest.approx(27.3, rel=0.01)
    assert total(found, "stored") / 1e12 == pytest.approx(0.64, rel=0.01)
    assert found["memory"]["kept text, peers"] / 2**30 == pytest.approx(24.9 / 2, rel=0.02)
    said = capsys.readouterr()
    assert "by published numbers: they are not here" in said.out and "the loader is the limit" in said.out
    assert "no image is decoded" in said.out and "counting a step" in said.err
    assert DATASET_REGISTRY.get("ImageNet").__module__ != "dho_plugin.estimate.imagined"


def test_stage_two_is_counted_behind_what_stage_one_would_learn(workspace):
    models = "--backbone shapes-student TRAINER.CASPL.SENIOR shapes-teacher TRAINER.CASPL.N_CTX_TEXT 6"
    args = estimate.parse(f"--trainer CoOpCasPL --dataset imagenet --root {workspace} --shots 2 {models}".split())
    with estimate.after_stage_one(estimate.configuration(args), args, there=True) as cfg:
        state = read_checkpoint(Path(cfg.TRAINER.CASPL.BOOSTING), "boosting", None)["state_dict"]
    assert len(state["ctx"]) == 6 and state["ctx"].count_nonzero() == 0


# Datasets whose images are elsewhere


@pytest.mark.parametrize(
    ("options", "labeled", "unlabeled", "classes"),
    [
        ("--shots 4", 4 * 47, 2820 - 4 * 47, 47),
        ("--shots 4 --labels-only", 4 * 47, 0, 47),
        ("--shots 4 DATASET.SUBSAMPLE_CLASSES base", 4 * 24, 24 * 60 - 4 * 24, 24),
        ("--shots 100 TRAIN.COUNT_ITER train_x", 2820, 0, 47),
    ],
)
def test_published_numbers_stand_for_images_that_are_not_there(options, labeled, unlabeled, classes):
    words = f"--trainer LinearProbe{'DHO' * bool(unlabeled)} --dataset dtd --backbone shapes-student"
    args = estimate.parse(f"{words} --teacher shapes-teacher {options}".split())
    run = estimate.estimate(estimate.configuration(args), args)["run"]
    assert (run["labeled"], run["unlabeled"], run["classes"]) == (labeled, unlabeled, classes)


def test_a_list_of_labels_is_counted(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("a.jpg\n\nb.jpg\n" * 20)
    args = estimate.parse(f"--trainer LinearProbe --dataset dtd --backbone shapes-student --labels {file}".split())
    cfg = estimate.configuration(args)
    with imagined(cfg) as changed:
        dataset = build_dataset(changed)
    assert len(dataset.train_x) == 40 and LABELED["simclr-1"] == 12_811


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B/16", "ViT-B/16:random"),
        ("ViT-B-16:laion2b_s34b_b88k", "ViT-B-16:random"),
        ("ViT-B/16:random", "ViT-B/16:random"),
        ("shapes-student", "shapes-student"),
        ("ViT-B-16-SigLIP:webli", "ViT-B-16-SigLIP:webli"),
    ],
)
def test_models_that_need_no_weights(name, expected):
    assert untrained(name) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--efficiency 2", "a share above 0"),
        ("--decode-ms 0", "milliseconds above 0"),
        ("--json /no/e.json", "no folder /no"),
        ("--eval-only", "leave out --eval-only"),
        ("--backbone ViT-B/17", "unknown model 'ViT-B/17'"),
        ("--backbone ViT-B-16:laion", "has no weights 'laion'"),
        ("--labels simclr-2", "no list 'simclr-2'"),
    ],
)
def test_mistakes_are_said_before_anything_is_built(words, message):
    with pytest.raises(UsageError, match=message):
        estimate.main(f"--trainer LinearProbe --dataset dtd --shots {-1 if 'labels' in words else 1} {words}".split())


def test_a_set_without_published_numbers_must_be_there():
    with pytest.raises(UsageError, match="no --root"):
        estimate.main(["--trainer", "LinearProbe", "--dataset", "imagenet_r"])


# Tensors without numbers


def test_shapes_are_those_of_real_tensors_and_memory_is_given_back():
    def compute(x: torch.Tensor) -> torch.Tensor:
        layer = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(inplace=True))
        return layer(x.float()).T[1:].sum(dim=1, keepdim=True)

    expected, before = compute(torch.ones(5, 6, dtype=torch.uint8)), MEMORY.live
    with weightless():
        found = compute(empty((5, 6), torch.uint8))
        assert found.requires_grad and type(found) is Shape
        view = empty((10, 10))[2:].half().T
        assert MEMORY.live > before
        assert (view.shape, view.dtype, view.device.type) == ((10, 8), torch.float16, "cpu")
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())
    del found, view
    assert MEMORY.live == before
