"""Measures an engine on a workload: tokens a second, the time to the first token, and how many drafts are accepted."""

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.metrics import Drafted
from qwen35_jax.inference.requests import seed_of
from qwen35_jax.inference.sampling import SamplingParams

_WARM_UP_TOKENS = 4


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
      prompt_tokens, generated_tokens: of all requests.
      prompt_seconds: how long the prompts take alone, each with one new token.
      seconds: how long the whole workload takes, prompts included.
      first_token_seconds: of each request, from the moment at which all requests arrive to its first token.
      drafts: how many were proposed and accepted, by ``"position"``, ``"section"`` and ``"length"`` of the context.
    """

    prompt_tokens: int
    generated_tokens: int
    prompt_seconds: float
    seconds: float
    first_token_seconds: list[float]
    drafts: dict[str, dict[str, Drafted]]

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens a second, of the prompts alone."""
        return self.prompt_tokens / self.prompt_seconds

    @property
    def rate(self) -> float:
        """Generated tokens a second of the whole workload."""
        return self.generated_tokens / self.seconds

    @property
    def decode_rate(self) -> float:
        """Generated tokens a second without the time that the prompts take alone; their first tokens are left out."""
        rest = max(self.seconds - self.prompt_seconds, 1e-9)
        return (self.generated_tokens - len(self.first_token_seconds)) / rest

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON holds it, rates and percentiles included."""
        p50, p95 = np.percentile(self.first_token_seconds, [50, 95])
        return dataclasses.asdict(self) | {
            "prompt_tokens_per_second": self.prompt_rate,
            "generated_tokens_per_second": self.rate,
            "decode_tokens_per_second": self.decode_rate,
            "first_token_p50_seconds": float(p50),
            "first_token_p95_seconds": float(p95),
        }


def measure(
    engine: Engine, prompts: Sequence[Sequence[int]], *, sampling: SamplingParams, max_new_tokens: int, seed: int = 0
) -> Measured:
    """Measures the engine on requests that all arrive at once.

    A run of few new tokens comes first, in which everything is compiled. Then the prompts are measured alone, each with
    one new token, and then the whole workload. Tokens count as they reach the host, after each call of the device.

    Raises:
      ValueError: as ``Engine.check`` does.
    """
    engine.check(prompts, max_new_tokens=max_new_tokens, sampling=sampling)
    engine.generate(prompts, sampling=sampling, max_new_tokens=min(_WARM_UP_TOKENS, max_new_tokens), seed=seed)

    def run(new_tokens: int) -> tuple[float, list[float], int]:
        started = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.submit(prompt, sampling=sampling, max_new_tokens=new_tokens, seed=seed_of(seed, number), stream=True)
        first: dict[int, float] = {}
        written = 0
        while engine.has_work:
            events = engine.step()
            now = time.perf_counter() - started
            for event in events:
                if event.tokens or event.completion:
                    first.setdefault(event.id, now)
                if event.completion:
                    written += len(event.completion.token_ids)
        return time.perf_counter() - started, list(first.values()), written

    prompt_seconds, _, _ = run(1)
    before = copy.deepcopy(engine.metrics)
    seconds, first, written = run(max_new_tokens)
    after = engine.metrics
    return Measured(
        prompt_tokens=sum(map(len, prompts)),
        generated_tokens=written,
        prompt_seconds=prompt_seconds,
        seconds=seconds,
        first_token_seconds=first,
        drafts={
            "position": _since(before.by_position, after.by_position),
            "section": _since(before.by_section, after.by_section),
            "length": _since(before.by_length, after.by_length),
        },
    )


def _since(before: Mapping[Any, Drafted], after: Mapping[Any, Drafted]) -> dict[str, Drafted]:
    """Returns the drafts of ``after`` that are not in ``before``, where there are any."""
    new = {}
    for key, total in after.items():
        old = before.get(key, Drafted())
        if total.proposed > old.proposed:
            new[str(key)] = Drafted(total.proposed - old.proposed, total.accepted - old.accepted)
    return new
