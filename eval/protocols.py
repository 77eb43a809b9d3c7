"""What a protocol is: whose prompt, settings and rules a benchmark is run by. Every task has its own, as data."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from qwen35_jax.presets import Modality

Mode = Literal["thinking", "non_thinking"]

ProtocolName = Literal["card", "official", "lm-eval"]
"""The closest known to the model card's, the benchmark authors' own, or lm-evaluation-harness's."""

Style = Literal["chat", "text", "likelihood"]
"""How a document is asked: by the chat template, as plain text to be continued, or as choices whose log-likelihood is
compared. A base model is asked in one of the last two."""

# Source: the model card of Qwen3.5-2B, "Best Practices".
CARD_MAX_NEW_TOKENS: Mapping[Mode, int] = {"thinking": 32_768, "non_thinking": 32_768}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one benchmark is asked and read.

    Attributes:
      source: where its prompt and rules are written down, as an address or a citation.
      max_new_tokens: longest response in tokens by mode, thinking included.
      sampling: by the model card's settings, or greedily.
      shots: solved examples that stand before the question.
      stop: texts that end an answer. They are not looked for in the think block.
      cut_is_wrong: whether a response that was cut off counts as wrong. Otherwise the text after its think block is
        scored as it stands; an unfinished thought never is.
      max_text_tokens: longest response of style ``text``, which does not think.
      modality: what the questions show; the model card samples by it.
      media: settings of the images or videos in a prompt, such as ``min_pixels``; without them the model's own hold.
    """

    source: str
    max_new_tokens: Mapping[Mode, int] = dataclasses.field(default_factory=lambda: CARD_MAX_NEW_TOKENS)
    sampling: Literal["card", "greedy"] = "card"
    shots: int = 0
    stop: tuple[str, ...] = ()
    cut_is_wrong: bool = True
    max_text_tokens: int = 2048
    modality: Modality = "text"
    media: Mapping[str, float] = dataclasses.field(default_factory=dict)
