"""`attach` on trainers written here in the styles of CoOp, CoCoOp and PromptSRC, which know nothing of DHO."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import reference
import runs
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dho_plugin import attach
from dho_plugin.errors import UsageError
from dho_plugin.host import TRAINER_REGISTRY, TrainerX, TrainerXU, build_lr_scheduler, build_optimizer
from dho_plugin.vlm import load_vlm

ROOT = Path(__file__).resolve().parent.parent
FLAGS = f"--config-file {ROOT}/configs/trainers/CoOp/vit_b16_ep50.yaml"
OPTIONS = "INPUT.SIZE (32,32) OPTIM.LR 0.05 OPTIM.WARMUP_EPOCH -1"


class Frozen(nn.Module):
    """CoOp's kind: a frozen encoder, learned texts, logits out."""

    def __init__(self, cfg, names):
        super().__init__()
        vlm = load_vlm(cfg.MODEL.BACKBONE.NAME)
        self.image_encoder = vlm.model.visual
        self.prompt_learner = nn.Linear(vlm.width, vlm.width)
        self.register_buffer("texts", vlm.class_embeddings(names, ("a photo of a {}.",)))

    def classify(self, features):
        return 10 * F.normalize(features, dim=-1) @ F.normalize(self.prompt_learner(self.texts), dim=-1).T

    def forward(self, image):
        with torch.no_grad():
            features = self.image_encoder(image)
        features /= features.norm(dim=-1, keepdim=True)  # in place, as CLIP's own code does
        return self.classify(features)


class PromptedEncoder(nn.Module):
    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def forward(self, image, *, prompt):
        return self.visual(image + prompt)


class Prompted(Frozen):
    """CoCoOp's and MaPLe's kind: prompts are a further argument of the encoder, and the loss comes out in training."""

    def __init__(self, cfg, names):
        super().__init__(cfg, names)
        self.image_encoder = PromptedEncoder(self.image_encoder)
        self.prompt_learner.visual = nn.Parameter(torch.full((3, 1, 1), 0.1))

    def encode(self, image):
        return self.image_encoder(image, prompt=self.prompt_learner.visual)

    def forward(self, image, label=None):
        logits = self.classify(self.encode(image))
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


class Terms(Prompted):
    """PromptSRC's kind: several terms come out in training, and the trainer adds them up. All by keyword here."""

    def encode(self, image):
        return self.image_encoder(image=image, prompt=self.prompt_learner.visual)

    def forward(self, image, label=None):
        out = super().forward(image, label)
        return (out, self.prompt_learner.weight.pow(2).sum()) if self.prompt_learner.training else out


class HostTrainer(TrainerX):
    """What the three kinds share: building, as CoOp's trainers do it."""

    kind: type[Frozen]

    def build_model(self):
        torch.manual_seed(3)
        self.model = self.kind(self.cfg, self.dm.dataset.classnames)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name)
        learner = self.model.prompt_learner
        self.optim = build_optimizer(learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, self.sched)

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def update(self, loss):
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()

    def forward_backward(self, batch):
        loss = self.step(*self.parse_batch_train(batch))
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class LogitsHost(HostTrainer):
    kind = Frozen

    def step(self, image, label):
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        return loss


@TRAINER_REGISTRY.register()
class LossHost(HostTrainer):
    kind = Prompted

    def step(self, image, label):
        loss = self.model(image, label)
        self.update(loss)
        return loss


@TRAINER_REGISTRY.register()
class TermsHost(HostTrainer):
    kind = Terms

    def step(self, image, label):
        ce, decay = self.model(image, label)
        self.update(ce + 0.01 * decay)
        return ce + 0.01 * decay


HOSTS = [LogitsHost, LossHost, TermsHost]
for host in HOSTS:
    attach(host)
names = pytest.mark.parametrize("name", [host.__name__ for host in HOSTS])


def make(workspace, name: str, output, options: str = "", flags: str = ""):
    return runs.make(workspace, name, output, f"{FLAGS} {flags}", f"{OPTIONS} {options}")


