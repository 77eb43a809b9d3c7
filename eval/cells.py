"""How numbers and settings stand in a table of a terminal."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qwen35_jax.presets import PRESETS, CardSampling, Modality, card_eval_sampling, card_sampling

WIDTH = 120
UNKNOWN = "unknown"


def share(value: float) -> str:
    """Returns a share in percent."""
    return f"{100 * value:.2f} %"


def is_share(figure: Mapping[str, Any]) -> bool:
    """Whether a figure and its interval lie within 0 and 1, so that it is shown in percent."""
    return figure["low"] >= 0 and figure["high"] <= 1


def figure(estimate: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a value and its interval, in percent where it is a share."""
    scale, digits = (100, ".2f") if is_share(estimate) else (1, ".4g")
    value, low, high = (format(scale * estimate[name], digits) for name in ("value", "low", "high"))
    return value, f"[{low}, {high}]"


def settings_of(results: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Returns protocol, mode, sampling and budget of a task's numbers; ``unknown`` where nobody recorded them."""
    mode, style = results.get("mode"), results.get("style", "chat")
    sampling, budget = summary.get("sampling"), summary.get("max_new_tokens")
    shown = UNKNOWN if mode is None else mode if style == "chat" else style
    if results.get("thinking_budget") is not None:
        shown += f"<={results['thinking_budget']}"
    if style == "likelihood":
        return results["protocol"], shown, "none", "none"
    name = UNKNOWN if sampling is None else sampling_name(sampling, mode, summary.get("modality", "text"))
    return results["protocol"], shown, name, UNKNOWN if budget is None else f"{budget:,}"


def first_of_data(results: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Returns what to add to a number of documents that a limit chose; nothing where no limit did."""
    limit = results.get("limit")
    # A limit that the data do not reach leaves nothing out.
    return f", the first {summary['n']:,} of the data" if limit is not None and summary["n"] >= limit else ""


def sampling_name(sampling: Mapping[str, Any], mode: str | None, modality: Modality = "text") -> str:
    """Returns what a sampling is called: ``greedy``, one of the model card's two sets, or its settings."""
    if sampling["temperature"] == 0:
        return "greedy"
    # Without a mode only the set that all modes share is known.
    if is_sampling(sampling, card_eval_sampling(mode or "thinking", modality if mode else "text")):
        return "card_eval"
    if mode is not None:
        advised = [card_sampling(size, mode, modality) for size in PRESETS.values()]
        if any(is_sampling(sampling, each) for each in advised):
            return "card_recommended"
    short = {"temperature": "T", "top_p": "p", "top_k": "k", "presence_penalty": "pp"}
    return " ".join(f"{letter}{sampling[name]:g}" for name, letter in short.items())


def is_sampling(sampling: Mapping[str, Any], card: CardSampling) -> bool:
    """Whether responses were drawn by a set of the model card and by nothing else."""
    others = {"min_p": 0, "frequency_penalty": 0, "repetition_penalty": 1}
    wanted = card._asdict() | others
    biased = sampling.get("logit_bias")
    return not biased and all(sampling.get(name, others.get(name)) == value for name, value in wanted.items())


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int]) -> list[str]:
    """Returns the lines of a table no wider than it must be.

    Args:
      left: places of the columns that are aligned to the left.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "

    def line(cells: Sequence[str]) -> str:
        placed = zip(cells, widths, strict=True)
        return gap.join(
            cell.ljust(width) if place in left else cell.rjust(width) for place, (cell, width) in enumerate(placed)
        ).rstrip()

    return [line(header), *map(line, rows)]


def wrapped(text: str) -> list[str]:
    """Returns a sentence as lines of the terminal, all but the first indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
