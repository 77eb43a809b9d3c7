"""Entries of metrics: cut off where a run resumes, torn lines dropped, curves drawn."""

import json
import logging

import pytest

from train.observe.curves import Curves
from train.observe.metrics import METRICS, MetricsWriter, read_entries
from train.observe.trackers import Trackers


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
    writer = MetricsWriter(
        workdir, first_step=first_step, last_step=10, terms=["loss", "mtp_loss"], trackers=Trackers(()), record={}
    )
    for step in steps:
        writer.write(entry(step))
    writer.sync()
    writer.close()


def test_entries_after_the_restored_step_are_cut_off(tmp_path, caplog):
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 10), first_step=5)
    assert read_entries(tmp_path / METRICS) == [entry(step) for step in range(1, 10)]
    assert not caplog.records


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


def test_the_curves_are_drawn_at_every_sync_and_go_on_after_a_resume(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Curves, "draw", lambda self, path: drawn.append(lengths(self)))
    write(tmp_path, range(1, 4))
    write(tmp_path, range(3, 6), first_step=3)
    assert drawn == [{"loss": 3, "mtp_loss": 3}, {"loss": 5, "mtp_loss": 5}]


def lengths(curves):
    return {name: len(steps) for name, (steps, _) in curves._points.items() if steps}


def test_a_picture_has_a_curve_for_every_term_of_training_and_validation(tmp_path):
    curves = Curves(["pull", "push"])
    for step in (1, 2, 3):
        curves.add({"step": step, "pull": 1.0 / step, "push": None, "tokens": 4})
    curves.add({"step": 3, "eval_pull": 0.5})
    assert lengths(curves) == {"pull": 3, "eval_pull": 1}
    curves.draw(tmp_path / "plots" / "losses.png")
    assert (tmp_path / "plots" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "plots").iterdir())) == 1


def test_figures_are_added_to_the_last_entry(tmp_path):
    writer = MetricsWriter(tmp_path, first_step=1, last_step=10, terms=["loss"], trackers=Trackers(()), record={})
    for step in (1, 2):
        writer.write(entry(step))
    writer.amend({"eval_loss": 0.25})
    writer.write(entry(3))
    writer.close()
    assert read_entries(tmp_path / METRICS) == [entry(1), entry(2) | {"eval_loss": 0.25}, entry(3)]


def test_the_bar_shows_the_terms_and_the_last_validation(tmp_path):
    writer = MetricsWriter(
        tmp_path, first_step=1, last_step=10, terms=["pull", "push"], trackers=Trackers(()), record={}
    )
    writer.write({"step": 1, "pull": 1.0, "push": 2.0, "tokens_per_second": 9.0, "eval_pull": 0.5, "other_loss": 3.0})
    writer.write({"step": 2, "pull": 0.9, "push": None, "tokens_per_second": 9.0})
    writer.close()
    assert writer._shown == {"pull": "0.9000", "push": "2.0000", "eval_pull": "0.5000", "tokens/s": "9"}
