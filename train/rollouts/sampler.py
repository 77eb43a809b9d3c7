"""Samples answers with the weights of a state in training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import Completion, seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.liveness import exchange
from qwen35_jax.model import Qwen35
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import mesh_of, num_shards
from train.config.data import DataConfig
from train.objectives.rollouts import RolloutConfig
from train.rollouts.prompts import Prompt, most_patches
from train.rollouts.rollout import Rollout
from train.state import TrainState

# At least a page of any engine, so that a document never lacks its last one.
_SPARE_TOKENS = 256
_NEVER = -100.0


class Sampler:
    """Answers prompts by an engine that is made once. New weights take the place of old ones without a copy.

    An answer is a function of the seed, the position of its prompt, its number, the weights and the sizes of the
    engine. All processes of a run make the same calls and have all answers.

    Args:
      model_of: returns the model with the parameters of a state.
      seed: of the run.
    """

    def __init__(
        self,
        settings: RolloutConfig,
        data: DataConfig,
        tokenizer: Tokenizer,
        model_of: Callable[[TrainState], Qwen35],
        *,
        seed: int,
    ):
        self._settings, self._data, self._tokenizer = settings, data, tokenizer
        self._model_of, self._seed = model_of, seed
        self._engine: Engine | None = None

    def sample(
        self, state: TrainState, prompts: Sequence[Prompt], *, answers: int | None = None, purpose: str = "rollout"
    ) -> list[Rollout]:
        """Returns the answers to each prompt, one prompt after the other.

        Args:
          answers: how many of each, by default as many as the settings say.
          purpose: what the answers are for; those for another purpose have other seeds.

        Raises:
          ValueError: the processes of the run have other prompts, since one of them could not decode an image.
        """
        if self._data.vision is not None:
            _check_agreement(prompts)
        engine, settings = self._with_weights(self._model_of(state)), self._settings
        count = settings.answers if answers is None else answers
        wanted = [(prompt, number) for prompt in prompts for number in range(count)]
        completions = engine.generate(
            [read for prompt in prompts for read in [_inputs_of(prompt)] * count],
            sampling=_without_pads(settings.sampling, engine.model),
            max_new_tokens=settings.max_new_tokens,
            seed=[answer_seed(self._seed, prompt.position, number, purpose) for prompt, number in wanted],
        )
        return [
            Rollout(prompt, number, *_tokens_of(completion))
            for (prompt, number), completion in zip(wanted, completions, strict=True)
        ]

    def _with_weights(self, model: Qwen35) -> Engine:
        if self._engine is not None:
            self._engine.model = model
        else:
            self._engine = Engine(model, self._tokenizer, **engine_options(self._settings, self._data, model))
        return self._engine


def engine_options(settings: RolloutConfig, data: DataConfig, model: Qwen35) -> dict[str, int]:
    """Returns the sizes of the engine that writes the answers of a run, as arguments of ``Engine``.

    Args:
      model: of arrays or of shapes.
    """
    mesh = mesh_of(model.embed_tokens.weight.get_value())
    shards = 1 if mesh is None else num_shards("batch", mesh)
    # Each share of the mesh has whole slots.
    slots = -(-min(settings.slots, settings.num_answers(data)) // shards) * shards
    # No more pages than the answers can need: the rest of the memory is the training's.
    cache_tokens = settings.cache_tokens or slots * (settings.longest + _SPARE_TOKENS)
    return {
        "slots": slots,
        "cache_tokens": cache_tokens,
        "speculative_tokens": settings.speculative_tokens,
        "most_patches": most_patches(settings, data),
    }


def answer_seed(seed: int, position: int, number: int, purpose: str = "rollout") -> int:
    """Returns the seed of an answer, by the seed of the run, the position of its prompt, its number and its purpose."""
    return seed_of(seed, f"{purpose}/{position}/{number}")


def _check_agreement(prompts: Sequence[Prompt]) -> None:
    positions = [prompt.position for prompt in prompts]
    if any(found != positions for found in exchange(positions)):
        raise ValueError(
            "the processes have prompts with other images, since some of them could not decode all; let each read the "
            "same files, and start the run again."
        )


def _inputs_of(prompt: Prompt) -> list[int] | dict[str, Any]:
    """Returns a prompt as the engine takes it, and frees the patches of its images and videos."""
    pictures = prompt.document.pictures
    if not pictures:
        return prompt.token_ids.tolist()
    pixels, grids = np.concatenate([each.patches() for each in pictures]), [each.grid for each in pictures]
    for each in pictures:
        each.forget()
    return {"input_ids": prompt.token_ids[None], "pixels": pixels, "grids": np.array(grids, np.int32)}


def _without_pads(sampling: SamplingParams, model: Qwen35) -> SamplingParams:
    """Lets a model that sees write no token that stands for an image: in a batch it would take an image's place."""
    if model.vision is None:
        return sampling
    pads = model.config.image_token_id, model.config.video_token_id
    return replace(sampling, logit_bias=dict.fromkeys(pads, _NEVER))


def _tokens_of(completion: Completion) -> tuple[np.ndarray, np.ndarray]:
    assert completion.logprobs is not None, "they were asked for"
    log_probs = [each.model for each in completion.logprobs]
    return np.asarray(completion.token_ids, np.int32), np.asarray(log_probs, np.float32)
