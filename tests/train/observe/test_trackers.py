"""Trackers: what each is handed, that a run resumes in theirs, and that their failures do not end it."""

import json
import logging
import sys
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from train.config import Options
from train.observe.metrics import METRICS, MetricsWriter, read_entries
from train.observe.trackers import IDS, RunStart, TensorBoard, Text, Trackers

ENTRIES = [{"step": 1, "loss": 2.0, "grad_norm": None}, {"step": 2, "loss": 1.0, "eval_loss": 3.0}]

# Modules with the calls of the real ones; they note what they are called with.
WANDB = """
calls = []
class Table:
    def __init__(self, columns, data):
        self.rows = [dict(zip(columns, row)) for row in data]
class Run:
    def log(self, values, step):
        calls.append(("log", step, {n: getattr(v, "rows", v) for n, v in values.items()}))
    def finish(self):
        calls.append(("finish",))
def init(**settings):
    calls.append(("init", settings))
    return Run()
"""
TRACKIO = """
calls = []
def init(**settings):
    calls.append(("init", settings))
def log(values, step):
    calls.append(("log", step, values))
def finish():
    calls.append(("finish",))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a module on the path, returns it, and forgets it afterwards."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)

    def fake(name, text):
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    yield fake
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


def report(trackers, workdir, entries=ENTRIES, texts=()):
    trackers.start(RunStart(workdir, {"recipe": {"steps": 2}}, entries[0]["step"]))
    for entry in entries:
        trackers.step(entry, texts)
    trackers.end()


@pytest.mark.parametrize(("name", "text"), [("wandb", WANDB), ("trackio", TRACKIO)])
def test_a_resumed_run_goes_on_in_the_same_run_of_the_service(fake, tmp_path, name, text):
    calls, workdir = fake(name, text).calls, tmp_path / "lora"
    workdir.mkdir()
    report(Trackers([name]), workdir)
    report(Trackers([name]), workdir, [{"step": 3, "loss": 0.5}])
    first, second = (settings for call, *rest in calls if call == "init" for settings in rest)
    assert first == second and first["resume"] == "allow" and first["project"] == "qwen35-jax"
    assert first["config"] == {"recipe": {"steps": 2}}
    known = json.loads((workdir / IDS).read_text())[name]
    assert known in (first.get("id"), first["name"].removeprefix("lora-")) and first["name"].startswith("lora")
    assert [call for call in calls if call[0] != "init"] == [
        ("log", 1, {"loss": 2.0}), ("log", 2, {"loss": 1.0, "eval_loss": 3.0}), ("finish",),
        ("log", 3, {"loss": 0.5}), ("finish",),
    ]  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    report(Trackers([name]), other)
    assert calls[-4][1] != first


def test_texts_and_the_variables_of_wandb(fake, tmp_path, monkeypatch):
    for name, value in (("WANDB_PROJECT", "mine"), ("WANDB_NAME", "second"), ("WANDB_RUN_ID", "abc")):
        monkeypatch.setenv(name, value)
    calls = fake("wandb", WANDB).calls
    report(Trackers(["wandb"]), tmp_path, ENTRIES[:1], [Text("samples/0", "two\nlines")])
    settings = calls[0][1]
    assert (settings["project"], settings["name"], settings["id"]) == ("mine", "second", "abc")
    assert calls[1][2]["samples"] == [{"name": "samples/0", "text": "two\nlines"}]


def test_tensorboard_holds_the_events_of_every_step_even_if_the_run_is_killed(tmp_path):
    tracker = TensorBoard()
    tracker.start(RunStart(tmp_path, {}, 1))
    for entry in ENTRIES:
        tracker.step(entry, [Text("samples/0", "an answer")])
    # Not ended: what was written is on disk after a moment.
    deadline, found = time.monotonic() + 30, []
    while len(found) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
        found = [
            (event.step, value.tag)
            for path in (tmp_path / "tensorboard").iterdir()
            for event in events(path.read_bytes())
            for value in event.summary.value
        ]
    assert {(1, "loss"), (2, "loss"), (2, "eval_loss"), (1, "samples/0/text_summary")} <= set(found)
    assert (1, "grad_norm") not in found
    tracker.end()


def events(data):
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


class Failing:
    def __init__(self, at):
        self.at, self.steps, self.ended = at, [], 0

    def start(self, run):
        if self.at == "start":
            raise ConnectionError("no route\nto host")

    def step(self, entry, texts):
        self.steps.append(entry["step"])
        if self.at == entry["step"]:
            raise RuntimeError

    def end(self):
        self.ended += 1
        if self.at == "end":
            raise OSError("too late")


@pytest.mark.parametrize(("at", "reason"), [("start", "no route"), (1, "RuntimeError"), ("end", "too late")])
def test_a_tracker_that_fails_is_warned_about_once_and_the_others_go_on(tmp_path, caplog, at, reason):
    failing, sound = Failing(at), Failing(None)
    trackers = Trackers((), [lambda: failing, lambda: sound])
    with caplog.at_level(logging.WARNING):
        writer = MetricsWriter(tmp_path, first_step=1, last_step=2, terms=["loss"], trackers=trackers, record={})
        for entry in ENTRIES:
            writer.write(entry | {"tokens_per_second": 1.0})
        writer.close()
    assert sound.steps == [1, 2] and sound.ended == 1
    assert [record.message for record in caplog.records] == [
        f"Failing failed and gets nothing more of this run: {reason}"
    ]
    assert failing.steps == {"start": [], 1: [1], "end": [1, 2]}[at]
    assert len(read_entries(tmp_path / METRICS)) == 2


def test_what_is_not_installed_is_named_before_the_run_and_tensorboard_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"report_to wandb needs the package wandb, .* pip install wandb, or leave"):
        Options(report_to=("wandb",)).make_trackers()
    report(Options().make_trackers(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_none_reports_to_trackers_of_the_run_file_alone(tmp_path):
    own = Failing(None)
    report(Options(report_to=("none",), trackers=(lambda: own,)).make_trackers(), tmp_path)
    assert own.steps == [1, 2] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("wandbb",),
            "--report-to wandbb is unknown; choose from tensorboard, wandb, trackio, or none. Did you mean wandb?",
        ),
        (("none", "wandb"), "alone"),
    ],
)
def test_wrong_names(names, message):
    with pytest.raises(ValueError, match=message):
        Options(report_to=names)
