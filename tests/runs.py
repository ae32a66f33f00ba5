"""Running trainers in the tests as the command line does, on the workspace's six classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dho_plugin import cli
from dho_plugin.host import build_trainer, set_random_seed

OPTIONS = "OPTIM.MAX_EPOCH 2 DATALOADER.NUM_WORKERS 0 DATALOADER.TRAIN_X.BATCH_SIZE 4 TRAINER.DHO.STEPS_PER_EPOCH 3"
PRECISION = " ".join(f"TRAINER.{name}.PREC fp32" for name in ("COOP", "LINEARPROBE", "VPT", "PROMPTSRC"))
# The workspace's student has two layers.
DEPTHS = "TRAINER.VPT.PROMPT_DEPTH 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2"


def words(workspace: Path, trainer: str, output: Path, flags: str = "", options: str = "") -> list[str]:
    """The command line of a small run."""
    base = f"--trainer {trainer} --dataset imagenet --shots 2 --root {workspace} --output-dir {output}"
    models = f"--backbone {workspace}/student.safetensors --teacher {workspace}/teacher.pt"
    return f"{base} {models} {flags} {OPTIONS} {PRECISION} {DEPTHS} {options}".split()


def make(workspace: Path, trainer: str, output: Path, flags: str = "", options: str = "") -> Any:
    """Build a trainer."""
    cfg = cli.build_config(cli.parser().parse_args(words(workspace, trainer, output, flags, options)))
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def run(workspace: Path, trainer: str, output: Path, flags: str = "", options: str = "") -> dict[str, float]:
    """Train or evaluate; accuracies by column."""
    args = cli.parser().parse_args(words(workspace, trainer, output, flags, options))
    return cli.run(cli.build_config(args), args)
