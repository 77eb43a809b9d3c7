"""What a run reports: ``metrics.jsonl``, the progress bar and the plots, and what trackers are handed.

``metrics.jsonl`` holds one entry, a line of JSON, for each step. Its fields that depend on the clock end in ``seconds``
or ``per_second``; all others of two equal runs are equal. What is true of a moment only, such as the memory in use,
goes to trackers alone. What is not finite becomes null.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from qwen35_jax.liveness import call_at_end
from qwen35_jax.runs import METRICS
from qwen35_jax.storage import write_atomically
from train.observe.curves import Curves
from train.observe.trackers import RunStart, Text, Trackers

logger = logging.getLogger(__name__)

Entry = dict[str, float | int | None]


class MetricsWriter:
    """Appends one entry for each step. Only process 0 writes.

    When a run resumes, entries after the restored step are cut off first.

    Args:
      terms: the names of what is minimised, the main term first. The bar and the plots show them.
      trackers: are handed every entry.
      record: the run record, for the trackers.
      publish: is called when the files of the run directory have reached the disk.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        last_step: int,
        terms: Sequence[str],
        trackers: Trackers,
        record: Mapping[str, Any],
        publish: Callable[[], None] = lambda: None,
    ):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._publish = publish
        self._path, self._plot = workdir / METRICS, workdir / "plots" / "losses.png"
        entries = [entry for entry in read_entries(self._path) if _step(entry) < first_step]
        if [entry["step"] for entry in entries] != list(range(1, first_step)):
            logger.warning("%s lacks entries before step %d, where this run resumes", self._path, first_step)
        self._open(entries)
        self._trackers = trackers
        trackers.start(RunStart(workdir, record, first_step))
        self._curves = Curves(terms)
        for entry in entries:
            self._curves.add(entry)
        self._shown_terms, self._shown = [*terms, f"eval_{terms[0]}"], {}
        # In a log file, every update takes a line of its own.
        pause = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=last_step, initial=first_step - 1, desc="train", unit="step", dynamic_ncols=True, mininterval=pause
        )
        # So that the line about another process's end is a line of its own.
        self._forget_bar = call_at_end(self._bar.close)

    def write(self, entry: Entry, *, momentary: Entry | None = None) -> None:
        """Records one step; ``entry["step"]`` counts from 1.

        Args:
          momentary: goes to the trackers alone.
        """
        if not self._active:
            return
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        self._spread(entry)
        self._trackers.step(entry | (momentary or {}))
        self._bar.update()

    def show(self, step: int, texts: Sequence[Text]) -> None:
        """Hands texts of a step to the trackers."""
        if self._active:
            self._trackers.step({"step": step}, texts)

    def amend(self, figures: Entry) -> None:
        """Adds figures to the entry that was written last."""
        if not self._active:
            return
        entries = read_entries(self._path)
        entries[-1] |= figures
        self._file.close()
        self._open(entries)
        new = {"step": entries[-1]["step"]} | figures
        self._spread(new)
        self._trackers.step(new)

    def sync(self) -> None:
        """Puts all entries on disk and draws them. A checkpoint, before which it is called, is never ahead of them."""
        if self._active:
            os.fsync(self._file.fileno())
            self._curves.draw(self._plot)
            self._publish()

    def close(self) -> None:
        if self._active:
            self._forget_bar()
            self._bar.close()
            self._trackers.end()
            self._file.close()
            self._publish()

    def _open(self, entries: Sequence[Entry]) -> None:
        """Opens the file so that it holds these entries."""
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in entries))
        self._file = self._path.open("a", encoding="utf-8")

    def _spread(self, entry: Entry) -> None:
        """Shows what is new of a step in the curves and the bar."""
        self._curves.add(entry)
        self._shown |= {name: f"{entry[name]:.4f}" for name in self._shown_terms if entry.get(name) is not None}
        if "epoch" in entry:
            self._shown["epoch"] = f"{entry['epoch']:.2f}"
        if "tokens_per_second" in entry:
            self._shown["tokens/s"] = f"{entry['tokens_per_second']:,.0f}"
        if "fraction_of_peak_flops_per_second" in entry:
            self._shown["MFU"] = f"{entry['fraction_of_peak_flops_per_second']:.1%}"
        self._bar.set_postfix(self._shown, refresh=False)


def read_entries(path: Path) -> list[Entry]:
    """Reads ``metrics.jsonl``; a last line that a crash cut short is left out, an absent file has no entries.

    Raises:
      ValueError: another line is not JSON.
    """
    if not path.is_file():
        return []
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        logger.warning("%s ends in an unfinished line, which is dropped", path)
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as err:
            raise ValueError(
                f"{path}:{number}: not JSON ({err.msg}); remove the line or choose another workdir."
            ) from err
    return entries


def _step(entry: Entry) -> int:
    step = entry["step"]
    assert isinstance(step, int)
    return step
