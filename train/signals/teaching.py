"""Writes the store of a run: the teacher reads the run's data once, batch by batch."""

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import gather, raise_together, wait
from qwen35_jax.gcs import check_is_path
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import load
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import check_mesh
from train.agreement import check_takes_all_devices
from train.batch import TOKEN_FIELDS, Fields, put_batch, sequences_of_process, take_sequences
from train.config import DataConfig, Distillation, Recipe, TrainConfig
from train.data.measure import Measurement, check_lost, describe, measure
from train.data.packing import PackedSequence
from train.data.vision import vision_reader
from train.setup import model_options
from train.signals.header import Header, make_header
from train.signals.lessons import Lesson, Lessons
from train.signals.signal import SignalSettings, signal_fields
from train.signals.store import Store
from train.signals.writing import Writer, begin, finish, is_complete, last_cut, write_head
from train.teacher import Heard, Teacher, find_teacher, hear
from train.workdir import LocalWorkdir

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 28
"""How large a file of a store becomes at most, unless one batch fills more. A kill costs the work for one file."""
_LOG_SECONDS = 10.0


class Share(NamedTuple):
    """What this process does of every batch."""

    sequences: range
    """Those that it feeds."""
    owned: range
    """Those of them whose documents it writes."""
    writer: int | None
    """Which of the processes that write it is; None if it writes nothing."""
    num_writers: int


class Job(NamedTuple):
    """What is taught and into what, found and checked before the teacher is loaded."""

    config: TrainConfig
    teacher: Teacher
    student: Path
    """The checkpoint that the run trains."""
    folder: Path
    """The store."""
    header: Header
    lessons: Lessons
    fields: Fields
    """The arrays of a batch that the teacher reads."""
    share: Share
    mesh: Mesh


def write_store(config: TrainConfig) -> None:
    """Writes the store that ``teacher.store`` names, or goes on after its last whole file.

    Every document of training and validation is taught once. Under several processes all of them call this, and share
    the folder.

    Raises:
      ValueError: a setting or an input does not allow it, or the folder holds something else.
      OSError: a file cannot be read or written.
    """
    mesh = config.layout.mesh.mesh()
    check_takes_all_devices(mesh)
    with raise_together():
        job = _prepare(config, mesh)
    _check_agreement(job.header)
    with raise_together():
        if jax.process_index() == 0:
            begin(job.folder, job.header)
    with LocalWorkdir(job.folder).locked():
        if is_complete(job.folder):
            Store.open(job.folder)
            logger.info("%s is complete", job.folder)
            return
        with jax.set_mesh(mesh):
            _teach(job)


def _prepare(config: TrainConfig, mesh: Mesh) -> Job:
    """Finds and checks teacher, data and folder."""
    recipe, data = config.recipe, config.recipe.data
    objective = recipe.objective
    assert isinstance(objective, Distillation), "the command checks the objective"
    place = objective.teacher.store
    if place is None:
        raise ValueError(
            "teacher.store names no folder; say with --teacher.store DIR where the signal is to be written."
        )
    check_is_path(place)
    student = find_folder(recipe.model.path)
    model_config = ModelConfig.from_hf(student)
    tokenizer = Tokenizer.from_pretrained(student)
    tokenizer.check_vocabulary(model_config.text.vocab_size)
    live = replace(objective, teacher=replace(objective.teacher, store=None))
    teacher = find_teacher(recipe, live, folder=student, student=model_config, tokenizer=tokenizer)
    source = student if teacher.folder is None else teacher.folder
    check_mesh(
        ModelConfig.from_hf(source).text,
        mesh.shape,
        sequences=data.sequences_per_batch // recipe.accumulation,
        tokens=data.sequence_length,
    )
    share = _share_of(recipe, mesh)
    vision = vision_reader(data.vision, student, model_config, tokenizer)
    lessons = Lessons(data, tokenizer, share.sequences, vision)
    found = measure(lessons.batches.corpus, whole=False)
    check_lost(found, data)
    _tell_size(found, teacher.settings, data)
    header = make_header(
        teacher.settings,
        data,
        tokenizer,
        vocabulary=model_config.text.vocab_size,
        documents=lessons.documents,
        teacher=teacher.identity,
    )
    fields = {**TOKEN_FIELDS, **({} if vision is None else vision.fields)}
    return Job(config, teacher, student, Path(place).expanduser(), header, lessons, fields, share, mesh)


def _tell_size(found: Measurement, settings: SignalSettings, data: DataConfig) -> None:
    """Says what the data are like, and how large the store becomes without what validation adds."""
    for line in describe(found, data, None):
        logger.info("data: %s", line)
    tokens, size = round(int(found.trained.sum()) * found.epoch_length / found.documents), _bytes_per_token(settings)
    logger.info("the store takes %d bytes for a trained token, about %s MB in all", size, f"{tokens * size / 1e6:,.1f}")


def _bytes_per_token(settings: SignalSettings) -> int:
    fields = signal_fields(settings).values()
    return sum(np.dtype(field.dtype).itemsize * int(np.prod(field.sizes)) for field in fields)


def _share_of(recipe: Recipe, mesh: Mesh) -> Share:
    """Returns what this process feeds and writes: of sequences that several feed, the first one writes them."""
    shares, next_free, num_writers = [], 0, 0
    for process in range(jax.process_count()):
        fed = sequences_of_process(
            sequences=recipe.data.sequences_per_batch, accumulation=recipe.accumulation, mesh=mesh, process=process
        )
        owned = range(max(fed.start, min(next_free, fed.stop)), fed.stop)
        next_free = max(next_free, fed.stop)
        shares.append((fed, owned, num_writers if owned else None))
        num_writers += bool(owned)
    fed, owned, writer = shares[jax.process_index()]
    return Share(fed, owned, writer, num_writers)


