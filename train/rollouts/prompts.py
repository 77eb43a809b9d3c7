"""The prompts of a run, in the order of the documents that they are from."""

import logging
from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from qwen35_jax.inference.generate import MODES
from train.config.data import DataConfig
from train.data.documents import REMEDIES, Documents
from train.data.masking import Example
from train.data.rows import RowError
from train.objectives.rollouts import RolloutConfig

logger = logging.getLogger(__name__)

_MAX_UNUSED = 100_000
_LOOKED_AT, _ENOUGH = 2048, 256


class Prompt(NamedTuple):
    """A prompt and the position of the document that it is from."""

    position: int
    document: Example
    """Nothing of it is trained."""

    @property
    def token_ids(self) -> Int32[np.ndarray, " P"]:
        """Its tokens, with as many pads as its images and videos have."""
        return self.document.input_ids


class LeftOut(NamedTuple):
    """Why a row gives no prompt."""

    reason: str
    """In a word, by which it is counted."""
    problem: str
    """In a clause; empty where there is nothing to tell."""


def most_patches(settings: RolloutConfig, data: DataConfig) -> int:
    """Returns how many patches a prompt may have, so that a sequence holds as many as it does by their tokens."""
    if data.vision is None:
        return 0
    return data.vision.patches_per_sequence // (data.sequence_length // settings.longest)


def read_prompt(documents: Documents, settings: RolloutConfig, source: int, row: int) -> Example | LeftOut:
    """Returns the prompt of a row, or why it is left out. Its images and videos are not decoded."""
    found = _find(documents, settings, source, row)
    return found if isinstance(found, LeftOut) else _too_large(found, settings, documents.config) or found


def decoded(prompt: Example) -> Example | LeftOut:
    """Waits until the images and videos of a prompt are decoded; returns what is wrong with one."""
    try:
        for picture in prompt.pictures:
            picture.patches()
    except RowError as err:
        return LeftOut(err.reason, str(err))
    return prompt


def _find(documents: Documents, settings: RolloutConfig, source: int, row: int) -> Example | LeftOut:
    found = documents.prompt(source, row, enable_thinking=MODES[settings.mode])
    if isinstance(found, RowError):
        return LeftOut(found.reason, str(found))
    return LeftOut("no_prompt", "no conversation with an answer") if found is None else found


def _too_large(prompt: Example, settings: RolloutConfig, data: DataConfig) -> LeftOut | None:
    longest, most = settings.max_prompt_tokens, most_patches(settings, data)
    if len(prompt) > longest:
        return LeftOut("too_long", f"a prompt of {len(prompt)} tokens, more than rollouts.max_prompt_tokens={longest}")
    if prompt.num_patches > most:
        told = f"a prompt of {prompt.num_patches} patches, more than the {most} of each document in a sequence"
        return LeftOut("too_many_patches", f"{told}; {REMEDIES['too_many_patches']}")
    return None


class Prompts:
    """The conversations of the data up to their last answer, rendered for the next turn. They never end.

    Rows that hold none, that are held out for validation or whose prompt is too large are left out and counted.
    """

    def __init__(self, documents: Documents, settings: RolloutConfig):
        self._documents, self._settings = documents, settings
        self.position = 0
        """Documents looked at so far."""
        self.left_out: Counter[str] = Counter()
        self._told: dict[str, str] = {}

    def take(self, count: int) -> list[Prompt]:
        """Returns the next prompts, whose images and videos are decoded.

        Raises:
          ValueError: no document of a whole epoch, or of very many, has a prompt.
        """
        taken, unused = [], 0
        while len(taken) < count:
            for found in self._next(count - len(taken)):
                position, self.position = self.position, self.position + 1
                if isinstance(found, Example):
                    taken.append(Prompt(position, found))
                    unused = 0
                    continue
                self._leave_out(position, found)
                unused += 1
                if unused == min(self._documents.epoch_length, _MAX_UNUSED):
                    told = "".join(f", or mend the rows, such as {each}" for each in islice(self._told.values(), 1))
                    raise ValueError(
                        f"no row of {self._documents.names} gives a prompt; {unused} rows in a row were left out: "
                        f"{dict(self.left_out)}; give conversations, raise rollouts.max_prompt_tokens{told}."
                    )
        return taken

    def again(self, position: int, token_ids: Int32[np.ndarray, " P"]) -> Prompt:
        """Returns a prompt that was taken before; where there are images, its row is read again for them.

        Raises:
          ValueError: the row gives other tokens now, as it does if an image has another size.
        """
        if self._documents.vision is None:
            return Prompt(position, Example(token_ids, np.zeros(len(token_ids), bool)))
        found = _find(self._documents, self._settings, *self._documents.locate(position))
        if isinstance(found, LeftOut) or not np.array_equal(found.input_ids, token_ids):
            why = found.problem if isinstance(found, LeftOut) else "its tokens were others"
            raise ValueError(
                f"{self._documents.where(position)}: the prompt is not the one whose answers the checkpoint holds: "
                f"{why}; put its images and videos back as they were."
            )
        return Prompt(position, found)

    def look(self) -> str:
        """Reads the first rows without taking them, until enough of them give a prompt, and says what they are like.

        Raises:
          ValueError: none gives a prompt, as ``take`` would find after the model was loaded and compiled.
        """
        documents, settings = self._documents, self._settings
        lengths, used, rows, unused = [], 0, 0, Counter()
        for position in range(min(documents.epoch_length, _LOOKED_AT)):
            source, row = documents.locate(position)
            if row in documents.held_out[source]:
                continue
            rows += 1
            found = _find(documents, settings, source, row)
            if isinstance(found, Example):
                lengths.append(len(found))
                found = _too_large(found, settings, documents.config) or found
            if isinstance(found, LeftOut):
                self._tell(position, found)
                unused[found.reason] += 1
            else:
                used += 1
            if used and len(lengths) >= _ENOUGH:
                break
        longest = settings.max_prompt_tokens
        if not used:
            [(most, _)] = unused.most_common(1)
            problem = f"{dict(unused)}; mend the rows, such as {self._told[most]}"
            if most == "too_long":
                problem = (
                    f"the shortest has {min(lengths)} tokens; give conversations with shorter ones, or raise "
                    f"rollouts.max_prompt_tokens={longest}"
                )
            raise ValueError(f"none of the first {rows:,} rows of {documents.names} gives a prompt: {problem}.")
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

    def _next(self, count: int) -> list[Example | LeftOut]:
        """Reads what is at the next positions. Their images and videos are decoded at the same time."""
        found = [self._read(position) for position in range(self.position, self.position + count)]
        if self._documents.vision is not None:
            self._documents.vision.start(each for each in found if isinstance(each, Example))
        return [decoded(each) if isinstance(each, Example) else each for each in found]

    def _read(self, position: int) -> Example | LeftOut:
        source, row = self._documents.locate(position)
        if row in self._documents.held_out[source]:
            return LeftOut("held_out", "")
        return read_prompt(self._documents, self._settings, source, row)

    def _leave_out(self, position: int, why: LeftOut) -> None:
        """Counts a row, and logs the first of its kind."""
        self._tell(position, why)
        self.left_out[why.reason] += 1

    def _tell(self, position: int, why: LeftOut) -> None:
        """Logs that a row is left out, once for each reason."""
        if why.problem and why.reason not in self._told:
            where = self._documents.where(position)
            self._told[why.reason] = f"{where}: {why.problem}"
            logger.warning("rollouts: %s is left out, as are all rows like it: %s", where, why.problem)
