"""The settings of an evaluation run: model, tasks, mode, protocol, and the sampling that each protocol stands for."""

import dataclasses
from typing import Literal

from qwen35_jax import gcs
from qwen35_jax.hf.source import ModelSource
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import CARD_SAMPLING
from qwen35_jax.sharding import MeshConfig

Mode = Literal["thinking", "non_thinking"]
Protocol = Literal["card", "official", "lm-eval"]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How one model is evaluated on one or more tasks.

    Raises:
      ValueError: a field is out of its range, or two fields do not go together.
    """

    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    tasks: tuple[str, ...] = ("ifeval",)
    """Tasks to run, in this order."""
    mode: Mode = "non_thinking"
    """Whether the chat template opens a think block; what follows </think> is scored."""
    protocol: Protocol = "official"
    """Whose prompt, sampling and scoring rules: the model card's, the benchmark's own, or lm-evaluation-harness's."""
    limit: int | None = None
    """Only the first so many documents of each task."""
    data_dir: str | None = None
    """Folder, also of a bucket (``gs://``), with TASK/SPLIT.jsonl or .parquet; without it the task's data comes from
    the hub at a pinned revision."""
    out: str = "runs/eval"
    """Evaluation directory; a rerun with the same settings continues it."""
    max_new_tokens: int | None = None
    """Longest response in tokens, thinking included; by default the protocol's."""
    repeats: int = 1
    """Samples of each document. A document's values are averaged first, so that every document counts the same."""
    slots: int = 8
    """Most responses written at once."""
    seed: int = 0
    """Seed of sampling; greedy protocols do not use it."""
    mtp_acceptance: bool = False
    """Also measure which share of the MTP head's drafts greedy decoding would accept, on all samples."""

    def __post_init__(self):
        gcs.check_is_path(self.out)
        if not self.tasks:
            raise ValueError(f"tasks={self.tasks} names no task; name at least one.")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks={list(self.tasks)} names a task twice; name each once.")
        for name in ("limit", "max_new_tokens", "slots", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.mesh.context > 1:
            raise ValueError(
                f"mesh.context={self.mesh.context}: generation cannot split one token at a time over positions; use "
                "mesh.context=1 and another axis."
            )
        if self.repeats > 1 and self.sampling.greedy:
            raise ValueError(
                f"repeats={self.repeats}: protocol {self.protocol} decodes greedily, and its samples would all be "
                "equal; use repeats=1, or one that samples: --protocol card."
            )
        if self.mtp_acceptance and self.sampling != SamplingParams():
            raise ValueError(
                f"--mtp-acceptance counts the drafts of greedy decoding, but protocol {self.protocol} samples; use a "
                "greedy one: --protocol official or lm-eval."
            )

    @property
    def sampling(self) -> SamplingParams:
        """How the protocol chooses tokens."""
        return SamplingParams(**CARD_SAMPLING[self.mode]._asdict()) if self.protocol == "card" else SamplingParams()


@dataclasses.dataclass(frozen=True)
class Generation:
    """How responses are drawn, and how long they may get (in tokens, thinking included)."""

    sampling: SamplingParams
    max_new_tokens: int


# The length that the model cards advise.
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
    lengths = {
        "card": CARD_MAX_NEW_TOKENS,
        "official": OFFICIAL_MAX_NEW_TOKENS[config.mode],
        "lm-eval": lm_eval_max_new_tokens,
    }
    return Generation(config.sampling, config.max_new_tokens or lengths[config.protocol])
