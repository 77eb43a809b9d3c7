"""What a run reports: ``metrics.jsonl``, TensorBoard events, the progress bar and the plots.

``metrics.jsonl`` holds one entry, a line of JSON, for each step. Its fields that depend on the clock end in ``seconds``
or ``per_second``; all others of two equal runs are equal. What is true of a moment only, such as the memory in use,
goes to TensorBoard alone. What is not finite becomes null.
"""

import json
import logging
import os
import sys
from pathlib import Path

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from qwen35_jax.storage import write_atomically

METRICS = "metrics.jsonl"

logger = logging.getLogger(__name__)

Entry = dict[str, float | int | None]


class MetricsWriter:
    """Appends one entry for each step. Only process 0 writes.

    When a run resumes, entries after the restored step are cut off first.
    """

    def __init__(self, workdir: Path, *, first_step: int, last_step: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / METRICS
        entries = [entry for entry in read_entries(path) if _step(entry) < first_step]
        if [entry["step"] for entry in entries] != list(range(1, first_step)):
            logger.warning("%s lacks entries before step %d, where this run resumes", path, first_step)
        write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in entries))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)
        # In a log file, every update takes a line of its own.
        pause = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=last_step, initial=first_step - 1, desc="train", unit="step", dynamic_ncols=True, mininterval=pause
        )

    def write(self, entry: Entry, *, momentary: Entry | None = None) -> None:
        """Records one step; ``entry["step"]`` counts from 1.

        Args:
          momentary: goes to TensorBoard alone.
        """
        if not self._active:
            return
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        for name, value in (entry | (momentary or {})).items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, _step(entry))
        shown = {
            name: f"{entry[name]:.4f}" for name in ("loss", "mtp_loss", "divergence") if entry.get(name) is not None
        }
        if "epoch" in entry:
            shown["epoch"] = f"{entry['epoch']:.2f}"
        shown["tokens/s"] = f"{entry['tokens_per_second']:,.0f}"
        if "fraction_of_peak_flops_per_second" in entry:
            shown["MFU"] = f"{entry['fraction_of_peak_flops_per_second']:.1%}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def sync(self) -> None:
        """Puts all entries on disk. It is called before a checkpoint, which must never be ahead of them."""
        if self._active:
            os.fsync(self._file.fileno())
            self._events.flush()

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._events.close()
            self._file.close()


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


def plot_losses(workdir: Path) -> None:
    """Draws every loss of ``metrics.jsonl`` over the steps into ``plots/losses.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_entries(workdir / METRICS)
    names = sorted({name for entry in entries for name, value in entry.items() if _is_loss(name) and value is not None})
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="nats per trained token")
    for name in names:
        points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    if names:
        axes.legend()
    axes.grid(alpha=0.3)
    folder = workdir / "plots"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "losses.png", dpi=120)


def _step(entry: Entry) -> int:
    step = entry["step"]
    assert isinstance(step, int)
    return step


def _is_loss(name: str) -> bool:
    return name == "divergence" or "loss" in name
