"""Where the metrics of a run go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, Trackio, or one's own class.

A tracker has three methods. What it raises never ends a run: it is warned about once, and the run goes on without it.
"""

import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from qwen35_jax.storage import write_json

Entry = Mapping[str, float | int | None]
PROJECT = "qwen35-jax"
IDS = "trackers.json"

logger = logging.getLogger(__name__)


class RunStart(NamedTuple):
    """What a tracker learns at the start of a run, or when it resumes."""

    workdir: Path
    record: Mapping[str, Any]
    """The run record, as ``config.json`` holds it."""
    first_step: int
    """Entries from this step on will follow; those before, of an interrupted run, are known already."""


class Text(NamedTuple):
    """A text of a step, such as a sample answer, by its name."""

    name: str
    text: str


class Tracker(Protocol):
    """Receives the metrics of a run, in process 0."""

    def start(self, run: RunStart) -> None:
        """Is called once, before the first step."""
        ...

    def step(self, entry: Entry, texts: Sequence[Text]) -> None:
        """Is called after every step, with its entry of the metrics and the memory in use; null has no value."""
        ...

    def end(self) -> None:
        """Is called once, also where the run ends by an error."""
        ...


class TensorBoard:
    """Events in ``tensorboard/``."""

    def start(self, run: RunStart) -> None:
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(run.workdir / "tensorboard"), purge_step=run.first_step, flush_secs=1)

    def step(self, entry: Entry, texts: Sequence[Text]) -> None:
        step, values = _split(entry)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        for each in texts:
            # TensorBoard shows Markdown; indented lines stay as they are.
            self._events.add_text(each.name, "".join(f"    {line}\n" for line in each.text.split("\n")), step)

    def end(self) -> None:
        self._events.close()


class Wandb:
    """A run of Weights & Biases, which goes on where this run resumes. Its variables hold, such as WANDB_PROJECT."""

    def start(self, run: RunStart) -> None:
        import wandb  # pyrefly: ignore[missing-import]

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.workdir.name),
            id=os.environ.get("WANDB_RUN_ID") or _stored_id(run.workdir, "wandb"),
            resume="allow",
            dir=str(run.workdir),
            config=dict(run.record),
        )

    def step(self, entry: Entry, texts: Sequence[Text]) -> None:
        step, values = _split(entry)
        if texts:
            table = self._wandb.Table(columns=["name", "text"], data=[list(each) for each in texts])
            values = {**values, "samples": table}
        self._run.log(values, step=step)

    def end(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, which goes on where this run resumes. Its variables hold, such as TRACKIO_SPACE_ID."""

    def start(self, run: RunStart) -> None:
        import trackio  # pyrefly: ignore[missing-import]

        self._trackio = trackio
        # A run is known by its name there, and two directories may have one name.
        name = f"{run.workdir.name}-{_stored_id(run.workdir, 'trackio')}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project=project, name=name, resume="allow", config=dict(run.record))

    def step(self, entry: Entry, texts: Sequence[Text]) -> None:
        step, values = _split(entry)
        self._trackio.log({**values, **{each.name: each.text for each in texts}}, step=step)

    def end(self) -> None:
        self._trackio.finish()


TRACKERS: Mapping[str, tuple[type[Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (Wandb, "wandb"),
    "trackio": (Trackio, "trackio"),
}
"""The trackers that ``report_to`` names, and the module that each needs."""


class Trackers:
    """Several trackers as one, in process 0 alone."""

    def __init__(self, report_to: Sequence[str] | None, own: Sequence[Callable[[], Tracker]] = ()):
        """Makes the trackers that the settings name; None means TensorBoard where it is installed.

        Raises:
          ValueError: what one of them needs is not installed.
        """
        self._running: list[Tracker] = []
        if jax.process_index() > 0:
            return
        for name in ("tensorboard",) if report_to is None else report_to:
            tracker, module = TRACKERS[name]
            if importlib.util.find_spec(module) is not None:
                self._running.append(tracker())
            elif report_to is not None:
                raise ValueError(
                    f"report_to {name} needs the package {module}, which is not installed; pip install {module}, or "
                    f"leave {name} out of --report-to."
                )
        self._running += [make() for make in own]

    def start(self, run: RunStart) -> None:
        self._each(lambda tracker: tracker.start(run))

    def step(self, entry: Entry, texts: Sequence[Text] = ()) -> None:
        self._each(lambda tracker: tracker.step(entry, texts))

    def end(self) -> None:
        self._each(lambda tracker: tracker.end())
        self._running = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._running):
            try:
                call(tracker)
            # Code of others, which may raise anything; a network that fails must not cost a run.
            except Exception as err:
                reason = (str(err).strip() or type(err).__name__).splitlines()[0]
                logger.warning("%s failed and gets nothing more of this run: %s", type(tracker).__name__, reason)
                self._running.remove(tracker)


def _split(entry: Entry) -> tuple[int, dict[str, float | int]]:
    """Returns the step and the values that there are."""
    values = {name: value for name, value in entry.items() if name != "step" and value is not None}
    return int(entry["step"] or 0), values


def _stored_id(workdir: Path, name: str) -> str:
    """Returns the id of a run with a tracker, which is made at its first start and kept in the run directory."""
    path = workdir / IDS
    ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if name not in ids:
        ids[name] = uuid.uuid4().hex[:8]
        write_json(path, ids)
    return ids[name]
