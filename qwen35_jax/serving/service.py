"""What the routes for text share: from a request to what the engine is handed, and the numbers of an answer."""

import asyncio
import dataclasses
import os
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qwen35_jax.inference.requests import Completion, seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import CardSampling
from qwen35_jax.processing.processor import Processor
from qwen35_jax.serving.answers import Progress
from qwen35_jax.serving.errors import RequestError
from qwen35_jax.serving.grammar import JsonGrammar, Vocabulary
from qwen35_jax.serving.worker import EngineWorker, Submission

# A request without a seed gets one that JSON's readers hold exactly.
_SEED_BITS = 53


@dataclasses.dataclass(frozen=True)
class Service:
    """A model that is served.

    Attributes:
      name: what clients call it.
      defaults: how a chat is sampled if the request leaves it open: ``"thinking"`` and ``"non_thinking"``.
      max_length: most tokens of a request, prompt and answer together.
      processor: opens images and videos; None if the model reads text alone.
      opening: whoever opens them holds it, so that few are decoded at once.
    """

    name: str
    worker: EngineWorker
    vocabulary: Vocabulary
    defaults: Mapping[str, CardSampling]
    max_length: int
    processor: Processor | None = None
    opening: asyncio.Semaphore = dataclasses.field(default_factory=lambda: asyncio.Semaphore(os.cpu_count() or 1))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str) -> None:
        """Raises ``RequestError`` if a request is for another model."""
        if name != self.name:
            raise RequestError(f"no model {name!r} here; this server has {self.name!r}.", status=404, param="model")

    def new_tokens(self, prompt: Sequence[int], asked: int | None, *, field: str = "max_tokens") -> int:
        """Returns how many tokens may be written after a prompt, by default as many as there is room for.

        Args:
          field: by which name the client asked for so many.

        Raises:
          RequestError: there is no room for them.
        """
        length, limit = len(prompt), self.max_length
        if length >= limit:
            raise RequestError(
                f"the prompt has {length} tokens, but this server holds {limit} a request, prompt and answer together; "
                "shorten it."
            )
        if asked is not None and length + asked > limit:
            raise RequestError(
                f"the prompt has {length} tokens and {asked} may be written, but this server holds {limit} a request, "
                f"prompt and answer together; ask for at most {limit - length}.",
                param=field,
            )
        return limit - length if asked is None else asked

    def submissions(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        num_choices: int,
        max_new_tokens: int | None,
        limit_field: str = "max_tokens",
        seed: int | None,
        schema: dict[str, Any] | None = None,
    ) -> list[Submission]:
        """Returns what the engine is handed: all choices of the first prompt, then those of the next.

        Choice ``i`` of them all has ``seed_of(seed, i)``.

        Raises:
          RequestError: a prompt or what is to be written is too long, or there are too many.
          ValueError: the schema cannot be used.
        """
        self.worker.check_size(len(prompts) * num_choices)
        seed = secrets.randbits(_SEED_BITS) if seed is None else seed
        matcher = None if schema is None else self.vocabulary.compile(schema)
        found: list[Submission] = []
        for prompt in prompts:
            limit = self.new_tokens(prompt, max_new_tokens, field=limit_field)
            for _ in range(num_choices):
                grammar = None if matcher is None else JsonGrammar(self.vocabulary, matcher, prompt)
                found.append(Submission(prompt, sampling, limit, seed_of(seed, len(found)), grammar))
        return found

    def head(self, kind: str, prefix: str) -> dict[str, Any]:
        """Returns the fields that an answer, or each event of it, begins with."""
        name = f"{prefix}-{uuid.uuid4().hex}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self.name}


def finish_reason(completion: Completion) -> str:
    """Returns OpenAI's word for how a completion ended: what has not come to its own end was cut (``"length"``)."""
    return "stop" if completion.finish_reason in ("stop", "budget") else "length"


def usage(num_prompt_tokens: int, answers: Sequence[Progress]) -> dict[str, Any]:
    """Returns how many tokens were read and written."""
    written = sum(answer.num_tokens for answer in answers)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": written,
        "total_tokens": num_prompt_tokens + written,
        "completion_tokens_details": {"reasoning_tokens": sum(answer.num_thinking_tokens for answer in answers)},
    }
