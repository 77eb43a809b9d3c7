"""The settings of an evaluation run: model, tasks, how they are asked, and what each protocol stands for."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from eval.protocols import Mode, Protocol, ProtocolName, Style
from qwen35_jax import gcs
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import ProcessConfig
from qwen35_jax.hf.source import ModelSource
from qwen35_jax.inference.sampling import BudgetClose, SamplingParams
from qwen35_jax.presets import PRESETS, card_eval_sampling, card_sampling
from qwen35_jax.sharding import MeshConfig

Sampling = Literal["card_eval", "card_recommended", "greedy"]

MOST_PATCHES = 131_072
"""Patches that the images and videos of a question may have by default: some questions show several large images."""


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """An OpenAI-compatible server that writes the responses, in place of a model that is loaded here."""

    url: str | None = None
    """Its address up to the version, such as http://localhost:8000/v1; ``model`` and ``mesh`` are not used then."""
    model: str | None = None
    """The name of the model there; by default the only one that it serves."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, if the server wants one."""
    connections: int = 64
    """Most requests at once."""
    accept_dropped: tuple[str, ...] = ()
    """Settings that the server may ignore (presence_penalty, top_k, seed, thinking); the results are labelled so."""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """A language model behind an OpenAI-compatible server that reads the responses which no rule can read.

    Raises:
      ValueError: an address is given and no model.
    """

    url: str | None = None
    """Its address up to the version; without it no judge is asked. What it reads is told beside every score."""
    model: str | None = None
    """The name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, if the server wants one."""
    connections: int = 16
    """Most requests at once."""

    def __post_init__(self):
        if self.url is not None and self.model is None:
            raise ValueError(f"judge.url={self.url}: give --judge.model too, the name of the model that judges.")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How one model is evaluated on one or more tasks.

    Raises:
      ValueError: a field is out of its range, or two fields do not go together.
    """

    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Of each process; several processes share out the documents."""
    server: ServerConfig = dataclasses.field(default_factory=ServerConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    processes: ProcessConfig = dataclasses.field(default_factory=ProcessConfig)
    tasks: tuple[str, ...] = ("ifeval",)
    """Tasks to run, by name or as Python files of your own that define TASK; all of them are written together."""
    mode: Mode = "non_thinking"
    """Whether the chat template opens a think block; what follows </think> is scored."""
    protocol: ProtocolName = "official"
    """Whose prompt, sampling and scoring rules: the model card's, the benchmark's own, or lm-evaluation-harness's."""
    style: Style = "chat"
    """Base models have no chat template: text continues solved examples, likelihood compares the choices."""
    sampling: Sampling | None = None
    """By default the protocol's. The model card has two sets for texts, and two for images and videos: card_eval made
    its tables, card_recommended is advised to users."""
    limit: int | None = None
    """Only the first so many documents of each task, and all orders of the options of a question that has several."""
    split: str | None = None
    """The split that is scored, such as test where a task scores val by default."""
    data_dir: str | None = None
    """Folder, also of a bucket (``gs://``), with TASK/SPLIT.jsonl or .parquet; without it the task's data comes from
    the hub at a pinned revision."""
    out: str = "runs/eval"
    """Evaluation directory; a rerun with the same settings continues it."""
    max_new_tokens: int | None = None
    """Longest response in tokens, thinking included; by default the protocol's."""
    thinking_budget: int | None = None
    """Most tokens of thinking before it is closed. Results with a budget are labelled: no card reports them."""
    budget_close: BudgetClose = "sentence"
    """How a budget closes the thinking: by </think> alone (hard), or by the model's own sentence and </think>."""
    detect_loops: bool = False
    """End a response that has come to repeat itself: it saves time, and no card does it."""
    repeats: int = 1
    """Samples of each document. A document's values are averaged first, so that every document counts the same."""
    slots: int = 64
    """Most responses written at once."""
    cache_tokens: int | None = None
    """Tokens that the engine's memory holds; by default what the device has room for."""
    most_patches: int | None = None
    """Patches of 16 x 16 pixels that the images and videos of a question may have; by default 131,072 where tasks show
    any, twice those of the largest image. Their memory is set aside."""
    speculative_tokens: int = 0
    """Drafts of the MTP head a step."""
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
        if self.style != "chat" and self.mode == "thinking":
            raise ValueError(f"style {self.style} opens no think block; give --mode non_thinking.")
        if self.style == "likelihood" and (self.sampling is not None or self.repeats > 1 or self.mtp_acceptance):
            raise ValueError(
                "style likelihood writes no responses; leave out --sampling, --repeats and --mtp-acceptance."
            )
        if self.thinking_budget is not None and self.mode != "thinking":
            raise ValueError(f"thinking_budget={self.thinking_budget} needs --mode thinking.")
        if self.server.url is not None and (self.style == "likelihood" or self.mtp_acceptance):
            raise ValueError(
                f"server.url={self.server.url}: no server compares log-likelihoods or tells drafts; leave out "
                "--style likelihood and --mtp-acceptance."
            )


def sampling_of(config: EvalConfig, protocol: Protocol, model: Callable[[], ModelConfig | None]) -> SamplingParams:
    """Returns how responses of a protocol are drawn.

    Args:
      model: gives the model whose card is meant; None for a server's, for which the 2B's counts.
    """
    name = config.sampling or ("card_eval" if protocol.sampling == "card" and config.style == "chat" else "greedy")
    if name == "greedy":
        settings = {}
    elif name == "card_eval":
        settings = card_eval_sampling(config.mode, protocol.modality)._asdict()
    else:
        settings = card_sampling(model() or PRESETS["2b"], config.mode, protocol.modality)._asdict()
    return SamplingParams(
        **settings,
        stop=protocol.stop,
        thinking_budget=config.thinking_budget,
        budget_close=config.budget_close,
        detect_loops=config.detect_loops,
    )


def max_new_tokens_of(config: EvalConfig, protocol: Protocol) -> int:
    """Returns the longest response of a protocol in tokens."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return protocol.max_new_tokens[config.mode] if config.style == "chat" else protocol.max_text_tokens