def weights(trainer) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.detach().clone() for n, m in trainer._models.items() for k, v in m.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def begin(trainer):
    """As the loop stands before its first step; returns the batches."""
    trainer.before_train()
    trainer.set_model_mode("train")
    trainer.epoch = trainer.batch_idx = 0
    trainer.num_batches = len(trainer.train_loader_x)
    return trainer.train_loader_x.batches


def colourful(trainer, monkeypatch) -> None:
    """A random teacher says nearly the same of every image; this one does not."""
    colours = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) / 5
    monkeypatch.setattr(trainer.kd_teacher, "forward", lambda views: views.float().mean((2, 3)) @ colours)


@names
def test_trains_saves_loads_and_evaluates(workspace, tmp_path, name):
    trainer = make(workspace, f"{name}DHO", tmp_path / "train", "TEST.NO_TEST True")
    before = weights(trainer)
    frozen = {k: v.clone() for k, v in trainer.model.image_encoder.state_dict().items()}
    trainer.train()
    after = weights(trainer)
    assert {"prompt_learner.weight", "kd_head.head.weight"} <= set(after)
    assert not any(torch.equal(after[key], before[key]) for key in after)
    assert all(torch.equal(v, frozen[k]) for k, v in trainer.model.image_encoder.state_dict().items())
    for part in ("prompt_learner", "kd_head"):
        saved = torch.load(tmp_path / "train" / part / "model.pth.tar-2", weights_only=True)
        assert saved["epoch"] == 2 and saved["optimizer"] and saved["scheduler"]
    again = make(workspace, f"{name}DHO", tmp_path / "eval", "TRAINER.DHO.TEACHER.NAME nowhere.pt")
    assert not equal(weights(again), after)
    again.load_model(str(tmp_path / "train"), epoch=2)
    assert equal(weights(again), after)
    images, _ = again.parse_batch_test(next(iter(again.test_loader)))
    for each in (trainer, again):
        each.set_model_mode("eval")
    with torch.no_grad():
        assert torch.equal(again.model_inference(images), trainer.model_inference(images))
    assert 0 <= again.test() <= 100


@names
def test_resumed_run_equals_the_unbroken_one(workspace, tmp_path, name):
    options = "OPTIM.MAX_EPOCH 4 OPTIM.WARMUP_EPOCH 1 TRAIN.CHECKPOINT_FREQ 1"
    unbroken = make(workspace, f"{name}DHO", tmp_path / "a", options)
    unbroken.train()
    first = make(workspace, f"{name}DHO", tmp_path / "b", options)
    first.max_epoch = 2  # stopped there, with the schedule of four
    first.train()
    assert not equal(weights(first), weights(unbroken))
    second = make(workspace, f"{name}DHO", tmp_path / "b", options)
    second.train()
    assert second.start_epoch == 2 and equal(weights(second), weights(unbroken))


@names
def test_without_kd_weight_the_host_moves_as_it_does_alone(workspace, tmp_path, name, monkeypatch):
    seen, host = [], TRAINER_REGISTRY.get(name)
    original = host.forward_backward
    monkeypatch.setattr(host, "forward_backward", lambda self, batch: (seen.append(batch), original(self, batch))[1])
    attached = make(workspace, f"{name}DHO", tmp_path / "a", "TRAINER.DHO.LAMBDA 1.0")
    attached.train()
    monkeypatch.undo()
    views = [attached.kd_normalize(attached.train_loader_x.batches[step]["img"]) for step in range(6)]
    assert all(torch.equal(batch["img"], view) for batch, view in zip(seen, views, strict=True))
    control = make(workspace, name, tmp_path / "b", "TRAINER.DHO.LAMBDA 1.0")
    control.set_model_mode("train")
    control.num_batches = 3
    for step, batch in enumerate(seen):
        control.batch_idx = step % 3
        control.forward_backward(batch)
    ours = {key: value for key, value in weights(attached).items() if not key.startswith("kd_head")}
    assert equal(ours, weights(control))


