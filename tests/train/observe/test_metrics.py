"""Entries of metrics: cut off where a run resumes, torn lines dropped, curves drawn."""

import json
import logging

import pytest

from train.observe.metrics import METRICS, MetricsWriter, plot_losses, read_entries


def entry(step):
    return {
        "step": step,
        "loss": 1.0 / step,
        "mtp_loss": 2.0,
        "tokens": 5,
        "step_seconds": 0.5,
        "tokens_per_second": 9.0,
    }


def write(workdir, steps, *, first_step=1):
    writer = MetricsWriter(workdir, first_step=first_step, last_step=10)
    for step in steps:
        writer.write(entry(step))
    writer.sync()
    writer.close()


def test_entries_after_the_restored_step_are_cut_off(tmp_path, caplog):
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 10), first_step=5)
    assert read_entries(tmp_path / METRICS) == [entry(step) for step in range(1, 10)]
    assert not caplog.records
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_torn_last_line_is_dropped(tmp_path, caplog):
    write(tmp_path, range(1, 4))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')
    with caplog.at_level(logging.WARNING):
        assert len(read_entries(tmp_path / METRICS)) == 3
    assert "unfinished line" in caplog.text


def test_missing_entries_are_warned_about(tmp_path, caplog):
    write(tmp_path, [1, 2])
    write(tmp_path, [5], first_step=5)
    assert "lacks entries before step 5" in caplog.text


def test_the_error_about_a_broken_line_names_it(tmp_path):
    (tmp_path / METRICS).write_text(json.dumps(entry(1)) + "\nnonsense\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not JSON"):
        read_entries(tmp_path / METRICS)


def test_plot_losses_draws_a_picture(tmp_path):
    write(tmp_path, range(1, 4))
    plot_losses(tmp_path)
    assert (tmp_path / "plots" / "losses.png").read_bytes().startswith(b"\x89PNG")
