"""Samples answers with the weights of a state in training."""

from collections.abc import Callable, Sequence

import numpy as np

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import Completion, seed_of
from qwen35_jax.model import Qwen35
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import mesh_of, num_shards
from train.objectives.rollouts import RolloutConfig
from train.rollouts.prompts import Prompt
from train.rollouts.rollout import Rollout
from train.state import TrainState

# At least a page of any engine, so that a document never lacks its last one.
_SPARE_TOKENS = 256


class Sampler:
    """Answers prompts by an engine that is made once. New weights take the place of old ones without a copy.

    An answer is a function of the seed, the position of its prompt, its number, the weights and the sizes of the
    engine. All processes of a run make the same calls and have all answers.

    Args:
      model_of: returns the model with the parameters of a state.
      most: most answers of one call.
      seed: of the run.
    """

    def __init__(
        self,
        settings: RolloutConfig,
        tokenizer: Tokenizer,
        model_of: Callable[[TrainState], Qwen35],
        *,
        most: int,
        seed: int,
    ):
        self._settings, self._tokenizer, self._model_of = settings, tokenizer, model_of
        self._most, self._seed = most, seed
        self._engine: Engine | None = None

    def sample(
        self, state: TrainState, prompts: Sequence[Prompt], *, answers: int | None = None, purpose: str = "rollout"
    ) -> list[Rollout]:
        """Returns the answers to each prompt, one prompt after the other.

        Args:
          answers: how many of each, by default as many as the settings say.
          purpose: what the answers are for; those for another purpose have other seeds.
        """
        engine, settings = self._with_weights(self._model_of(state)), self._settings
        count = settings.answers if answers is None else answers
        wanted = [(prompt, number) for prompt in prompts for number in range(count)]
        completions = engine.generate(
            [prompt.token_ids.tolist() for prompt, _ in wanted],
            sampling=settings.sampling,
            max_new_tokens=settings.max_new_tokens,
            seed=[answer_seed(self._seed, prompt.position, number, purpose) for prompt, number in wanted],
        )
        return [
            Rollout(prompt.position, number, prompt.token_ids, *_tokens_of(completion))
            for (prompt, number), completion in zip(wanted, completions, strict=True)
        ]

    def _with_weights(self, model: Qwen35) -> Engine:
        if self._engine is not None:
            self._engine.model = model
        else:
            options = engine_options(self._settings, model, self._most)
            self._engine = Engine(model, self._tokenizer, **options)
        return self._engine


def engine_options(settings: RolloutConfig, model: Qwen35, most: int) -> dict[str, int]:
    """Returns the sizes of the engine that writes at most so many answers in one call, as arguments of ``Engine``.

    Args:
      model: of arrays or of shapes.
    """
    mesh = mesh_of(model.embed_tokens.weight.get_value())
    shards = 1 if mesh is None else num_shards("batch", mesh)
    # Each share of the mesh has whole slots.
    slots = -(-min(settings.slots, most) // shards) * shards
    # No more pages than the answers can need: the rest of the memory is the training's.
    cache_tokens = settings.cache_tokens or slots * (settings.longest + _SPARE_TOKENS)
    return {"slots": slots, "cache_tokens": cache_tokens, "speculative_tokens": settings.speculative_tokens}


def answer_seed(seed: int, position: int, number: int, purpose: str = "rollout") -> int:
    """Returns the seed of an answer, by the seed of the run, the position of its prompt, its number and its purpose."""
    return seed_of(seed, f"{purpose}/{position}/{number}")


def _tokens_of(completion: Completion) -> tuple[np.ndarray, np.ndarray]:
    assert completion.logprobs is not None, "they were asked for"
    log_probs = [each.model for each in completion.logprobs]
    return np.asarray(completion.token_ids, np.int32), np.asarray(log_probs, np.float32)
