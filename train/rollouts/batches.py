"""Batches of rollouts, or of rollouts and data, from any position and for any process."""

import dataclasses
import hashlib
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qwen35_jax.distributed import gather, raise_together
from qwen35_jax.liveness import exchange
from qwen35_jax.model import Qwen35
from qwen35_jax.processing import Tokenizer
from train.batch import TOKEN_FIELDS, HostBatch
from train.config.data import DataConfig
from train.data.documents import Documents
from train.data.packing import PackedSequence, make_batch
from train.data.pipeline import BatchIterator, merge_states
from train.data.vision import VisionReader
from train.objectives.rollouts import ROLLOUT_FIELDS, RolloutConfig
from train.rollouts.figures import Figures, figures_of
from train.rollouts.layout import are_rollouts, join, pack, shares
from train.rollouts.prompts import Prompt, Prompts
from train.rollouts.rollout import Rollout, from_json, to_json
from train.rollouts.sampler import Sampler
from train.state import TrainState

logger = logging.getLogger(__name__)

_FIELDS = {**TOKEN_FIELDS, **ROLLOUT_FIELDS}
# Settings of rollouts that decide no answer, or only its rounding.
_FREE = ("refresh", "slots", "cache_tokens", "speculative_tokens", "eval_prompts")


class _Sampled(NamedTuple):
    """The rollouts of a batch that is not used yet."""

    rollouts: list[Rollout]
    stored: dict[str, Any]
    """The same for checkpoints, encoded once."""
    age: int
    """How many batches come before it that the same weights sampled."""


