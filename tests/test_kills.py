"""The campaign of kills.py in small: whatever a run was killed in, it ends as if it had never been."""

from __future__ import annotations

import signal

import pytest
import runs
from children import fork
from kills import Kill, campaign

from dho_plugin import cli
from dho_plugin.analysis.conflict_log import read

KILL, TERM = getattr(signal, "SIGKILL", 0), signal.SIGTERM
STORING, EVALUATION = "while STORE.DIR was filled", "in an evaluation"
OPTIONS = "TRAIN.SAVE_MINUTES 0"

pytestmark = fork


def words(workspace, trainer: str, flags: str = "", options: str = "") -> list[str]:
    """Of a run that makes its own stage one, if it has one."""
    line = runs.words(workspace, "CoOp", workspace / "unused", flags, f"{OPTIONS} {options}")
    line[line.index("CoOp")] = trainer
    return line


def test_a_run_killed_in_every_phase_ends_as_if_left_alone(workspace, tmp_path):
    """While features are stored, states and checkpoints written, gradients compared, shifted test sets evaluated."""
    kills = [
        Kill(STORING, 1, TERM),
        Kill("save", 5, KILL),
        Kill("step", 2, KILL),
        Kill("step", 2, TERM),
        Kill(EVALUATION, 1, TERM),
        Kill(EVALUATION, 2, KILL),
    ]
    options = "TRAIN.CHECKPOINT_FREQ 1 TRAIN.CONFLICT_FREQ 1"
    found, told = campaign(words(workspace, "CoOpDHO", "--ood", options), kills, tmp_path)
    assert len(told) == len(kills), told
    assert not found and [line.step for line in read(tmp_path / "broken" / "out")] == [1, 2, 3, 4, 5, 6]


def test_stage_one_goes_on_and_is_done_once(workspace, tmp_path, monkeypatch):
    """Stopped in its second step of six, and killed in the second of stage two; the last finds stage one finished."""
    monkeypatch.setattr(cli, "STAGE_TWO_ALONE", ("OUTPUT_DIR",))  # it is to be as short as stage two
    kills = [Kill("step", 2, TERM), Kill("step", 6, KILL)]
    found, told = campaign(words(workspace, "CoOpCasPL"), kills, tmp_path)
    assert len(told) == len(kills), told
    assert not found
    parts = [(tmp_path / "broken" / "out" / part / "log.txt").read_text() for part in ("stage_one", ".")]
    assert [log.count("\nGoing on in ") for log in parts] == [1, 1]


@pytest.mark.parametrize("phase", ["while the cache was filled", EVALUATION])
def test_a_cache_that_is_never_trained(workspace, tmp_path, phase):
    kills = [Kill(phase, 1, TERM), Kill(EVALUATION, 2, KILL)]
    found, told = campaign(words(workspace, "TipAdapter", "", "TRAINER.TIPADAPTER.CHOOSE fixed"), kills, tmp_path)
    assert len(told) == len(kills), told
    assert not found
