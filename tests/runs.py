"""Running trainers in the tests as the command line does, on the workspace's six classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dho_plugin import cli
from dho_plugin.host import TRAINER_REGISTRY, build_trainer, set_random_seed

OPTIONS = "OPTIM.MAX_EPOCH 2 DATALOADER.NUM_WORKERS 0 DATALOADER.TRAIN_X.BATCH_SIZE 4 TRAINER.DHO.STEPS_PER_EPOCH 3"


def _options(value_of) -> str:
    """KEY VALUE pairs for every registered trainer's own keys that `value_of` has a value for."""
    classes = [TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()]
    keys = {(cls.section, key) for cls in classes for key in getattr(cls, "defaults", {}) if hasattr(cls, "section")}
    return " ".join(f"TRAINER.{section}.{key} {value_of(key)}" for section, key in sorted(keys) if value_of(key))


PRECISION = _options({"PREC": "fp32"}.get)
# The workspace's student has two layers.
DEPTHS = _options(lambda key: 2 if "DEPTH" in key else None)


def words(
    workspace: Path, trainer: str, output: Path, flags: str = "", options: str = "", *, dataset: str = "imagenet"
) -> list[str]:
    """The command line of a small run."""
    base = f"--trainer {trainer} --dataset {dataset} --shots 2 --root {workspace} --output-dir {output}"
    if trainer.endswith("CasPL") and trainer != "CasPL":
        options = f"TRAINER.CASPL.BOOSTING {boosting(workspace)} {options}"
    models = f"--backbone {workspace}/student.safetensors --teacher {workspace}/teacher.pt"
    return f"{base} {models} {flags} {OPTIONS} {PRECISION} {DEPTHS} {options}".split()


def boosting(workspace: Path) -> Path:
    """The output folder of CasPL's stage one on this workspace, run once."""
    folder = workspace / "boosting"
    if not (folder / "boosting" / "model.pth.tar-2").is_file():
        run(workspace, "CasPL", folder)
    return folder


def make(workspace: Path, trainer: str, output: Path, flags: str = "", options: str = "") -> Any:
    """Build a trainer."""
    cfg = cli.build_config(cli.parser().parse_args(words(workspace, trainer, output, flags, options)))
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def run(
    workspace: Path, trainer: str, output: Path, flags: str = "", options: str = "", *, dataset: str = "imagenet"
) -> dict[str, float]:
    """Train or evaluate; accuracies by column."""
    args = cli.parser().parse_args(words(workspace, trainer, output, flags, options, dataset=dataset))
    return cli.run(cli.build_config(args), args)


def read_results(log: Path, end_signal: str) -> list[float]:
    """What the result parsers of CoOp and PromptSRC read: accuracies after their end signal; the last one counts."""
    ready, found = False, []
    for line in log.read_text().splitlines():
        ready = ready or line.strip() == end_signal
        match = re.search(r"\* accuracy: ([\.\deE+-]+)%", line)
        if ready and match:
            found.append(float(match[1]))
    return found