def terms(trainer, batch):
    """The host's own loss, its features' KD logits, and the teacher's, one image at a time and in float64."""
    model = trainer.model

    def kd_and_teacher(part):
        rows, teacher = [], []
        for image, view in zip(part["img"], part["img_teacher"], strict=True):
            arguments = {"prompt": model.prompt_learner.visual} if isinstance(model, Prompted) else {}
            features = model.image_encoder(trainer.kd_normalize(image[None]), **arguments).double()
            rows.append(reference.cosine_head(features, trainer.kd_head.head.weight.double(), 0.01)[0])
            teacher.append(trainer.kd_teacher(view[None]).double()[0])
        return torch.stack(rows), torch.stack(teacher)

    images, labels = trainer.kd_normalize(batch["img"]), batch["label"]
    if isinstance(trainer, LogitsHost):
        own = F.cross_entropy(model(images), labels)
    else:
        out = model(images, labels)
        own = out[0] + 0.01 * out[1] if isinstance(out, tuple) else out
    return own, kd_and_teacher(batch), kd_and_teacher(batch["unlabeled"]) if "unlabeled" in batch else None


@names
@pytest.mark.parametrize("pool", ["labels", "unlabelled"])
def test_a_step_is_the_gradient_of_the_papers_loss(workspace, tmp_path, name, pool, monkeypatch):
    options = "TRAINER.DHO.LAMBDA 0.3 TRAINER.DHO.ETA 3.0 OPTIM.NAME sgd OPTIM.MOMENTUM 0.0 OPTIM.WEIGHT_DECAY 0.0"
    trainer = make(workspace, f"{name}DHO", tmp_path, options, "--labels-only" if pool == "labels" else "")
    batches = begin(trainer)
    colourful(trainer, monkeypatch)
    parameters = [p for part in trainer._models.values() for p in part.parameters()]
    for batch in (batches[0], batches[1]):  # the second must know nothing of the first
        own, labeled, unlabeled = terms(trainer, batch)
        kd = reference.distillation(*labeled, 3.0, True)
        assert (unlabeled is None) == (pool == "labels")
        if unlabeled is not None:
            kd = kd + reference.distillation(*unlabeled, 3.0, True)
        expected = torch.autograd.grad(0.3 * own + 0.7 * kd, parameters)
        before = weights(trainer)
        summary = trainer.forward_backward(batch)
        assert summary["loss_kd"] == pytest.approx(kd.item(), rel=1e-4) and kd > 0.01
        assert summary["loss"] == pytest.approx(own.item(), rel=1e-4)
        for (key, start), gradient in zip(before.items(), expected, strict=True):
            step = (start - weights(trainer)[key]) / 0.05
            torch.testing.assert_close(step, gradient, rtol=2e-3, atol=2e-3 * gradient.abs().max().item())
            assert step.abs().max() > 0, key


@names
def test_the_kd_head_steps_once_for_each_step_and_keeps_its_own_schedule(workspace, tmp_path, name):
    trainer = make(workspace, f"{name}DHO", tmp_path, "TRAINER.DHO.HEAD.LR 0.2")
    steps, rates = [], []
    optim, join = trainer._optims["kd_head"], trainer.kd_join.add
    optim.register_step_post_hook(lambda *_: steps.append(trainer.kd_head.head.weight.detach().clone()))

    def add(loss):
        join(loss)
        rates.append((optim.param_groups[0]["lr"], trainer.optim.param_groups[0]["lr"]))

    trainer.kd_join.add = add
    trainer.train()
    assert len([w for w, last in zip(steps[1:], steps, strict=False) if not torch.equal(w, last)]) == 5
    assert len(steps) == len(rates) == 6
    assert rates == [(0.2, 0.05)] * 3 + [(pytest.approx(0.1), pytest.approx(0.025))] * 3