class RolloutBatches:
    """Yields batches of tokens with ``ROLLOUT_FIELDS``, numpy arrays [len(sequences), tokens], without an end.

    Before each batch ``see`` tells the state that the step will begin from. Every ``refresh`` batches, answers for that
    many are sampled with its weights. All processes have all rollouts, and each lays out its own sequences.

    Args:
      config: of the data; its rows give the prompts, and documents for the sequences without rollouts.
      sequences: the neighbouring sequences of every batch that this process feeds; None for all.
      vision: reads images and videos, where ``config.vision`` asks for them.
      seed: of the run.

    Raises:
      ValueError: the settings or the data allow no such batches.
    """

    def __init__(
        self,
        config: DataConfig,
        settings: RolloutConfig,
        tokenizer: Tokenizer,
        sequences: range | None = None,
        vision: VisionReader | None = None,
        *,
        seed: int,
    ):
        settings.check_data(config)
        self._config, self._settings, self._tokenizer, self._seed = config, settings, tokenizer, seed
        whole = config.sequences_per_batch
        self._count, self._num_prompts = settings.num_sequences(config), settings.num_prompts(config)
        sequences = range(whole) if sequences is None else sequences
        self._own, others = shares(self._count, whole, sequences)
        self._where = are_rollouts(self._count, whole, sequences)
        self._data: BatchIterator | None = None
        self._checks: dict[str, Any] = {}
        self._documents = Documents(config, tokenizer, vision)
        if self._count < whole:
            self._data = BatchIterator(self._documents.in_batches_of(whole - self._count), tokenizer, others)
            self._documents = self._data.corpus.in_batches_of(whole)
        else:
            checked, unusable = self._documents.check()
            self._checks = {"rows_checked": checked, "unusable_rows": dict(unusable)}
        if not self._documents.has_conversations:
            raise ValueError(
                f"{self._documents.names} holds no conversations, so there is nothing to answer; give conversations, "
                "or train without rollouts."
            )
        for warning in settings.warnings():
            logger.warning(warning)
        self._prompts = Prompts(self._documents, settings)
        self._sampler: Sampler | None = None
        self._state: TrainState | None = None
        self._ready: deque[_Sampled] = deque()
        self._num_batches = 0
        self._counts: Counter[str] = Counter()
        self._last: list[PackedSequence] = []
        self._figures: Figures = {}
        self._end = 0

    def sample_from(self, model_of: Callable[[TrainState], Qwen35]) -> None:
        """Says how to get the model of a state; this must come before the first batch.

        The engine is made when the first answers are sampled, under the mesh of that moment.
        """
        self._sampler = Sampler(self._settings, self._config, self._tokenizer, model_of, seed=self._seed)

    def answer(self, state: TrainState, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Answers each of some held-out prompts once; the batches to come stay as they are."""
        assert self._sampler is not None, "sample_from comes first"
        return self._sampler.sample(state, prompts, answers=1, purpose="validation")

    @property
    def needs_state(self) -> bool:
        """Whether the next batch is sampled first."""
        return not self._ready

    def see(self, state: TrainState) -> None:
        """Takes the state that the next step begins from; it is used by the next batch at most."""
        self._state = state

    def __iter__(self) -> "RolloutBatches":
        return self

    def __next__(self) -> HostBatch:
        """Returns the next batch, for which it may have to sample first.

        Raises:
          ValueError: as the data do; or no row gives a prompt. All processes raise what comes before the sampling.
        """
        state, self._state = self._state, None
        began = time.perf_counter()
        if has_sampled := not self._ready:
            self._sample(state)
        seconds = time.perf_counter() - began if has_sampled else 0.0
        # What one process may find wrong comes after what all do together.
        data = None if self._data is None else next(self._data)
        rollouts, _, age = self._ready.popleft()
        own = pack(rollouts, self._count, self._config)[self._own.start : self._own.stop]
        laid_out = make_batch(
            own,
            sequence_length=self._config.sequence_length,
            pad_token_id=self._tokenizer.pad_token_id,
            fields=_FIELDS,
            vision=self._documents.vision,
            where=lambda key: self._name(*key),
        )
        batch = join(laid_out, data, self._where)
        self._last, self._num_batches = own, self._num_batches + 1
        self._end = 1 + rollouts[-1].prompt.position
        self._figures = figures_of(rollouts, self._tokenizer, staleness=age, seconds=seconds)
        self._counts["rollouts"] += len(rollouts)
        self._counts["rollout_tokens"] += sum(len(each.answer) for each in rollouts)
        return batch

    def _sample(self, state: TrainState | None) -> None:
        """Fills the buffer with answers for the next batches."""
        assert self._sampler is not None and state is not None, "sample_from and see come first"
        with raise_together(exchange):
            prompts = self._prompts.take(self._num_prompts * self._settings.refresh)
        sampled = self._sampler.sample(state, prompts)
        size = self._num_prompts * self._settings.answers
        for age in range(self._settings.refresh):
            rollouts = sampled[age * size : (age + 1) * size]
            self._ready.append(_Sampled(rollouts, to_json(rollouts), age))

    @property
    def data(self) -> BatchIterator | None:
        """What fills the other sequences of a batch."""
        return self._data

    @property
    def corpus(self) -> Documents:
        """All documents that prompts are made from."""
        return self._documents

    @property
    def epoch(self) -> float:
        """Epochs passed, judged by the last prompt of the batch last returned."""
        return self._end / self._documents.epoch_length

    def figures(self) -> Figures:
        """Returns what the metrics tell of the batch last returned; ``rollout_seconds`` alone depends on the clock."""
        return self._figures

    def documents(self) -> list[list[str]]:
        """Names, for each sequence of the batch last returned, where its documents come from, in their order."""
        return self.documents_later()()

    def documents_later(self) -> Callable[[], list[list[str]]]:
        """Returns a function that does later what `documents` does."""
        own, where = self._last, self._where
        data = None if self._data is None else self._data.documents_later()

        def find() -> list[list[str]]:
            answers = iter([[self._name(*key) for key, _ in sequence] for sequence in own])
            others = iter(() if data is None else data())
            return [next(answers if is_rollout else others) for is_rollout in where]

        return find

    def _name(self, position: int, number: int) -> str:
        return f"{self._documents.where(position)}, answer {number + 1}"

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON-able state from which `set_state` continues with exactly the batches that would follow.

        It holds the rollouts that are sampled and not used yet. `merge` joins what the processes read of the data.
        """
        return {
            "identity": self._identity(),
            "batches": self._num_batches,
            "prompts": self._prompts.get_state(),
            "counts": dict(self._counts),
            "rollouts": [{"age": each.age, **each.stored} for each in self._ready],
            "data": None if self._data is None else self._data.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state with the same data and settings; nothing is sampled again.

        Raises:
          ValueError: the data, the tokenizer or a setting that decides the rollouts are not those of the state, or an
            image of a prompt has another size.
        """
        mine = self._identity()
        changed = [name for name, value in mine.items() if state["identity"].get(name) != value]
        if changed:
            was = ", ".join(f"{name} was {state['identity'].get(name)!r}, is {mine[name]!r}" for name in changed)
            raise ValueError(f"the saved position belongs to other rollouts: {was}; start a new run elsewhere.")
        if self._data is not None:
            self._data.set_state(state["data"])
        self._prompts.set_state(state["prompts"])
        self._num_batches, self._counts = state["batches"], Counter(state["counts"])
        kept = ({name: value for name, value in each.items() if name != "age"} for each in state["rollouts"])
        self._ready = deque(
            _Sampled(from_json(stored, self._prompts.again), stored, each["age"])
            for stored, each in zip(kept, state["rollouts"], strict=True)
        )
        self._last, self._figures, self._end = [], {}, state["prompts"]["position"]

    def merge(self, state: dict[str, Any]) -> dict[str, Any]:
        """Joins a state of this process with those that the others pass at the same time; all processes call this.

        Raises:
          ValueError: they are not of one moment of one run.
        """
        common = {name: value for name, value in state.items() if name != "data"}
        digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()
        told = gather({"digest": digest, "data": state["data"]})
        if any(each["digest"] != digest for each in told):
            raise ValueError("the processes hold other rollouts or are not at the same batch; their states do not fit.")
        return state if self._data is None else state | {"data": merge_states([each["data"] for each in told])}

    def describe(self, steps: int | None) -> Iterator[str]:
        """Yields lines that say what a step samples, and how far the steps of a run go through the prompts.

        Raises:
          ValueError: no row gives a prompt.
        """
        yield self._prompts.look()
        settings, length = self._settings, self._config.sequence_length
        yield (
            f"a step answers {self._num_prompts} prompts {settings.answers} times, in {self._count} of "
            f"{self._config.sequences_per_batch} sequences of {length:,} tokens"
            + (f"; {settings.refresh} steps take answers of the same weights" if settings.refresh > 1 else "")
        )
        if steps is not None:
            epochs = steps * self._num_prompts / self._documents.epoch_length
            yield f"the run's {steps:,} steps go through the data's rows {epochs:,.2f} times, or a little more"

    def report(self) -> Mapping[str, Any]:
        """Counts what became of the prompts so far.

        Returns:
          ``rows_in_data``; ``epochs`` passed by the prompts; ``prompts_left_out`` by reason; ``batches``, ``rollouts``
          and ``rollout_tokens``, the generated ones, in them; and ``data``, the report of the other sequences, or the
          ``rows_checked`` at the start and the ``unusable_rows`` among them where there are none.
        """
        return {
            "rows_in_data": sum(map(len, self._documents.sources)),
            "epochs": self.epoch,
            "prompts_left_out": dict(self._prompts.left_out),
            "batches": self._num_batches,
            **{name: self._counts[name] for name in ("rollouts", "rollout_tokens")},
            **(self._checks if self._data is None else {"data": self._data.report()}),
        }

    def _identity(self) -> dict[str, Any]:
        """Returns all that decides the rollouts besides the position and the weights."""
        settings = {name: value for name, value in dataclasses.asdict(self._settings).items() if name not in _FREE}
        names = ("sequences_per_batch", "shards", "open_sequences")
        own = {name: getattr(self._config, name) for name in names}
        return self._documents.identity() | own | {"rollouts": settings}
