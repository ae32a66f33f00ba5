"""What the agreement tests share: our trainers beside the authors' code, in a process inside their checkout.

Both sides import this: the tests, and the scripts that they run there. The authors' code runs on the CPU because
`cuda()` and `half()` are made to do nothing, from outside, and its download of CLIP is answered with our weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
ARCHIVE = "openai.pt"
OPTIM = "OPTIM.NAME sgd OPTIM.LR 0.01 OPTIM.WARMUP_EPOCH -1"

Theirs = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def needs(home: str) -> list[pytest.MarkDecorator]:
    """The marks of a file of tests that need the checkout that an environment variable such as COOP_HOME names."""
    marker = getattr(pytest.mark, f"host_{home.removesuffix('_HOME').lower()}")
    missing = [name for name in (home, "DASSL_HOME") if not os.environ.get(name)]
    return [marker, pytest.mark.skipif(bool(missing), reason=f"set {missing} to checkouts")]


def save_student(folder: Path, vision: dict[str, int] = tiny.VIT) -> Path:
    """A student whose token embeddings have a deviation near 1, and beside it the archive that the authors' code reads.

    CLIP starts embeddings at 0.02, where the first LayerNorm enlarges float32's rounding fifty times: after a few steps
    two ways of summing alone differ by more than TOLERANCE.
    """
    model = tiny.tiny_clip(vision)
    for embedding in (model.token_embedding.weight, model.positional_embedding):
        embedding.data.mul_(50)
    torch.save(tiny.openai_state(model, vision["image_size"]), folder / ARCHIVE)
    return tiny.save_self_describing(folder / "student.safetensors", model, vision)


def run(home: str, script: str, folder: Path, *arguments: str | Path) -> None:
    """Run a script in a process whose modules are those of the checkout first, then Dassl's and ours."""
    here = [os.environ["DASSL_HOME"], REPOSITORY, REPOSITORY / "tests", tiny.absent_packages(folder / "absent")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, here)), "DHO_HOST": "dassl"}
    command = [sys.executable, "-c", script + "\nprint('AGREES')", *map(str, arguments)]
    done = subprocess.run(command, cwd=os.environ[home], capture_output=True, text=True, env=env, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AGREES" in done.stdout


# Inside the process


def without_gpu() -> None:
    """Make `cuda()` and `half()` do nothing, so that everything stays in float32 on the CPU."""

    def same(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    for cls in (torch.Tensor, nn.Module):
        cls.cuda = cls.half = same


def lend_weights(their_clip: Any, student: str) -> None:
    """Answer the download of the authors' CLIP with the archive beside our student."""
    their_clip._download = lambda url: str(Path(student).with_name(ARCHIVE))


def build(cls: type, name: str, workspace: str, output: str, *options: str) -> tuple[Any, Any]:
    """Our trainer, and the configuration of theirs that goes with it.

    Args:
        cls: our class; the registry's is theirs in this process. name: a registered trainer of ours of the same method.
        workspace, output: of the run. options: KEY VALUE pairs, which may hold spaces.
    """
    import runs

    from dho_plugin import cli
    from dho_plugin.host import HOST, set_random_seed

    assert HOST.startswith("dassl"), HOST
    words = [*runs.words(Path(workspace), name, Path(output), "", OPTIM), *options]
    cfg = cli.build_config(cli.parser().parse_args(words))
    set_random_seed(cfg.SEED)
    ours = cls(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = (tiny.VIT["image_size"],) * 2
    cfg.MODEL.BACKBONE.NAME = "ViT-B/16"
    return ours, cfg


def close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Fail unless no element differs by more than `tolerance`; print the largest difference."""
    ours, theirs = ours.detach(), theirs.detach()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance, msg=lambda m: f"{what}: {m}")
    print(f"{what}: {float((ours - theirs).abs().max()):.1e}")


def watch(model: nn.Module) -> dict[str, Tensor]:
    """A dict that always holds the unit-length features that the authors' two towers gave last."""
    seen: dict[str, Tensor] = {}

    def keep(what: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, arguments: Any, features: Tensor) -> None:
            seen[what] = F.normalize(features, dim=-1)

        return hook

    for tower in ("text_encoder", "image_encoder"):
        getattr(model, tower).register_forward_hook(keep(tower))
    return seen


def start_alike(ours: Any, model: nn.Module, learned: dict[str, Tensor], same: Collection[str]) -> list[nn.Parameter]:
    """Copy our learned parameters into theirs, which alone take gradients; those named in `same` agree before."""
    trained = sum(p.numel() for part in ours.learned().values() for p in part.parameters())
    assert trained == sum(tensor.numel() for tensor in learned.values()), "a learned parameter is not compared"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learned)
    theirs = [model.get_parameter(name) for name in learned]
    with torch.no_grad():
        for (name, tensor), their in zip(learned.items(), theirs, strict=True):
            if name in same:
                close(tensor, their, f"{name} at the start")
            their.copy_(tensor)
    return theirs


def five_steps(
    ours: Any, model: nn.Module, learned: dict[str, Tensor], values: Theirs, *, same: Collection[str] = ()
) -> None:
    """Train both on the same five batches: features, logits, losses and at last the parameters agree, and moved.

    Args:
        ours: our trainer. model: their CustomCLIP. learned: our learned tensors by the names of their parameters.
        values: images, labels -> their logits and their losses by our names. same: names that start the same.
    """
    parameters, seen = start_alike(ours, model, learned, same), watch(model)
    before = [parameter.detach().clone() for parameter in parameters]
    optim = ours.cfg.OPTIM
    optimizer = torch.optim.SGD(parameters, lr=optim.LR, momentum=optim.MOMENTUM, weight_decay=optim.WEIGHT_DECAY)
    model.train()
    ours.set_model_mode("train")
    for step in range(5):
        batch = ours.train_loader_x.batches[step]
        images, labels = ours.parse_batch_train(batch)
        logits, terms = values(images, labels)
        losses, our_logits, _ = ours.losses(batch)
        close(ours.ce_head.text_features(), seen["text_encoder"], "text features")
        close(F.normalize(ours.backbone(images), dim=-1), seen["image_encoder"], "image features")
        close(our_logits, logits, "logits")
        assert set(losses) == set(terms)
        for name, value in terms.items():
            close(losses[name], value, name)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        ours.model_backward_and_update(losses["loss"])
    for (name, tensor), their, start in zip(learned.items(), parameters, before, strict=True):
        moved = float((their.detach() - start).abs().max())
        print(f"{name} moved by {moved:.1e}")
        assert moved > 50 * TOLERANCE, f"{name} hardly moved: {moved}"
        close(tensor, their, f"{name} after five steps", min(TOLERANCE, moved / 1000))