def test_a_host_that_steps_its_own_scheduler_alone_leaves_the_kd_heads_to_us(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(LossHost, "update_lr", lambda self, names=None: self.sched.step(), raising=False)
    trainer = make(workspace, "LossHostDHO", tmp_path)
    trainer.train()
    assert [sched.last_epoch for sched in trainer._scheds.values()] == [2, 2]


@names
def test_the_answer_is_equation_11(workspace, tmp_path, name):
    trainer = make(workspace, f"{name}DHO", tmp_path, "TRAINER.DHO.ALPHA 0.3 TRAINER.DHO.BETA 0.7")
    trainer.set_model_mode("eval")
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        shown, ce = trainer.model_inference(images), trainer.model(images)
        prompt = {"prompt": trainer.model.prompt_learner.visual} if name != "LogitsHost" else {}
        kd = reference.cosine_head(trainer.model.image_encoder(images, **prompt), trainer.kd_head.head.weight, 0.01)
        expected = reference.interpolation(ce, kd, 0.3, 0.7)
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-6)
    assert (shown - torch.softmax(ce, dim=-1)).abs().max() > 0.01


def test_features_are_read_before_the_host_normalises_them_in_place(workspace, tmp_path):
    trainer = make(workspace, "LogitsHostDHO", tmp_path, "TRAINER.DHO.HEAD.KD linear TRAINER.DHO.ALPHA 0.0")
    trainer.train()  # a linear head keeps the features for its gradient
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        kd = trainer.kd_head.head(trainer.model.image_encoder(images))
        torch.testing.assert_close(trainer.model_inference(images), torch.softmax(kd, dim=-1))


def test_other_test_sets_pick_the_kd_heads_rows_by_wordnet_id(workspace, tmp_path, monkeypatch):
    trained = make(workspace, "LogitsHostDHO", tmp_path / "train")
    trained.train()
    trainer = make(workspace, "LogitsHostDHO", tmp_path / "r", "DATASET.NUM_SHOTS -1", "--dataset imagenet_r")
    trainer.load_model(str(tmp_path / "train"), epoch=2)
    trainer.set_model_mode("eval")
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        ce, features = trainer.model(images), trainer.model.image_encoder(images)
        kd = reference.cosine_head(features, trained.kd_head.head.weight[[1, 3, 5]], 0.01)
        assert ce.shape == (6, 3)
        shown = trainer.model_inference(images)
    torch.testing.assert_close(shown, reference.interpolation(ce, kd, 0.5, 1.0), rtol=1e-4, atol=1e-6)


