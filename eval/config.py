"""What an evaluation run is told: model, tasks, mode, protocol, and the sampling each protocol stands for."""

import dataclasses
from typing import Literal

from qwen35_jax.inference.sampling import SamplingParams

Mode = Literal["thinking", "non_thinking"]
Protocol = Literal["card", "official", "lm-eval"]


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Which model is evaluated."""

    path: str = ""
    """Hugging Face folder or hub id with weights, tokenizer and chat template."""
    adapter: str | None = None
    """PEFT adapter folder, applied on top of the model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute dtype."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation of one model on one or more tasks.

    Raises:
      ValueError: a field is out of its range.
    """

    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    tasks: tuple[str, ...] = ("ifeval",)
    """Tasks to run, in this order."""
    mode: Mode = "non_thinking"
    """Whether the chat template opens a think block; what follows </think> is scored."""
    protocol: Protocol = "official"
    """Whose prompt, sampling and scoring rules: the model card's, the benchmark's own, or lm-evaluation-harness's."""
    limit: int | None = None
    """Only the first so many documents of each task."""
    data_dir: str | None = None
    """Folder with TASK/SPLIT.jsonl or .parquet; without it the task's data comes from the hub at a pinned revision."""
    out: str = "runs/eval"
    """Evaluation directory; a rerun with the same settings continues it."""
    max_new_tokens: int | None = None
    """Longest response in tokens, thinking included; by default the protocol's."""
    max_batch: int = 8
    """Prompts generated together."""
    seed: int = 0
    """Seed of sampling; greedy protocols do not use it."""

    def __post_init__(self):
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one.")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks={list(self.tasks)} names a task twice; name each once.")
        for name in ("limit", "max_new_tokens", "max_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Generation:
    """How responses are drawn, and how long they may get (in tokens, thinking included)."""

    sampling: SamplingParams
    max_new_tokens: int


# The text settings that the model cards of 0.8B and 2B give, by mode, and the length they advise.
CARD_SAMPLING: dict[Mode, SamplingParams] = {
    "thinking": SamplingParams(temperature=1.0, top_k=20, top_p=0.95, presence_penalty=1.5),
    "non_thinking": SamplingParams(temperature=1.0, top_k=20, top_p=1.0, presence_penalty=2.0),
}
CARD_MAX_NEW_TOKENS = 32768
# IFEval and GSM8K prescribe neither sampling nor length: greedy, with room for their longest answers.
OFFICIAL_MAX_NEW_TOKENS: dict[Mode, int] = {"thinking": 32768, "non_thinking": 4096}


def generation(config: EvalConfig, lm_eval_max_new_tokens: int) -> Generation:
    """Returns the protocol's way of drawing responses.

    Args:
      config: its ``max_new_tokens`` replaces the protocol's length.
      lm_eval_max_new_tokens: the length that lm-evaluation-harness gives the task; in thinking mode the
        think block counts, as it does there.
    """
    if config.protocol == "card":
        sampling, length = CARD_SAMPLING[config.mode], CARD_MAX_NEW_TOKENS
    elif config.protocol == "official":
        sampling, length = SamplingParams(), OFFICIAL_MAX_NEW_TOKENS[config.mode]
    else:
        sampling, length = SamplingParams(), lm_eval_max_new_tokens
    return Generation(sampling, config.max_new_tokens or length)
