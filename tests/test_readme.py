"""README and the pages it points to say what is true: the example runs, commands parse, files and pages exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import tiny

from dho_plugin import cli
from dho_plugin.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", "\n".join(PAGES.values()), flags=re.DOTALL | re.MULTILINE)


def test_the_example_runs():
    example = next(block for block in blocks("python") if "dual_head_loss" in block)
    scope: dict = {}
    exec(example, scope)
    assert scope["prediction"].shape == (8,)
    assert scope["student"].kd_head.weight.grad.abs().sum() > 0
    body = [line for line in example.split("\n\n")[1].splitlines() if line.strip()]
    assert len(body) <= 10


def test_the_commands_parse(tmp_path, monkeypatch):
    for name in ("one", "two"):  # README's DIR, the smallest that is accepted
        tiny.write_image(tmp_path / "DIR" / "labeled" / name / "a.jpg", np.random.default_rng(0), 1)
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines = [line for line in commands if "train.py --" in line and "..." not in line]
    assert len(lines) >= 5
    for line in lines:
        command = line[line.index("train.py") :].partition("#")[0]
        cfg = cli.build_config(cli.parser().parse_args(shlex.split(command)[1:]))
        assert cfg.TRAINER.NAME in command


def test_the_model_folder_in_the_commands_is_where_training_puts_it():
    train = cli.parser().parse_args(
        ["--trainer", "CoOpDHO", "--dataset", "imagenet", "--root", "DATA", "--shots", "16"]
    )
    assert f"--model-dir {cli.build_config(train).OUTPUT_DIR}" in README


def test_the_file_map_exists():
    for name in re.findall(r"\b(\w+\.py)\b", README):
        assert any(ROOT.glob(f"**/{name}")), name


def test_links_lead_somewhere():
    links = [(path, link) for path, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text)]
    assert len(links) > 10
    for path, link in links:
        assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_every_page_and_command_is_named_in_readme():
    for path in PAGES:
        assert path.name == "README.md" or f"(docs/{path.name})" in README, path.name
    commands = "\n".join(PAGES.values())
    for name in COMMANDS:
        assert f"python -m dho_plugin {name}" in commands, name