def _check_agreement(header: Header) -> None:
    """Raises a ValueError if the processes are about to write different stores."""
    first, *others = map(Header.from_json, gather(header.to_json()))
    for index, other in enumerate(others, start=1):
        if differ := first.fields_unlike(other):
            raise ValueError(
                f"the processes disagree: {', '.join(differ)} of process {index} differ from those of process 0; start "
                "the same command on every host, with the same data, models and store."
            )


def _teach(job: Job) -> None:
    """Loads the teacher, and writes what it says of every document that is not stored yet."""
    done, states = 0, []
    with raise_together():
        if jax.process_index() == 0 and (cut := last_cut(job.folder)) is not None:
            done, states = cut
    done, states = gather([done, states])[0]
    if done:
        with raise_together():
            _resume(job, states)
        logger.info("goes on after %d files of %s", done, job.folder)
    options = model_options(job.config)
    student = load(job.student, mesh=job.mesh, **options) if job.teacher.folder is None else None
    heard = hear(job.teacher, job.config, student, job.mesh)
    with raise_together():
        if heard.head is not None:
            write_head(job.folder, heard.head)
    _write_batches(job, heard, done)
    wait("all files of the store are written")
    with raise_together():
        if jax.process_index() == 0:
            totals = finish(job.folder)
            logger.info(
                "%s: %s documents, %s tokens with a signal, %s bytes",
                job.folder, *(f"{totals[name]:,}" for name in ("documents", "tokens", "bytes")),
            )  # fmt: skip
    wait("the store is whole")


def _resume(job: Job, states: list[dict]) -> None:
    try:
        job.lessons.resume(states)
    except ValueError as err:
        raise ValueError(
            f"the store {job.folder} was begun with other settings ({err}); give those, or name another folder with "
            "--teacher.store."
        ) from err


def _write_batches(job: Job, heard: Heard, done: int) -> None:
    """Teaches batch after batch, and ends a file after every few of them."""
    data, share, writer = job.config.recipe.data, job.share, None
    if share.writer is not None:
        fields = signal_fields(job.teacher.settings)
        writer = Writer(job.folder, fields, number=share.writer, writers=share.num_writers, after=done)
    batch_tokens = data.sequence_length * data.sequences_per_batch
    batch_bytes = _bytes_per_token(job.teacher.settings) * batch_tokens // share.num_writers
    every = max(1, SHARD_BYTES // batch_bytes)
    progress, since_cut, lesson = _Progress(job.folder), 0, None
    for lesson, signal in _one_ahead(job, heard):
        if writer is not None:
            taken = {name: take_sequences(array, share.sequences, mesh=job.mesh) for name, array in signal.items()}
            for sequence in share.owned:
                place = sequence - share.sequences.start
                _add(writer, lesson.packed[place], {name: array[place] for name, array in taken.items()})
        progress.add(lesson)
        since_cut += 1
        if since_cut == every:
            _cut(writer, lesson)
            since_cut = 0
    if since_cut and lesson is not None:
        _cut(writer, lesson)
    progress.end()


def _one_ahead(job: Job, heard: Heard) -> Iterator[tuple[Lesson, Mapping[str, Array]]]:
    """Yields each batch with its signal while the device works on the next one."""
    recipe, waiting = job.config.recipe, deque()
    assert heard.live is not None, "a teacher that is loaded is live"
    lessons = iter(job.lessons)
    while True:
        with raise_together():
            lesson = next(lessons, None)
        if lesson is not None:
            placed = put_batch(
                lesson.batch,
                accumulation=recipe.accumulation,
                mesh=job.mesh,
                fields=job.fields,
                num_sequences=recipe.data.sequences_per_batch,
                first_sequence=job.share.sequences.start,
            )
            waiting.append((lesson, heard.live.teach(placed)))
        if waiting and (lesson is None or len(waiting) > 1):
            yield waiting.popleft()
        if lesson is None and not waiting:
            return


def _add(writer: Writer, sequence: PackedSequence, values: Mapping[str, np.ndarray]) -> None:
    start = 0
    for _, example in sequence:
        end = start + len(example)
        writer.add(example, {name: array[start:end] for name, array in values.items()})
        start = end


def _cut(writer: Writer | None, lesson: Lesson) -> None:
    with raise_together():
        if writer is not None:
            writer.cut(lesson.state)


class _Progress:
    """Says every few seconds how far the teacher is."""

    def __init__(self, folder: Path):
        self._folder, self._began, self._said = folder, time.monotonic(), time.monotonic()
        self._batches, self._documents, self._tokens = 0, 0, 0

    def add(self, lesson: Lesson) -> None:
        """Counts a batch."""
        self._batches += 1
        self._documents += sum(map(len, lesson.packed))
        self._tokens += int((lesson.batch["segment_ids"] > 0).sum())
        if time.monotonic() - self._said > _LOG_SECONDS:
            self.end()

    def end(self) -> None:
        """Says it now."""
        self._said = time.monotonic()
        rate = self._tokens / max(self._said - self._began, 1e-9)
        logger.info(
            "%s: %d batches, %s documents, %s tokens read, %s tokens/s",
            self._folder, self._batches, f"{self._documents:,}", f"{self._tokens:,}", f"{rate:,.0f}",
        )  # fmt: skip
