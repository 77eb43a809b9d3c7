"""Asks a server a few short questions whose answers show whether it follows presence penalty, top-k, seed and thinking.

The signs are in what it writes, not in its log-probabilities: many servers tell those of the model itself, before any
setting. Servers whose arithmetic depends on what else they do may write the same greedy text differently after a while;
such a difference counts neither for nor against a setting.

- ``presence_penalty``: of long greedy texts none changes under a penalty of 2 if it is ignored. Prose repeats words
  where others would fit nearly as well, so that it changes if the penalty is followed. Where greedy texts differ by
  themselves, sampled texts under the penalty must hold more different words.
- ``top_k``: at temperature 2 the single most likely token gives the greedy text; all tokens give another.
- ``seed``: at temperature 1 equal seeds give equal texts, and different seeds different ones.
- ``thinking``: the chat template's switch changes the prompt, and with it where the answer is.
"""

import dataclasses
import statistics
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, get_args

from eval.backends.stream import Answer, RefusedError
from qwen35_jax.processing.thinking import CLOSE, OPEN

Setting = Literal["presence_penalty", "top_k", "seed", "thinking"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)

Ask = Callable[[str, Mapping[str, Any]], Answer]
"""Sends one question with these fields besides the model's name. It raises ``RefusedError``."""

_PROSE = (
    "Tell a long story about a fox, a hen and the sea.",
    "Describe an old harbour town, street by street.",
    "Explain to a child, at length, why it rains.",
)
_SUM = "What is 17 + 25? Answer with the number alone."
_PENALTY = 2.0
_LONG, _MEDIUM, _SHORT = 128, 48, 24
_BRIEF_THOUGHT, _WHOLE_THOUGHT = 64, 2048
_NUM_SAMPLED = 12
# Standard errors by which sampled texts must differ: one of 500 pairs that do not differ reaches it.
_CLEARLY = 2.9
# Of the size that evaluations have, since some servers take smaller ones only.
_SEEDS = (2**52 + 1234567, 2**51 + 7654321)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a probe has shown.

    Attributes:
      dropped: for each setting that is not followed, why one must think so.
      rejected: those of them that the server refuses to read.
    """

    dropped: Mapping[Setting, str]
    rejected: frozenset[Setting]


def probe(ask: Ask, needed: Collection[Setting]) -> Findings:
    """Tries the settings that are needed.

    Raises:
      RefusedError: the server refuses requests without any of these settings too.
    """
    ask("Hello.", {"temperature": 0, "max_tokens": 1})
    dropped: dict[Setting, str] = {}
    rejected: set[Setting] = set()
    # A server may have a penalty of its own, which would show in every other test.
    neutral: dict[str, Any] = {"presence_penalty": 0.0, "top_p": 1.0}
    for setting in SETTINGS:
        if setting not in needed:
            continue
        try:
            fault = _FAULTS[setting](lambda text, fields: ask(text, {**neutral, **fields}))
        except RefusedError as err:
            fault = f"it is refused ({err})"
            rejected.add(setting)
            if setting == "presence_penalty":
                del neutral["presence_penalty"]
        if fault is not None:
            dropped[setting] = fault
    return Findings(dropped, frozenset(rejected))


def accepts(ask: Ask, fields: Mapping[str, Any]) -> bool:
    """Returns whether the server reads these fields."""
    try:
        ask("Hello.", {"temperature": 0, "max_tokens": 1, **fields})
    except RefusedError:
        return False
    return True


def _text(answer: Answer) -> str:
    return answer.reasoning + answer.text


def _presence_penalty_fault(ask: Ask) -> str | None:
    greedy, penalised = {"temperature": 0, "max_tokens": _LONG}, {"presence_penalty": _PENALTY}
    changed = False
    for question in _PROSE:
        plain = _text(ask(question, greedy))
        if plain == _text(ask(question, greedy | penalised)):
            continue
        changed = True
        if plain == _text(ask(question, greedy)):
            return None
    if not changed:
        return f"greedy texts are the same with {_PENALTY:g} and without"
    plain, varied = _variety(ask, {}), _variety(ask, penalised)
    error = ((statistics.variance(plain) + statistics.variance(varied)) / _NUM_SAMPLED) ** 0.5
    if statistics.mean(varied) - statistics.mean(plain) > _CLEARLY * error:
        return None
    return f"texts with {_PENALTY:g} repeat as many words as texts without"


def _variety(ask: Ask, fields: Mapping[str, Any]) -> list[float]:
    """Returns of sampled texts the share of their words that are different."""
    shares = []
    for number in range(_NUM_SAMPLED):
        question = _PROSE[number % len(_PROSE)]
        words = _text(ask(question, {"temperature": 1.0, "max_tokens": _LONG, **fields})).split()
        shares.append(len(set(words)) / max(len(words), 1))
    return shares


def _top_k_fault(ask: Ask) -> str | None:
    for question in _PROSE:
        greedy = _text(ask(question, {"temperature": 0, "max_tokens": _SHORT}))
        if greedy == _text(ask(question, {"temperature": 2.0, "top_k": 1, "max_tokens": _SHORT})):
            return None
    return "at temperature 2, top_k=1 does not give the greedy text"


def _seed_fault(ask: Ask) -> str | None:
    repeats = differs = False
    for question in _PROSE:
        first, again, other = (
            _text(ask(question, {"temperature": 1.0, "max_tokens": _MEDIUM, "seed": seed}))
            for seed in (_SEEDS[0], _SEEDS[0], _SEEDS[1])
        )
        repeats, differs = repeats or first == again, differs or first != other
        if repeats and differs:
            return None
    if not repeats:
        return "equal seeds give different texts"
    return "different seeds give equal texts"


def _thinking_fault(ask: Ask) -> str | None:
    def both(max_tokens: int) -> tuple[Answer, Answer]:
        on, off = (
            ask(_SUM, {"temperature": 0, "max_tokens": max_tokens, "chat_template_kwargs": {"enable_thinking": switch}})
            for switch in (True, False)
        )
        return on, off

    on, off = both(_BRIEF_THOUGHT)
    reads_switch = None not in (on.prompt_tokens, off.prompt_tokens) and on.prompt_tokens != off.prompt_tokens
    if not reads_switch and not (on.reasoning + off.reasoning).strip():
        # Without either sign a thought shows only when it ends.
        on, off = both(_WHOLE_THOUGHT)
    if off.reasoning.strip() or (not reads_switch and _shows_thinking(off)):
        return "with the switch off there is thinking"
    if not reads_switch and not _shows_thinking(on):
        return "with the switch on there is no thinking"
    return None


def _shows_thinking(answer: Answer) -> bool:
    return bool(answer.reasoning.strip()) or CLOSE in answer.text or answer.text.lstrip().startswith(OPEN)


_FAULTS: Mapping[Setting, Callable[[Ask], str | None]] = {
    "presence_penalty": _presence_penalty_fault,
    "top_k": _top_k_fault,
    "seed": _seed_fault,
    "thinking": _thinking_fault,
}
