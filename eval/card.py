"""What the model cards publish for each size, mode and task, and how a result stands to it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eval.cells import is_sampling, share
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


def check_published(task: str, size: Size, mode: Mode) -> None:
    """Raises ``ValueError`` if no figure of a task is published for a size and mode."""
    if task not in PUBLISHED.get((size, mode), {}):
        known = [f"{name} in mode {each}" for (name, each), figures in PUBLISHED.items() if task in figures]
        raise ValueError(
            f"--size {size}: no figure of {task} in mode {mode} is published; "
            + (f"there are those of {', '.join(known)}." if known else "leave it out.")
        )


def against_card(
    summary: Mapping[str, Any], task: str, results: Mapping[str, Any], size: str | None, mode: Mode
) -> dict[str, Any] | None:
    """Returns how the headline of a task stands to the figure of a model's card; None where it has none.

    A figure is met if it lies inside the 95 % interval, or within 2 points where there are more than 5,000 documents.
    The interval is that of drawing questions; what an unknown prompt adds is not in it, and the note says so. A result
    that was made in another way than the card's is not judged.

    Args:
      summary: the task's figures; ``sampling`` and ``max_new_tokens`` where they are known, and ``missing``, how many
        documents have no response.
      results: how they came about, as results.json holds it.
      size: whose card is meant; None for a model of which nothing is known.

    Returns:
      ``size``, the model's; ``published`` and ``difference`` (ours less the card's), as shares of 1; ``inside``,
      whether the figure lies in the interval; ``met``, by the rule above (both None where it is not comparable);
      ``not_comparable``, the reasons; ``verdict``, all this in words; and ``note``, the verdict with what the card
      leaves open.
    """
    if size is None or task not in PUBLISHED.get((size, mode), {}):
        return None
    published = PUBLISHED[size, mode][task] / 100
    metric = headline_of(summary)
    difference = metric["value"] - published
    inside = metric["low"] <= published <= metric["high"]
    met = inside or (metric["n"] > _MANY and abs(difference) <= _NEAR)
    modality = summary.get("modality", "text")
    samplings = card_eval_sampling(mode, modality), card_sampling(PRESETS[size], mode, modality)
    reasons = _reasons(summary, results, samplings, CARD_MAX_NEW_TOKENS[mode])
    verdict = f"not comparable ({'; '.join(reasons)})" if reasons else _verdict(summary, inside, met)
    return {
        "size": size.upper(),
        "published": published,
        "difference": difference,
        "inside": None if reasons else inside,
        "met": None if reasons else met,
        "not_comparable": reasons,
        "verdict": verdict,
        "note": f"{verdict}. {_unsaid(task, results['protocol'])}{_caveat(summary, *samplings)}",
    }


def headline_of(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the estimate that is compared with published figures."""
    return summary["macro"] if summary.get("headline_macro") else summary["metrics"][summary["headline"]]


def _verdict(summary: Mapping[str, Any], inside: bool, met: bool) -> str:
    if met:
        return "inside the interval" if inside else f"outside the interval, but within 2 points on {summary['n']:,}"
    cut, finished = summary["cut"], summary["finished"].get(summary["headline"])
    if cut["unknown"]:
        return f"missed, and of {cut['unknown']:,} responses it is not recorded whether they were cut off"
    ended = "" if finished is None else f", and those that ended by themselves score {share(finished['value'])}"
    return f"missed, with {share(cut['value'])} of the responses cut off{ended if cut['count'] else ''}"


def _reasons(
    summary: Mapping[str, Any], results: Mapping[str, Any], samplings: Sequence[CardSampling], allowed: int
) -> list[str]:
    """Returns why a result says nothing about the card's figure."""
    sampling, limit, cut = summary.get("sampling"), summary.get("max_new_tokens"), summary["cut"]
    style, documents, budget = (results.get(name) for name in ("style", "limit", "thinking_budget"))
    reasons = []
    if style not in (None, "chat"):
        reasons.append(f"style {style}; the card's models chat")
    if results.get("adapter"):
        reasons.append("an adapter is applied")
    if documents is not None:
        reasons.append(f"only the first {documents:,} documents")
    elif summary.get("missing"):
        reasons.append(f"{summary['missing']:,} documents have no response")
    if budget is not None:
        reasons.append(f"thinking budget of {budget:,} tokens")
    if sampling is not None and sampling.get("detect_loops"):
        reasons.append("responses that repeat themselves are ended early")
    if sampling is not None and not any(is_sampling(sampling, each) for each in samplings):
        reasons.append("another sampling than the card's")
    if limit is not None and limit < allowed and cut["count"]:
        reasons.append(
            f"{share(cut['value'])} of the responses were cut off at {limit:,} tokens, where the card allows "
            f"{allowed:,}"
        )
    return [*reasons, *(results.get("labels") or ())]


def _caveat(summary: Mapping[str, Any], own: CardSampling, recommended: CardSampling) -> str:
    """Returns what is to be said of how the responses were drawn, and of the weights."""
    sampling = summary.get("sampling")
    if sampling is None:
        return ". How the responses were sampled, and how long they might be, is not recorded."
    as_recommended = not is_sampling(sampling, own) and is_sampling(sampling, recommended)
    how = ", sampled as the card recommends and not as its table says" if as_recommended else ""
    return f"{how}. Only the published weights of that size can meet its card."


def _unsaid(task: str, protocol: ProtocolName) -> str:
    unsaid = ["its prompt"] + ([_OPEN[task]] if task in _OPEN else [])
    return f"The card does not say {' or '.join(unsaid)}; this is protocol {protocol}"
