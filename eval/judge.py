"""Asks a judge, a language model behind an OpenAI-compatible server, to read what no rule can read."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.backends.client import Client, Failure
from eval.backends.stream import Answer
from eval.config import JudgeConfig
from eval.protocols import Protocol
from eval.samples import Reply, Sample, make_sample
from eval.tasks.base import Document
from qwen35_jax.processing.thinking import split_text

logger = logging.getLogger(__name__)

_MOST_TOKENS = 512
_REPLY = (
    "thinking", "response", "finish_reason", "prompt_ids", "token_ids", "close_positions", "multiple_closes", "seed",
    "closed_by_budget", "num_tokens", "engine", "template",
)  # fmt: skip


def settings_of(config: JudgeConfig) -> dict[str, Any]:
    """Returns what results depend on of a judge; nothing where there is none."""
    return {} if config.url is None else {"judge": {"url": config.url, "model": config.model}}


def needs_judge(document: Document, sample: Mapping[str, Any]) -> bool:
    """Whether a judge may read a sample, and has not been asked yet."""
    return document.judging is not None and sample["outcome"] == "unparsed" and not sample.get("judge")


def ask_judge(
    config: JudgeConfig, pairs: Sequence[tuple[Document, Sample]], protocol: Protocol,
    on_judged: Callable[[int, dict[str, Any]], None],
) -> None:  # fmt: skip
    """Lets the judge read samples; ``on_judged`` is called with the place of each and the sample anew, in any order.

    Those that it did not answer stay as they are.

    Raises:
      ValueError: the judge answers nothing at all.
    """
    assert config.url is not None and config.model is not None
    if not pairs:
        return
    client = Client(config.url, os.environ.get(config.key_variable), config.connections, option="--judge.url")
    requests = [("/chat/completions", _question(config.model, *pair)) for pair in pairs]
    failures: list[Failure] = []

    def take(place: int, answer: Answer | Failure) -> None:
        if not isinstance(answer, Answer):
            failures.append(answer)
            return
        document, sample = pairs[place]
        assert document.judging is not None
        text = split_text(answer.text).answer.strip()
        stored: dict[str, Any] = {name: sample[name] for name in _REPLY if name in sample}
        reply = Reply(
            **stored,
            judge=config.model,
            extraction=text if document.judging.score(text).parsed else None,
        )
        on_judged(place, make_sample(document, reply, protocol, int(sample["repeat"])))

    client.ask_all(requests, take)
    if len(failures) == len(pairs):
        raise ValueError(f"the judge {config.model} at {config.url} answers nothing: {failures[0]}.")
    if failures:
        logger.warning(
            "the judge failed on %d of %d responses, which stay unparsed; run again to ask about them. The first: %s",
            len(failures), len(pairs), failures[0],
        )  # fmt: skip


def _question(model: str, document: Document, sample: Sample) -> dict[str, Any]:
    assert document.judging is not None
    return {
        "model": model,
        "messages": [{"role": "user", "content": document.judging.ask(sample["response"])}],
        "temperature": 0.0,
        "max_tokens": _MOST_TOKENS,
    }