def test_classes_the_kd_head_never_saw_are_left_to_the_hosts_pathway(workspace, tmp_path, capsys):
    make(workspace, "LogitsHostDHO", tmp_path / "train", "DATASET.SUBSAMPLE_CLASSES base").train()
    trainer = make(workspace, "LogitsHostDHO", tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES new")
    trainer.load_model(str(tmp_path / "train"), epoch=2)
    assert "CE pathway alone answers" in capsys.readouterr().out
    trainer.set_model_mode("eval")
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        torch.testing.assert_close(trainer.model_inference(images), torch.softmax(trainer.model(images), dim=-1))


def test_initialisations_of_the_kd_head(workspace, tmp_path, capsys):
    def start(options: str, flags: str = ""):
        trainer = make(workspace, "LogitsHostDHO", tmp_path / str(len(list(tmp_path.iterdir()))), options, flags)
        trainer.before_train()
        return trainer

    trainer = start("")
    texts = load_vlm(trainer.cfg.MODEL.BACKBONE.NAME).class_embeddings(trainer.kd_classes.names, ("a photo of a {}.",))
    assert torch.equal(trainer.kd_head.head.weight, texts)
    assert not torch.equal(start("TRAINER.DHO.HEAD.INIT kaiming").kd_head.head.weight, texts)
    with pytest.raises(UsageError, match=r"\(6, 32\).*got \(6, 48\)"):
        start("TRAINER.DHO.HEAD.INIT teacher")
    same = start("TRAINER.DHO.HEAD.INIT teacher", f"--teacher {workspace}/student.safetensors")
    torch.testing.assert_close(same.kd_head.head.weight, same.kd_teacher.head.weight)
    capsys.readouterr()
    for backbone, reason in ((f"{workspace}/teacher.pt", "48 wide"), ("resnet18", "resnet18")):
        other = make(workspace, "LogitsHostDHO", tmp_path / reason.replace(" ", "-"))
        other.cfg.defrost()
        other.cfg.MODEL.BACKBONE.NAME = backbone
        drawn = other.kd_head.head.weight.detach().clone()
        other.before_train()
        assert torch.equal(other.kd_head.head.weight, drawn)
        shown = capsys.readouterr().out
        assert "Kaiming initialisation" in shown and reason in shown


def test_a_linear_kd_head_and_half_precision_of_the_host(workspace, tmp_path, monkeypatch):
    original = LossHost.build_model

    def half(self):
        original(self)
        self.model.half()

    monkeypatch.setattr(LossHost, "build_model", half)
    step = LossHost.step
    monkeypatch.setattr(LossHost, "step", lambda self, image, label: step(self, image.half(), label))
    inference = TrainerX.model_inference
    monkeypatch.setattr(LossHost, "model_inference", lambda self, x: inference(self, x.half()), raising=False)
    trainer = make(workspace, "LossHostDHO", tmp_path, "TRAINER.DHO.HEAD.KD linear OPTIM.LR 0.01")
    before = weights(trainer)
    trainer.train()
    for key, value in weights(trainer).items():
        assert value.isfinite().all() and not torch.equal(value, before[key]), key
        assert value.dtype == (torch.float32 if key.startswith("kd_head") else torch.float16)


def test_the_loaders_views_reach_the_host_normalised_as_it_expects(workspace, tmp_path, monkeypatch):
    trainer = make(workspace, "LogitsHostDHO", tmp_path, "INPUT.PIXEL_MEAN [0.1,0.2,0.3] INPUT.PIXEL_STD [0.5,0.6,0.7]")
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    expected = torch.tensor([[-0.1 / 0.5, -0.2 / 0.6, -0.3 / 0.7], [0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]])
    torch.testing.assert_close(trainer.kd_normalize(images)[:, :, 2, 1], expected)
    other, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    assert other.shape[1:] == (3, 32, 32) and trainer.train_loader_x.batches[0]["img"].shape[1:] == (3, 32, 32)


def test_a_folder_of_another_run_is_not_gone_on_from(workspace, tmp_path):
    make(workspace, "LogitsHostDHO", tmp_path).train()
    with pytest.raises(UsageError, match="other settings"):
        make(workspace, "LogitsHostDHO", tmp_path, "TRAINER.DHO.LAMBDA 0.9").train()


# The class


def test_the_host_class_is_a_base_and_stays_as_it_was():
    before = dict(vars(LossHost))
    attached = attach(LossHost)
    assert attached is TRAINER_REGISTRY.get("LossHostDHO") and attached.__name__ == "LossHostDHO"
    assert issubclass(attached, LossHost) and dict(vars(LossHost)) == before
    assert attached.__module__ == LossHost.__module__


def test_as_a_decorator():
    @attach
    class PlainDecorated(LossHost):
        pass

    @attach(encoder="image_encoder.visual", name="Other")
    class WithArguments(LossHost):
        pass

    assert (
        PlainDecorated.__name__ == "PlainDecoratedDHO" and TRAINER_REGISTRY.get("PlainDecoratedDHO") is PlainDecorated
    )
    assert TRAINER_REGISTRY.get("Other") is WithArguments and WithArguments.kd_encoder == "image_encoder.visual"


def test_the_package_stays_light_until_attach_is_asked_for():
    code = "import sys, dho_plugin; print('dho_plugin.host' in sys.modules, callable(dho_plugin.attach), "
    code += "'dho_plugin.trainers' in sys.modules, hasattr(dho_plugin, 'detach'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True", "True", "False"], done.stderr


