"""The prompts of a run, in the order of the documents that they are from."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from qwen35_jax.inference.generate import MODES
from qwen35_jax.processing import ChatTemplateError, Tokenizer
from train.data.documents import Documents
from train.objectives.rollouts import RolloutConfig

logger = logging.getLogger(__name__)

_MAX_UNUSED = 100_000
_LOOKED_AT, _ENOUGH = 2048, 256


class Prompt(NamedTuple):
    """A prompt and the position of its document."""

    position: int
    token_ids: Int32[np.ndarray, " P"]


def read_prompt(
    documents: Documents, tokenizer: Tokenizer, settings: RolloutConfig, source: int, row: int
) -> Int32[np.ndarray, " P"] | tuple[str, str]:
    """Returns the tokens of a row's prompt, or why there is none: in a word, and in a clause."""
    found = documents.prompt(source, row)
    if found is None:
        return "no_prompt", "no conversation with an answer"
    messages, tools = found
    try:
        ids = tokenizer.encode_chat(messages, tools=tools, enable_thinking=MODES[settings.mode])
    except ChatTemplateError as err:
        return "template", str(err)
    if len(ids) > settings.max_prompt_tokens:
        longest = settings.max_prompt_tokens
        return "too_long", f"a prompt of {len(ids)} tokens, more than rollouts.max_prompt_tokens={longest}"
    return np.asarray(ids, np.int32)


class Prompts:
    """The conversations of the data up to their last answer, rendered for the next turn. They never end.

    Rows that hold none, that are held out for validation or whose prompt is too long are left out and counted.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer, settings: RolloutConfig):
        self._documents, self._tokenizer, self._settings = documents, tokenizer, settings
        self.position = 0
        """Documents looked at so far."""
        self.left_out: Counter[str] = Counter()

    def take(self, count: int) -> list[Prompt]:
        """Returns the next prompts.

        Raises:
          ValueError: no document of a whole epoch, or of very many, has a prompt.
        """
        taken, unused = [], 0
        while len(taken) < count:
            found = self._read(self.position)
            self.position += 1
            if isinstance(found, Prompt):
                taken.append(found)
                unused = 0
                continue
            self._leave_out(*found)
            unused += 1
            if unused == min(self._documents.epoch_length, _MAX_UNUSED):
                raise ValueError(
                    f"no row of {self._documents.names} gives a prompt; {unused} rows in a row were left out: "
                    f"{dict(self.left_out)}; give conversations, or raise rollouts.max_prompt_tokens."
                )
        return taken

    def look(self) -> str:
        """Reads the first rows without taking them, until enough of them give a prompt, and says what they are like.

        Raises:
          ValueError: none gives a prompt, as ``take`` would find after the model was loaded and compiled.
        """
        unlimited = Prompts(self._documents, self._tokenizer, replace(self._settings, max_prompt_tokens=1 << 30))
        longest, lengths, rows = self._settings.max_prompt_tokens, [], 0
        for position in range(min(self._documents.epoch_length, _LOOKED_AT)):
            found = unlimited._read(position)
            rows += isinstance(found, Prompt) or found[0] != "held_out"
            lengths += [len(found.token_ids)] if isinstance(found, Prompt) else []
            if len(lengths) == _ENOUGH and min(lengths) <= longest:
                break
        if not lengths or min(lengths) > longest:
            why = f"the shortest has {min(lengths)} tokens" if lengths else "they hold no conversation with an answer"
            raise ValueError(
                f"none of the first {rows:,} rows of {self._documents.names} gives a prompt of at most "
                f"rollouts.max_prompt_tokens={longest}: {why}; give conversations, or raise it."
            )
        used = sum(length <= longest for length in lengths)
        return (
            f"{used:,} of the first {rows:,} rows give a prompt; {int(np.median(lengths))} tokens by the median, "
            f"{max(lengths)} at most, and up to {longest} are allowed"
        )

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON-able state from which ``set_state`` continues exactly."""
        return {"position": self.position, "left_out": dict(self.left_out)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of ``get_state``."""
        self.position, self.left_out = state["position"], Counter(state["left_out"])

    def _read(self, position: int) -> Prompt | tuple[str, str]:
        """Returns what is at a position, or why there is nothing: in a word, and in a clause."""
        source, row = self._documents.locate(position)
        if row in self._documents.held_out[source]:
            return "held_out", ""
        found = read_prompt(self._documents, self._tokenizer, self._settings, source, row)
        return found if isinstance(found, tuple) else Prompt(position, found)

    def _leave_out(self, reason: str, problem: str) -> None:
        """Counts a row, and tells the first of its kind."""
        if problem and not self.left_out[reason]:
            where = self._documents.where(self.position - 1)
            logger.warning("rollouts: %s is left out, as are all rows like it: %s", where, problem)
        self.left_out[reason] += 1
