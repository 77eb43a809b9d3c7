"""Batched generation: prompts in, completions out.

Prompts are sorted by length, cut into batches and padded at their ends. Prompt slots, sequences and slots of
the state are rounded up to a few sizes, which bounds how many programs are compiled. The prompt is one
program. The steps are another, a loop on the device that returns to the host every ``STEPS_PER_CALL`` tokens.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax.distributed import to_host
from qwen35_jax.inference.programs import STEPS_PER_CALL, Prompts, decode, grow, prefill
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.thinking import opens_thinking, split_tokens
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import mesh_of, num_shards

# Slots beyond the prompt at the start. More are added as they are needed, so that short
# completions do not pay for attention over the slots that a high limit would reserve.
_FIRST_SLOTS = 256


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt.

    Attributes:
      token_ids: the generated tokens, with the stop token if there was one.
      thinking: the text of the think block; None if the completion does not think.
      answer: the text after the think block; empty if the block never closed.
      text: all of it, think marks included, without special tokens.
      finish_reason: ``"stop"`` at an end token, ``"length"`` at the limit of new tokens.
      multiple_closes: how many ``</think>`` the answer holds (``processing.thinking`` has the rule).
    """

    token_ids: list[int]
    thinking: str | None
    answer: str
    text: str
    finish_reason: Literal["stop", "length"]
    multiple_closes: int = 0

    @classmethod
    def from_tokens(
        cls,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        token_ids: list[int],
        finish_reason: Literal["stop", "length"],
    ) -> "Completion":
        """Makes the completion of a prompt, which says whether the completion begins inside a think block."""
        split = split_tokens(tokenizer, token_ids, opened=opens_thinking(tokenizer, prompt_ids))
        text = tokenizer.decode(token_ids, skip_special_tokens=True)
        return cls(token_ids, split.thinking, split.answer, text, finish_reason, split.multiple_closes)


