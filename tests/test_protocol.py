from __future__ import annotations

import pytest

from dho_plugin import cli
from dho_plugin.config import CONFIGS, config_file
from dho_plugin.host import get_cfg_default
from dho_plugin.protocol import CHOICES
from dho_plugin.saved import flatten


def explained(line: str, capsys) -> str:
    assert cli.main(["--explain", *line.split()]) == 0
    return capsys.readouterr().out


def test_explain_says_what_the_run_would_do_and_does_nothing(tmp_path, capsys):
    out = explained(f"--trainer CoOpDHO --dataset shapes --output-dir {tmp_path}/out TRAINER.DHO.ALPHA 0.3", capsys)
    for said in (
        "Protocol of CoOpDHO on Shapes, preset paper",
        "16 images a class",
        "shapes-teacher, zero-shot",
        "32 + 32",
        "5 epochs of 30",
        "adamw, rate 0.005",
        "0.5 L_CE + 0.5 L_KD",
        "0.3 softmax(CE) + 0.7 softmax(KD / 1.0)",
        "TRAINER.DHO.BETA     1.0 -> 0.5",
        "TRAINER.DHO.HEAD.KD  auto -> official",
    ):
        assert said in out, said
    assert "CasPL" not in out and not (tmp_path / "out").exists()


def test_explain_compares_with_the_preset_that_is_not_chosen(capsys):
    out = explained("--trainer CoOpCasPL --dataset shapes --preset official", capsys)
    assert "Preset paper would change\n  TRAINER.CASPL.TEXT_ORDER  adapting_first -> boosting_first\n" in out
    assert "stage one runs first" in out and "L_KD" not in out


def test_a_control_says_nothing_of_distillation(capsys):
    out = explained("--trainer CoOp --dataset shapes", capsys)
    assert "would change nothing" in out and "teacher" not in out.split("Where the paper")[0]


def test_files_and_flags_win_over_a_preset(tmp_path):
    (tmp_path / "mine.yaml").write_text("TRAINER:\n  DHO:\n    BETA: 0.7\n")
    words = f"--trainer CoOpDHO --dataset shapes --preset official --config-file {tmp_path}/mine.yaml".split()
    cfg = cli.build_config(cli.parser().parse_args(words))
    assert (cfg.TRAINER.DHO.BETA, cfg.TRAINER.DHO.HEAD.KD) == (0.7, "official")


def test_presets_write_to_folders_of_their_own():
    folders = {
        cli.build_config(
            cli.parser().parse_args(["--trainer", "CoOpDHO", "--dataset", "shapes", "--preset", p])
        ).OUTPUT_DIR
        for p in ("paper", "official")
    }
    assert len(folders) == 2


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.key], ids=lambda choice: choice.key)
def test_every_choice_names_a_setting_that_exists(choice):
    assert choice.key in flatten(get_cfg_default()) and not choice.ours


def test_every_preset_file_belongs_to_a_preset():
    assert [file.stem for file in (CONFIGS / "presets").iterdir()] == ["official"]
    assert config_file("presets", "official").is_file()


def test_a_rival_says_its_own_loss_and_what_it_sees(capsys):
    kd, sskd = (explained(f"--trainer {name} --dataset shapes", capsys) for name in ("KD", "SSKD"))
    for out in (kd, sskd):
        assert "shapes-teacher, zero-shot" in out and "softmax(CE)" not in out
    assert "labels      none" in kd and "batch       32\n" in kd and "L_KD of one head on unlabelled images alone" in kd
    assert "labels      16 images a class" in sskd and "batch       32 + 32" in sskd and "arXiv 2108.05045" in sskd


def test_a_search_for_alpha_and_beta_is_said(capsys):
    for wanted, said in (("val", "searched on validation images"), ("oracle", "the TEST images, an oracle")):
        assert said in explained(f"--trainer StudentDHO --dataset shapes TRAINER.DHO.CHOOSE {wanted}", capsys)
