"""What the model cards publish for each size, mode and task, and how a result stands to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.cells import is_sampling, share
from eval.config import EvalConfig
from eval.protocols import CARD_MAX_NEW_TOKENS, Mode
from qwen35_jax.config import ModelConfig
from qwen35_jax.presets import CARD_EVAL_SAMPLING, PRESETS, card_sampling

# In percent. Source: the model card of Qwen3.5-2B, its language tables. Of the other sizes: what reproductions quote
# from their cards, all in thinking mode (trymirai/lalamo#317; allenai/olmo-eval#399; TIGER-AI-Lab/MMLU-Pro#79).
PUBLISHED: Mapping[tuple[str, Mode], Mapping[str, float]] = {
    ("0.8b", "thinking"): {"mmlu_pro": 42.3},
    ("2b", "thinking"): {
        "mmlu_pro": 66.5, "mmlu_redux": 79.6, "ceval": 73.2, "supergpqa": 37.5, "ifeval": 78.6, "gpqa_diamond": 51.6,
    },
    ("2b", "non_thinking"): {
        "mmlu_pro": 55.3, "mmlu_redux": 69.2, "ceval": 65.2, "supergpqa": 30.4, "ifeval": 61.2,
    },
    ("4b", "thinking"): {"mmlu_pro": 79.1, "ifeval": 89.8, "gpqa_diamond": 76.2},
    ("9b", "thinking"): {"ifeval": 91.5, "gpqa_diamond": 81.7},
}  # fmt: skip

# What the card leaves open besides the prompt.
_OPEN = {
    "mmlu_redux": "which labels it scores",
    "ceval": "which split it scores, and whether every subject counts the same",
    "ifeval": "which of the four accuracies it tells",
    "gpqa_diamond": "which part of GPQA it scores",
}

_MANY, _NEAR = 5000, 0.02


def size_of(model: ModelConfig) -> str | None:
    """Returns the published size that a model has, by its width and its layers; None for any other."""
    for name, preset in PRESETS.items():
        alike = all(
            getattr(model.text, key) == getattr(preset.text, key) for key in ("hidden_size", "num_hidden_layers")
        )
        if name != "tiny" and alike and model.is_moe == preset.is_moe:
            return name
    return None


def against_card(
    summary: Mapping[str, Any], task: str, config: EvalConfig, model: ModelConfig | None, *,
    labels: Sequence[str] = (),
) -> dict[str, Any] | None:  # fmt: skip
    """Returns how the headline of a task stands to the figure of the model's card; None where it has none.

    A figure is met if it lies inside the 95 % interval, or within 2 points where there are more than 5,000 documents.
    The interval is that of drawing questions; what an unknown prompt adds is not in it, and the note says so. A result
    that was made in another way than the card's is not judged.

    Args:
      summary: the task's figures, with ``sampling`` and ``max_new_tokens``.
      model: whose card is meant; None for a server's model, of which nothing is known.
      labels: what the backend marks its results with, such as a setting that it ignores.

    Returns:
      ``size``, the model's; ``published`` and ``difference`` (ours less the card's), as shares of 1; ``inside``,
      whether the figure lies in the interval; ``met``, by the rule above (both None where it is not comparable);
      ``not_comparable``, the reasons; and ``note``, the verdict in words with what the card leaves open.
    """
    size = None if model is None else size_of(model)
    if size is None or task not in PUBLISHED.get((size, config.mode), {}):
        return None
    published = PUBLISHED[size, config.mode][task] / 100
    metric = summary["metrics"][summary["headline"]]
    difference = metric["value"] - published
    inside = metric["low"] <= published <= metric["high"]
    met = inside or (metric["n"] > _MANY and abs(difference) <= _NEAR)
    reasons = _reasons(summary, config, size, labels)
    if reasons:
        inside = met = None
    verdict = f"not comparable ({'; '.join(reasons)})" if reasons else _verdict(summary, inside, met)
    return {
        "size": size.upper(),
        "published": published,
        "difference": difference,
        "inside": inside,
        "met": met,
        "not_comparable": reasons,
        "note": f"{verdict}. {_caveat(task, config, size, summary)}",
    }


def _verdict(summary: Mapping[str, Any], inside: bool | None, met: bool | None) -> str:
    if met:
        return "inside the interval" if inside else f"outside the interval, but within 2 points on {summary['n']:,}"
    cut, finished = summary["cut"], summary["finished"].get(summary["headline"])
    ended = "" if finished is None else f", and those that ended by themselves score {share(finished['value'])}"
    return f"missed, with {share(cut['value'])} of the responses cut off{ended if cut['count'] else ''}"


def _reasons(summary: Mapping[str, Any], config: EvalConfig, size: str, labels: Sequence[str]) -> list[str]:
    """Returns why a result says nothing about the card's figure."""
    reasons = []
    if config.style != "chat":
        reasons.append(f"style {config.style}; the card's models chat")
    if config.model.adapter:
        reasons.append("an adapter is applied")
    if config.limit is not None:
        reasons.append(f"only the first {config.limit:,} documents")
    if config.thinking_budget is not None:
        reasons.append(f"thinking budget of {config.thinking_budget:,} tokens")
    if config.detect_loops:
        reasons.append("responses that repeat themselves are ended early")
    if not any(is_sampling(summary["sampling"], own) for own in (CARD_EVAL_SAMPLING, _recommended(config, size))):
        reasons.append("another sampling than the card's")
    allowed = CARD_MAX_NEW_TOKENS[config.mode]
    if summary["max_new_tokens"] < allowed and summary["cut"]["count"]:
        reasons.append(
            f"{share(summary['cut']['value'])} of the responses were cut off at {summary['max_new_tokens']:,} tokens, "
            f"where the card allows {allowed:,}"
        )
    return [*reasons, *labels]


def _recommended(config: EvalConfig, size: str) -> Any:
    return card_sampling(PRESETS[size], config.mode)


def _caveat(task: str, config: EvalConfig, size: str, summary: Mapping[str, Any]) -> str:
    unsaid = ["its prompt"] + ([_OPEN[task]] if task in _OPEN else [])
    caveat = f"The card does not say {' or '.join(unsaid)}; this is protocol {config.protocol}"
    if not is_sampling(summary["sampling"], CARD_EVAL_SAMPLING) and is_sampling(
        summary["sampling"], _recommended(config, size)
    ):
        caveat += ", sampled as the card recommends and not as its table says"
    return caveat + ". A size is known by its shape: only the published weights can meet its card."