class Engine:
    """Generates completions for tokenised prompts.

    Under several processes all of them make the same calls, and each gets all completions.

    Every prompt draws from its own random stream, given by the seed and its place in the list, so its
    sample depends on neither its batch nor the order of work, up to the rounding of differently
    shaped matrix products.

    Args:
      model: used as it is at each call, so a model in training can be sampled from.
      tokenizer: gives the end tokens and the text.
      max_batch: most prompts at once; memory and speed grow with it.

    Raises:
      ValueError: ``max_batch`` below 1, or a model split over the ``context`` mesh axis.
    """

    def __init__(self, model: Qwen35, tokenizer: Tokenizer, *, max_batch: int = 8):
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}; give at least 1.")
        self._mesh = mesh_of(model.head_weight())
        shards = 1 if self._mesh is None else num_shards("length", self._mesh)
        if shards > 1:
            raise ValueError(
                f"the model's mesh has context={shards}, but one token at a time cannot be split over positions; "
                "load the model on a mesh with context=1."
            )
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: SamplingParams,
        max_new_tokens: int,
        seed: int = 0,
        on_finish: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Completes every prompt up to an end token or the limit of new tokens.

        Args:
          prompts: token ids, none empty.
          sampling: how tokens are chosen.
          max_new_tokens: most tokens of one completion.
          seed: of the random streams; greedy decoding does not use it.
          on_finish: called as each prompt finishes, with its place in ``prompts``; longer prompts may
            come before shorter ones.

        Returns:
          The completions in the order of ``prompts``, each split into thinking and answer.

        Raises:
          ValueError: an empty prompt, a token id outside the vocabulary, or more tokens than the model has positions.
        """
        self.check(prompts, max_new_tokens)
        done: dict[int, Completion] = {}
        split = nnx.split(self.model)
        by_length = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        for start in range(0, len(prompts), self.max_batch):
            numbers = by_length[start : start + self.max_batch]
            written: dict[int, list[int]] = {number: [] for number in numbers}
            chosen = [prompts[number] for number in numbers]
            calls = self._new_tokens(split, chosen, numbers, sampling, max_new_tokens, seed, STEPS_PER_CALL)
            for new_tokens in calls:
                for number, tokens in zip(numbers, new_tokens.tolist(), strict=False):
                    if number in done:
                        continue
                    completion = self._extend(prompts[number], written[number], tokens, max_new_tokens)
                    if completion is not None:
                        done[number] = completion
                        if on_finish is not None:
                            on_finish(number, completion)
        return [done[number] for number in range(len(prompts))]

    def stream(
        self, prompt: Sequence[int], *, sampling: SamplingParams, max_new_tokens: int, seed: int = 0
    ) -> Iterator[int]:
        """Yields the tokens that ``generate`` would write for one prompt, each as soon as it is there.

        Raises:
          ValueError: as ``generate`` does.
        """
        self.check([prompt], max_new_tokens)
        for new_tokens in self._new_tokens(nnx.split(self.model), [prompt], [0], sampling, max_new_tokens, seed, 1):
            yield int(new_tokens[0, 0])

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raises ``ValueError`` for what ``generate`` would refuse, before anything is computed."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}; give at least 1.")
        text = self.model.config.text
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(f"prompt {number} has no tokens; a completion needs at least one to follow.")
            if min(prompt) < 0 or max(prompt) >= text.vocab_size:
                raise ValueError(
                    f"prompt {number} has token ids from {min(prompt)} to {max(prompt)}, but the model knows 0 to "
                    f"{text.vocab_size - 1}; use the tokenizer of the checkpoint."
                )
            if len(prompt) + max_new_tokens > text.max_position_embeddings:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} it passes the "
                    f"model's {text.max_position_embeddings} positions; shorten it or lower max_new_tokens."
                )

    def _extend(
        self, prompt: Sequence[int], written: list[int], new_tokens: list[int], max_new_tokens: int
    ) -> Completion | None:
        """Adds a sequence's new tokens to those written; returns the completion once it is finished."""
        for token in new_tokens:
            written.append(token)
            stopped = token in self.tokenizer.eos_token_ids
            if stopped or len(written) == max_new_tokens:
                return Completion.from_tokens(self.tokenizer, prompt, written, "stop" if stopped else "length")
        return None

    def _new_tokens(
        self,
        split: tuple[nnx.GraphDef, nnx.State],
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        sampling: SamplingParams,
        max_new_tokens: int,
        seed: int,
        steps_per_call: int,
    ) -> Iterator[np.ndarray]:
        """Runs one batch; yields new tokens [B, n] until every sequence is done or the limit is reached.

        Sequences beyond the prompts are filling, and what follows an end token is noise.
        """
        with self._mesh_context():
            batch = self._pad(prompts, numbers, seed)
            slots = batch.input_ids.shape[1]
            capacity = _round_up(slots + min(max_new_tokens, _FIRST_SLOTS))
            sequences = prefill(*split, batch, capacity, sampling)
            first, done = to_host(sequences.token), to_host(sequences.done)
        yield first[:, None]
        written = 1
        while written < max_new_tokens and not done.all():
            with self._mesh_context():
                if slots + written > capacity:
                    capacity = min(_round_up(2 * capacity), _round_up(slots + max_new_tokens))
                    sequences = dataclasses.replace(sequences, state=grow(sequences.state, capacity))
                # The state holds all but the newest token.
                steps = min(steps_per_call, max_new_tokens - written, capacity - (slots + written - 1))
                sequences, new_tokens, taken = decode(*split, sequences, written, steps, sampling)
                new_tokens, done = to_host(new_tokens), to_host(sequences.done)
            written += int(taken)
            yield new_tokens[:, :taken]

    def _pad(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], seed: int) -> Prompts:
        """Lays prompts out at the beginning of a batch whose sizes are rounded up."""
        shards = 1 if self._mesh is None else num_shards("batch", self._mesh)
        # A power of two or the largest batch, in whole sequences for every device.
        size = min(1 << (len(prompts) - 1).bit_length(), self.max_batch)
        size = -(-size // shards) * shards
        slots = _round_up(max(len(prompt) for prompt in prompts))
        input_ids = np.full((size, slots), self.tokenizer.pad_token_id, np.int32)
        # Filling sequences hold one token, so that none is without anything to attend to.
        lengths = np.ones(size, np.int32)
        for i, prompt in enumerate(prompts):
            input_ids[i, : len(prompt)], lengths[i] = prompt, len(prompt)
        return Prompts(
            input_ids=jnp.asarray(input_ids),
            segment_ids=jnp.asarray((np.arange(slots) < lengths[:, None]).astype(np.int32)),
            lengths=jnp.asarray(lengths),
            filling=jnp.asarray(np.arange(size) >= len(prompts)),
            numbers=jnp.asarray(np.pad(np.array(numbers, np.int32), (0, size - len(prompts)))),
            key=jax.random.key(seed),
            eos_token_ids=jnp.asarray(self.tokenizer.eos_token_ids, jnp.int32),
        )

    def _mesh_context(self) -> contextlib.AbstractContextManager[Mesh | None]:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def _round_up(size: int) -> int:
    """Rounds up to a power of two or one and a half times one, at least 16: no more than half is padding."""
    power = max(16, 1 << (size - 1).bit_length())
    return 3 * power // 4 if power > 16 and size <= 3 * power // 4 else power
