"""Fresh answers to prompts of the validation data, by which an on-policy run is judged.

The data's answers do not tell how far the student is from its teacher where the student itself goes.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from qwen35_jax.processing import Tokenizer
from train.config.data import DataConfig
from train.data.masking import Example
from train.data.packing import make_batch
from train.data.validation import PackedBatches, ValidationData, row_name
from train.objectives.rollouts import RolloutConfig
from train.rollouts.figures import figures_of
from train.rollouts.layout import pack
from train.rollouts.prompts import Prompt, decoded, read_prompt
from train.rollouts.rollout import Rollout
from train.state import TrainState

logger = logging.getLogger(__name__)

# Rows that are read to find prompts, or four times as many as are wanted.
_LOOKED_AT = 2048

Answer = Callable[[TrainState, Sequence[Prompt]], list[Rollout]]
"""Answers each prompt once with the weights of a state."""


class Answered(NamedTuple):
    """What a state answered."""

    batches: PackedBatches
    """The answers as batches of validation data."""
    figures: dict[str, float | int]
    """What they are like; ``rollout_seconds`` alone depends on the clock."""


class HeldOutPrompts:
    """The first prompts of the validation data, which are answered anew at every validation.

    Their seeds are the same each time and are not those of training, so the tokens that train are the same without it.

    Args:
      sequences: the neighbouring sequences of every batch that this process feeds.
      answer: the sampling, by the engine of training.
    """

    def __init__(
        self,
        validation: ValidationData,
        settings: RolloutConfig,
        config: DataConfig,
        tokenizer: Tokenizer,
        sequences: range,
        answer: Answer,
    ):
        self._tokenizer, self._config, self._sequences, self._answer = tokenizer, config, sequences, answer
        self._vision = validation.documents.vision
        self._where = partial(row_name, validation.documents, validation.rows)
        self._per_batch = config.sequences_per_batch * (config.sequence_length // settings.longest)
        self.prompts: list[Prompt] = []
        left_out: Counter[str] = Counter()
        looked_at = validation.rows[: max(_LOOKED_AT, 4 * settings.eval_prompts)]
        for place, (source, row) in enumerate(looked_at):
            if len(self.prompts) == settings.eval_prompts:
                break
            found = read_prompt(validation.documents, settings, source, row)
            found = decoded(found) if isinstance(found, Example) else found
            if isinstance(found, Example):
                self.prompts.append(Prompt(place, found))
            else:
                left_out[found.reason] += 1
        told = f", {left_out.total()} rows before them are left out: {dict(left_out)}" if left_out else ""
        if self.prompts:
            logger.info("rollouts: every validation answers %d held-out prompts%s", len(self.prompts), told)
        elif settings.eval_prompts:
            logger.warning("rollouts: no validation row gives a prompt, so that no answers are validated%s", told)

    def sample(self, state: TrainState) -> Answered:
        """Answers the prompts with the weights of a state; all processes call this."""
        began = time.perf_counter()
        if self._vision is not None:
            self._vision.start(prompt.document for prompt in self.prompts)
        rollouts = self._answer(state, self.prompts)
        figures = figures_of(rollouts, self._tokenizer, staleness=0, seconds=time.perf_counter() - began)
        told = {name: value for name, value in figures.items() if value is not None and name != "rollout_staleness"}
        packed = [
            pack(rollouts[start : start + self._per_batch], self._config.sequences_per_batch, self._config)
            for start in range(0, len(rollouts), self._per_batch)
        ]
        lay_out = partial(
            make_batch,
            sequence_length=self._config.sequence_length,
            pad_token_id=self._tokenizer.pad_token_id,
            vision=self._vision,
            where=self._where,
        )
        own = [sequences[self._sequences.start : self._sequences.stop] for sequences in packed]
        return Answered(PackedBatches(own, lay_out), told)
