"""How VLMEvalKit, whose rule Qwen's vision evaluation has too, and Video-MME read which option a response chooses."""

import re
from collections.abc import Mapping

NONE_OF_THEM = "Z"
"""The letter that VLMEvalKit gives to a response that chooses no option."""

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NO_ANSWER = "Failed to obtain answer via API"
_SPACED = {ord(sign): " " for sign in ".()[],:;!*#{}"}
_NEAR_THE_END = 5

# The authors' list lacks a comma twice, so that two of the phrases only count one after the other.
_VIDEOMME_PHRASES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option isThe correct option is", "Best answer:Best option:",
)  # fmt: skip


def inferred_option(response: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter that VLMEvalKit's rule finds, ``Z`` for none of them, or None where it finds nothing.

    A letter counts where it is the only one of the options' that stands alone, and one of the last few words; else an
    option whose text is the only one in the response, if that is at most twice as long as all options.

    Args:
      options: their texts by letter.

    Source: can_infer in vlmeval/utils/matching_util.py of github.com/open-compass/VLMEvalKit.
    """
    return _letter_alone(response, options) or _text_alone(response, options)


def _letter_alone(response: str, options: Mapping[str, str]) -> str | None:
    if _NO_ANSWER in response:
        return None
    if any(refusal in response for refusal in _REFUSALS):
        return NONE_OF_THEM
    words = response.translate(_SPACED).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - _NEAR_THE_END:
        return found[0]
    return NONE_OF_THEM if not found and NONE_OF_THEM in words else None


def _text_alone(response: str, options: Mapping[str, str]) -> str | None:
    if len(response) > 2 * sum(map(len, options.values())):
        return None
    text = response.lower()
    found = [letter for letter, option in options.items() if option.lower() in text]
    return found[0] if len(found) == 1 else None


def videomme_letter(response: str) -> str | None:
    """Returns the letter from A to D that Video-MME's authors read, or None.

    Source: extract_characters_regex in evaluation/eval_your_results.py of github.com/BradyFU/Video-MME.
    """
    text = response.strip()
    for phrase in _VIDEOMME_PHRASES:
        text = text.replace(phrase, "")
    found = re.search("[ABCD]", text)
    return found and found[0]
