"""What the documents of a run are like: how long they are, and how many are left out and why."""

import math
from array import array
from collections import Counter
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int32

from train.config.data import DataConfig
from train.data.documents import REMEDIES, Documents, stop_if_refused
from train.data.masking import Example
from train.data.rows import RowError

SAMPLE_DOCUMENTS, SAMPLE_TOKENS = 2048, 1 << 22
"""Of how many documents, or tokens, the start of a run judges the rest."""
_RUN = 32


class Measurement(NamedTuple):
    """What was found in the first documents of the order, which are as good as drawn at random."""

    epoch_length: int
    """Documents in an epoch."""
    lengths: Int32[np.ndarray, " E"]
    """Tokens of every example."""
    trained: Int32[np.ndarray, " E"]
    """Trained tokens of every example."""
    patches: Int32[np.ndarray, " E"]
    """Patches of the images and videos of every example."""
    ends: Int32[np.ndarray, " D"]
    """For each document, the number of examples up to its last one."""
    num_held_out: int
    """Documents that are held out for validation."""
    num_lost: int
    """Other documents of which something cannot be used."""
    lost: Counter[str]
    """What is left out, by reason."""
    places: dict[str, str]
    """For each reason where the first of them is, and what is wrong there."""

    @property
    def documents(self) -> int:
        """How many documents were read."""
        return len(self.ends)

    @property
    def is_whole(self) -> bool:
        """Whether all documents of an epoch were read."""
        return self.documents == self.epoch_length

    @property
    def share_lost(self) -> float:
        """The share of the documents for training of which something cannot be used."""
        return self.num_lost / max(1, self.documents - self.num_held_out)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of an epoch; an estimate unless all were read."""
        return round(int(self.lengths.sum()) * self.epoch_length / self.documents)

    def steps_of_epoch(self, config: DataConfig) -> float:
        """Returns how many batches the tokens and patches of an epoch fill; padding makes them a little more."""
        sequences = self.epoch_tokens / config.sequence_length
        if config.vision is not None:
            patches = int(self.patches.sum()) * self.epoch_length / self.documents
            sequences = max(sequences, patches / config.vision.patches_per_sequence)
        return sequences / config.sequences_per_batch


def measure(documents: Documents, *, whole: bool) -> Measurement:
    """Reads and tokenises the documents of one epoch, or the first of them.

    Args:
      whole: all of them, which takes a CPU second for some 400,000 tokens.

    Raises:
      ValueError: a document cannot be used, and the policy for its reason is ``error``; or none of those read can be.
    """
    count = documents.epoch_length if whole else min(documents.epoch_length, SAMPLE_DOCUMENTS)
    positions = range(count)

    def read(run: int) -> list[list[tuple[int, int, int] | RowError]]:
        return [
            [each if isinstance(each, RowError) else _measured(each) for each in document]
            for document in documents.load(positions[run * _RUN : (run + 1) * _RUN])
        ]

    threads = documents.config.num_threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    stream = grain.MapDataset.range(-(-count // _RUN)).map(read).to_iter_dataset(options)
    lengths, trained, patches, ends, tokens = array("i"), array("i"), array("i"), array("i"), 0
    num_held_out, num_lost, lost, places = 0, 0, Counter(), {}
    for document in (document for run in stream for document in run):
        num_held_out += not document
        errors = [each for each in document if isinstance(each, RowError)]
        for err in errors:
            where = documents.where(len(ends))
            stop_if_refused(where, err, documents.config)
            lost[err.reason] += 1
            places.setdefault(err.reason, f"{where}: {err}")
        num_lost += any(err.reason != "left_out" for err in errors)
        for length, number, shown in (each for each in document if not isinstance(each, RowError)):
            lengths.append(length)
            trained.append(number)
            patches.append(shown)
            tokens += length
        ends.append(len(lengths))
        if not whole and tokens > SAMPLE_TOKENS:
            break
    if lost and not lengths:
        what = "no row" if len(ends) == documents.epoch_length else f"none of the first {len(ends):,} rows"
        raise documents.none_usable(lost, next(iter(places.values())), what)
    counts = _int32(lengths), _int32(trained), _int32(patches), _int32(ends)
    return Measurement(documents.epoch_length, *counts, num_held_out, num_lost, lost, places)


def _int32(values: array) -> Int32[np.ndarray, " E"]:
    return np.asarray(values, np.int32)


def _measured(example: Example) -> tuple[int, int, int]:
    return len(example), int(example.trained.sum()), example.num_patches


def check_lost(found: Measurement, config: DataConfig) -> None:
    """Checks that not too many documents are left out.

    Raises:
      ValueError: their share is above ``max_lost``.
    """
    if found.share_lost <= config.max_lost:
        return
    reasons = "; ".join(f"{reason} {count:,} ({found.places[reason]})" for reason, count in found.lost.most_common())
    longer = "".join(f" ({reason}: {remedy})" for reason, remedy in REMEDIES.items() if reason in found.lost)
    raise ValueError(
        f"{found.share_lost:.1%} of the documents would be left out, more than data.max_lost={config.max_lost:g}: "
        f"{reasons}; mend the rows{longer}, or give {enough(found)} to train on the rest."
    )


def enough(found: Measurement) -> str:
    """Returns the option that lets a run leave out what it found unusable."""
    return f"--data.max-lost {math.ceil(found.share_lost * 100) / 100:g}"


def describe(found: Measurement, config: DataConfig, steps: int | None) -> list[str]:
    """Returns lines that say what the data are like, and how far the steps of a run go through them."""
    about = "" if found.is_whole else "about "
    tokens, length = found.epoch_tokens, found.lengths
    held_out = round(found.num_held_out * found.epoch_length / found.documents)
    documents = f"{about if held_out else ''}{found.epoch_length - held_out:,} documents an epoch"
    beside = f" beside {about}{held_out:,} held out for validation" if held_out else ""
    lines = [
        f"{documents}{beside}, {about}{tokens:,} tokens, {_share(found.trained, length)} of them trained; "
        f"examples of {int(np.median(length))} tokens by the median, {int(length.max())} at most"
    ]
    if config.vision is not None and (shown := found.patches[found.patches > 0]).size:
        lines.append(
            f"{len(shown) / len(found.patches):.0%} of the examples hold images or videos, of "
            f"{int(np.median(shown)):,} patches by the median, {int(shown.max()):,} at most"
        )
    if found.lost:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.lost.most_common())
        trained = found.documents - found.num_held_out
        lines.append(f"{found.share_lost:.1%} of {trained:,} documents are left out: {reasons}")
    if not found.is_whole:
        lines.append(f"judged from {found.documents:,} documents")
    fewest = found.steps_of_epoch(config)
    lines.append(f"an epoch is at least {fewest:,.1f} steps")
    if steps is not None:
        lines[-1] += f"; the run's {steps:,} steps are at most {steps / fewest:,.1f} epochs"
    return lines


def histogram(found: Measurement, *, width: int = 50) -> list[str]:
    """Draws how many examples are how long, in lines of text."""
    counts, edges = np.histogram(found.lengths, bins=min(12, int(np.ptp(found.lengths)) + 1))
    scale = width / counts.max()
    return [
        f"{int(np.ceil(low)):>9,} to {int(high):>9,} tokens {count:>9,} {'#' * round(count * scale)}"
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]


def _share(part: np.ndarray, whole: np.ndarray) -> str:
    return f"{part.sum() / max(whole.sum(), 1):.0%}"