class OwnUnlabelled(TrainerXU):
    pass


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: attach(OwnUnlabelled), "is a TrainerXU"),
        (lambda: attach(dict), "is no TrainerX of the host in use"),
        (lambda: attach(lambda cfg: None), "is no TrainerX"),
        (lambda: attach(TRAINER_REGISTRY.get("LossHostDHO"), name="Twice"), "is attached already"),
        (lambda: attach(TRAINER_REGISTRY.get("CoOp"), name="Ours"), "own, which have DHO versions"),
        (lambda: attach(LossHost, name="CoOpDHO"), r"CoOpDHO is registered already.*name='AttachedCoOpDHO'"),
        (lambda: attach(LossHost, encoder="other"), "LossHostDHO is registered already"),
    ],
)
def test_classes_that_cannot_be_attached(build, message):
    with pytest.raises(UsageError, match=message):
        build()


# What only the model shows


def variant(number: list[int] = [0], **changes) -> str:  # noqa: B006 - counts
    """Register LossHost with changes and attach it; returns the name."""
    number[0] += 1
    encoder = changes.pop("encoder", "image_encoder")
    attach(type(f"Variant{number[0]}", (LossHost,), changes), encoder=encoder)
    return f"Variant{number[0]}DHO"


def model(forward) -> dict:
    """The host's change that its model runs `forward`."""
    return {"kind": type("Changed", (Prompted,), {"forward": forward})}


def after_building(change) -> dict:
    def build_model(self):
        LossHost.build_model(self)
        change(self)

    return {"build_model": build_model}


def never(self, image, label=None):
    return self.classify(image.mean((2, 3)) @ torch.ones(3, 32))


def twice(self, image, label=None):
    prompt = self.prompt_learner.visual
    return self.classify(self.image_encoder(image, prompt=prompt) + self.image_encoder(image.flip(3), prompt=prompt))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "image_encodr"}, r"no module 'image_encodr'.*'image_encoder'.*'prompt_learner'"),
        (model(never), "never called"),
        (model(twice), "more than once"),
        ({"encoder": "image_encoder.visual.conv1"}, r"must return features \(N, d\).*got \(2, 64, 4, 4\)"),
        ({"encoder": "prompt_learner"}, "must take images"),
        ({"model_inference": lambda self, images: self.model(images)[:, :4]}, r"class logits \(2, 6\).*got \(2, 4\)"),
        ({"model_inference": lambda self, images: [self.model(images)]}, r"class logits \(2, 6\).*got list"),
        (after_building(lambda t: setattr(t, "scaler", torch.amp.GradScaler("cpu"))), "PREC amp.*use fp32 or fp16"),
        (after_building(lambda t: setattr(t, "model", None)), "no `self.model`"),
        (after_building(lambda t: setattr(t, "model", nn.DataParallel(t.model))), "CUDA_VISIBLE_DEVICES"),
        (
            {"build_data_loader": lambda t: (LossHost.build_data_loader(t), setattr(t, "dm", None))},
            "has no `self.dm.dataset`",
        ),
    ],
)
def test_models_that_cannot_be_attached_are_refused_when_built(workspace, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        make(workspace, variant(**changes), tmp_path, "TRAINER.DHO.TEACHER.NAME nowhere.pt")


def more_images(self, image, label):
    loss = self.model(torch.cat([image, image]), torch.cat([label, label]))
    self.update(loss)
    return loss


def stepping(times: int):
    def step(self, image, label):
        loss = self.model(image, label)
        for _ in range(times):
            self.optim.step()
        return loss

    return step


def around_the_encoder(self, image, label=None):
    prompt = self.prompt_learner.visual
    if not self.prompt_learner.training:
        return Prompted.forward(self, image)
    features = checkpoint(lambda x: self.image_encoder(x, prompt=prompt), image, use_reentrant=False)
    return F.cross_entropy(self.classify(features), label)


class CheckpointedEncoder(PromptedEncoder):
    reentrant: bool

    def forward(self, image, *, prompt):
        return checkpoint(self.visual, image + prompt, use_reentrant=self.reentrant)


def within_the_encoder(reentrant: bool) -> dict:
    """The host's change that its encoder checkpoints what it consists of."""
    encoder = type("Encoder", (CheckpointedEncoder,), {"reentrant": reentrant})
    return after_building(lambda trainer: setattr(trainer.model.image_encoder, "__class__", encoder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": stepping(0)}, "stepped none of the optimisers"),
        ({"step": stepping(2)}, "stepped its SGD twice"),
        ({"step": more_images}, "saw 8 images in a step of 4"),
        (model(around_the_encoder), "checkpoint layers within the encoder"),
        (within_the_encoder(reentrant=True), "with use_reentrant=False"),
    ],
)
def test_steps_that_l_kd_cannot_join_are_refused_at_the_first(workspace, tmp_path, changes, message):
    trainer = make(workspace, variant(**changes), tmp_path)
    with pytest.raises(UsageError, match=message):
        trainer.train()


def test_checkpointing_within_the_encoder_changes_nothing(workspace, tmp_path):
    plain = make(workspace, "LossHostDHO", tmp_path / "plain")
    trainer = make(workspace, variant(**within_the_encoder(reentrant=False)), tmp_path / "checkpointed")
    start = weights(trainer)
    for each in (plain, trainer):
        each.train()
    assert equal(weights(plain), weights(trainer)) and not equal(weights(trainer), start)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("TRAINER.DHO.HEAD.KD cosin", "Did you mean 'cosine'"),
        ("TRAINER.DHO.LAMBDA 1.5", "LAMBDA must be in"),
        ("INPUT.SIZE (32,64)", "one square view"),
        ("DATASET.LABELS simclr-1", "builds its dataset without it"),
        ("DATALOADER.K_TRANSFORMS 2", "one square view"),
        ("INPUT.INTERPOLATION bicubik", "Did you mean 'bicubic'"),
        ("TRAIN.COUNT_ITER train_y", "Did you mean 'train_"),
        ("TRAIN.ACCUMULATE 2", "leave it at 1"),
        ("TRAIN.CONFLICT_FREQ 1", "leave it at 0"),
    ],
)
def test_a_misspelt_choice_is_refused_before_the_data_is_read(workspace, tmp_path, option, message):
    with pytest.raises(UsageError, match=message):
        make(workspace, "LossHostDHO", tmp_path, option, "--root nowhere")


