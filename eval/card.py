"""What the model cards publish for each size, mode and task, and how a result stands to it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eval.cells import is_sampling, share
from eval.config import EvalConfig
from eval.protocols import CARD_MAX_NEW_TOKENS, Mode, ProtocolName
from qwen35_jax.config import ModelConfig
from qwen35_jax.presets import PRESETS, CardSampling, card_eval_sampling, card_sampling

Size = Literal["0.8b", "2b", "4b", "9b"]
"""Sizes of which a published figure is known."""

# In percent. Source: the model card of Qwen3.5-2B, its tables of language and of vision. Of the other sizes: what
# reproductions quote from their cards, all in thinking mode (trymirai/lalamo#317; allenai/olmo-eval#399;
# TIGER-AI-Lab/MMLU-Pro#79).
PUBLISHED: Mapping[tuple[str, Mode], Mapping[str, float]] = {
    ("0.8b", "thinking"): {"mmlu_pro": 42.3},
    ("2b", "thinking"): {
        "mmlu_pro": 66.5, "mmlu_redux": 79.6, "ceval": 73.2, "supergpqa": 37.5, "ifeval": 78.6, "gpqa_diamond": 51.6,
        "mmmu": 64.2, "mathvista": 76.7, "realworldqa": 74.5, "mmbench": 83.3, "ocrbench": 84.5, "refcoco": 84.8,
        "videomme": 75.6, "videomme_no_subtitles": 69.0,
    },
    ("2b", "non_thinking"): {
        "mmlu_pro": 55.3, "mmlu_redux": 69.2, "ceval": 65.2, "supergpqa": 30.4, "ifeval": 61.2,
        "mmmu": 64.2, "mathvista": 73.9, "realworldqa": 71.2, "mmbench": 81.3, "ocrbench": 85.4, "refcoco": 84.3,
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
    "mmmu": "which judge read the answers",
    "mathvista": "which judge read the answers",
    "realworldqa": "which judge read the answers",
    "mmbench": "which judge read the answers, and whether every order of the options must be right",
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
    """Returns how the headline of a run's task stands to the figure of the model's card; None where it has none.

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
      ``not_comparable``, the reasons; ``verdict``, all this in words; and ``note``, the verdict with what the card
      leaves open.
    """
    size = None if model is None else size_of(model)
    if size is None or task not in PUBLISHED.get((size, config.mode), {}):
        return None
    modality = summary.get("modality", "text")
    own, recommended = card_eval_sampling(config.mode, modality), card_sampling(PRESETS[size], config.mode, modality)
    caveat = ""
    if not is_sampling(summary["sampling"], own) and is_sampling(summary["sampling"], recommended):
        caveat = ", sampled as the card recommends and not as its table says"
    caveat += ". A size is known by its shape: only the published weights can meet its card."
    reasons = _reasons(summary, config, (own, recommended), labels)
    return _judged(summary, task, size, config.mode, reasons, _unsaid(task, config.protocol) + caveat)


def stored_against_card(
    summary: Mapping[str, Any], task: str, size: Size, mode: Mode, protocol: ProtocolName, *, missing: int = 0
) -> dict[str, Any]:
    """Returns the same of stored responses, of which nobody knows how they were sampled and how long they might be.

    Args:
      size: the model's, as the user says.
      missing: how many documents have no response.

    Raises:
      ValueError: no figure is published for this task, size and mode.
    """
    if task not in PUBLISHED.get((size, mode), {}):
        known = [f"{name} in mode {each}" for (name, each), figures in PUBLISHED.items() if task in figures]
        raise ValueError(
            f"--size {size}: no figure of {task} in mode {mode} is published; "
            + (f"there are those of {', '.join(known)}." if known else "leave it out.")
        )
    reasons = [f"{missing:,} documents have no response"] if missing else []
    caveat = ". How the responses were sampled, and how long they might be, is not recorded."
    return _judged(summary, task, size, mode, reasons, _unsaid(task, protocol) + caveat)


def headline_of(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the estimate that is compared with published figures."""
    return summary["macro"] if summary.get("headline_macro") else summary["metrics"][summary["headline"]]


def _judged(
    summary: Mapping[str, Any], task: str, size: str, mode: Mode, reasons: Sequence[str], caveat: str
) -> dict[str, Any]:
    published = PUBLISHED[size, mode][task] / 100
    metric = headline_of(summary)
    difference = metric["value"] - published
    inside = metric["low"] <= published <= metric["high"]
    met = inside or (metric["n"] > _MANY and abs(difference) <= _NEAR)
    verdict = f"not comparable ({'; '.join(reasons)})" if reasons else _verdict(summary, inside, met)
    return {
        "size": size.upper(),
        "published": published,
        "difference": difference,
        "inside": None if reasons else inside,
        "met": None if reasons else met,
        "not_comparable": [*reasons],
        "verdict": verdict,
        "note": f"{verdict}. {caveat}",
    }


def _verdict(summary: Mapping[str, Any], inside: bool, met: bool) -> str:
    if met:
        return "inside the interval" if inside else f"outside the interval, but within 2 points on {summary['n']:,}"
    cut, finished = summary["cut"], summary["finished"].get(summary["headline"])
    if cut["unknown"]:
        return f"missed, and of {cut['unknown']:,} responses it is not recorded whether they were cut off"
    ended = "" if finished is None else f", and those that ended by themselves score {share(finished['value'])}"
    return f"missed, with {share(cut['value'])} of the responses cut off{ended if cut['count'] else ''}"


def _reasons(
    summary: Mapping[str, Any], config: EvalConfig, samplings: Sequence[CardSampling], labels: Sequence[str]
) -> list[str]:
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
    if not any(is_sampling(summary["sampling"], each) for each in samplings):
        reasons.append("another sampling than the card's")
    allowed = CARD_MAX_NEW_TOKENS[config.mode]
    if summary["max_new_tokens"] < allowed and summary["cut"]["count"]:
        reasons.append(
            f"{share(summary['cut']['value'])} of the responses were cut off at {summary['max_new_tokens']:,} tokens, "
            f"where the card allows {allowed:,}"
        )
    return [*reasons, *labels]


def _unsaid(task: str, protocol: ProtocolName) -> str:
    unsaid = ["its prompt"] + ([_OPEN[task]] if task in _OPEN else [])
    return f"The card does not say {' or '.join(unsaid)}; this is protocol {protocol}"
