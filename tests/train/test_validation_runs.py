"""Runs that validate: in processes of their own, several at once, killed and resumed."""

import pytest

from tests.train.launching import LORA, finish, kill, timeless, wait_for_step

VALIDATED = (*LORA, "--data.eval-fraction", "0.1", "--evaluate-every", "2")


@pytest.fixture(scope="module")
def validated_run(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("validated") / "run"
    return workdir, command.run(workdir, *VALIDATED)


def validations(workdir):
    figures = ("eval_loss", "eval_mtp_loss", "eval_tokens")
    return {row["step"]: [row[name] for name in figures] for row in timeless(workdir) if "eval_loss" in row}


@pytest.mark.slow
def test_two_processes_validate_as_one_does(command, validated_run, tmp_path):
    workdir, out = validated_run
    alone = validations(workdir)
    assert list(alone) == [2, 4, 6, 8, 9]
    assert "validation: 14 rows" in out and '"held_out": ' in out
    assert alone[9][0] < alone[2][0]
    finish(command.start(tmp_path / "run", *VALIDATED, "--mesh.data", "2", processes=2))
    together = validations(tmp_path / "run")
    assert together.keys() == alone.keys()
    for step, figures in alone.items():
        assert together[step] == pytest.approx(figures, abs=1e-6), step


@pytest.mark.slow
def test_validation_is_no_part_of_training(command, validated_run, tmp_path):
    """A run that holds the same rows out and never looks at them has the same numbers."""
    workdir = tmp_path / "run"
    command.run(workdir, *VALIDATED, "--evaluate-every", "100", "--steps", "9")
    rows = [{name: row[name] for name in row if not name.startswith("eval_")} for row in timeless(workdir)]
    assert [row.keys() & {"eval_loss"} for row in timeless(workdir)][:8] == [set()] * 8
    want = timeless(validated_run[0])
    assert rows == [{name: row[name] for name in row if not name.startswith("eval_")} for row in want]


@pytest.mark.slow
def test_a_killed_run_validates_as_a_whole_one(command, validated_run, tmp_path):
    workdir = tmp_path / "run"
    processes = command.start(workdir, *VALIDATED)
    wait_for_step(processes, workdir, 7)
    kill(processes)
    assert "resumed after step" in command.run(workdir, *VALIDATED)
    assert timeless(workdir) == timeless(validated_run[0])