def test_nothing_is_read_or_joined_outside_of_steps(workspace, tmp_path):
    """The host may run its own model and optimiser as it likes between steps."""
    options = "TRAINER.DHO.LAMBDA 0.5 OPTIM.MOMENTUM 0.0 OPTIM.WEIGHT_DECAY 0.0"
    trainer = make(workspace, "LossHostDHO", tmp_path, options)
    trainer.forward_backward(begin(trainer)[0])
    for _ in range(2):
        trainer.model.encode(torch.rand(2, 3, 32, 32))
    prompt = trainer.model.prompt_learner.visual
    before = prompt.detach().clone()
    trainer.optim.zero_grad()
    prompt.grad = torch.ones_like(before)
    trainer.optim.step()
    torch.testing.assert_close(before - prompt.detach(), torch.full_like(before, 0.05))


def test_a_nan_loss_stops_before_anything_moves(workspace, tmp_path, monkeypatch):
    trainer = make(workspace, "LossHostDHO", tmp_path)
    batch = begin(trainer)[0]
    before, teacher = weights(trainer), trainer.kd_teacher.forward
    monkeypatch.setattr(trainer.kd_teacher, "forward", lambda views: teacher(views) * float("nan"))
    with pytest.raises(FloatingPointError) as error:
        trainer.forward_backward(batch)
    assert str(error.value).startswith(
        f"epoch 1, batch 1/{trainer.num_batches}: loss_kd nan. Not finite: the teacher's"
    )
    assert all(path in str(error.value) for path in trainer.train_loader_x.batches.paths(batch)[:5])
    assert equal(before, weights(trainer)) and list(trainer._models) == ["prompt_learner", "kd_head"]


def test_no_training_on_test_images(workspace, tmp_path):
    with pytest.raises(UsageError, match="for testing only"):
        make(workspace, "LossHostDHO", tmp_path, "", "--dataset imagenet_r --shots 1").train()
