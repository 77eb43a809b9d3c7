"""How the page words numbers and the conditions that they were measured under."""

from collections.abc import Mapping
from typing import Any

from eval.cells import figure, first_of_data, is_share, share

# Sampling settings, with the value that changes nothing.
_SAMPLING = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
# Control characters become the pictures that Unicode has of them; a reader sees them, and they do nothing.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def visible(text: str) -> str:
    """Returns text whose control characters can be seen."""
    return text.translate(_CONTROLS)


def number(value: float) -> str:
    """Returns a count with commas, or another number in four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def amount(metric: Mapping[str, Any]) -> str:
    """Returns the value of an estimate: a share in percent, any other number as it is."""
    return figure(metric)[0] + (" %" if is_share(metric) else "")


def interval(metric: Mapping[str, Any]) -> str:
    """Returns the ends of the interval of an estimate."""
    return figure(metric)[1]


def estimate(metric: Mapping[str, Any]) -> str:
    """Returns an estimate with its interval."""
    return f"{amount(metric)} {interval(metric)}"


def published(summary: Mapping[str, Any]) -> float | None:
    """Returns the model card's figure, a share of 1; None where it has none."""
    return (summary.get("card") or {}).get("published")


def card(summary: Mapping[str, Any]) -> str:
    """Returns how a score compares with the model card."""
    told = summary["card"]
    points = f"{100 * told['difference']:+.2f} points".replace("-", "\u2212")
    return f"card {share(told['published'])}, difference {points}, {told['verdict']}"


def conditions(results: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Returns what a task's figures were measured under.

    These are protocol, mode, style, sampling, budget, documents, repeats and the share of responses that were cut.
    What nobody recorded is named.
    """
    parts = [f"protocol {results['protocol']}" if results.get("protocol") else ""]
    style = results.get("style", "chat")
    if style != "likelihood":
        parts += _of_generation(results, summary)
    if style != "chat":
        parts.append(f"style {style}")
    parts.append(f"N {number(summary['n'])}{first_of_data(results, summary)}")
    if results.get("repeats", 1) > 1:
        parts.append(f"{results['repeats']} samples each")
    if "judge" in summary:
        parts.append(f"judge read {share(summary['judge']['share'])}")
    if "cut" in summary and style != "likelihood":
        unknown = summary["cut"].get("unknown") == summary["samples"]
        parts.append("cut unknown" if unknown else f"cut {estimate(summary['cut'])}")
    return " · ".join(part for part in parts if part)


def _of_generation(results: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """Returns mode, sampling and budget of responses that were written."""
    mode, sampling, longest = results.get("mode"), summary.get("sampling"), summary.get("max_new_tokens")
    known = {
        "mode": None if mode is None else mode.replace("_", "-"),
        "sampling": None if sampling is None else _sampling(sampling),
        "budget": None if longest is None else f"at most {number(longest)} tokens",
    }
    lacking = [name for name, words in known.items() if words is None]
    told = [words for words in known.values() if words is not None]
    return [*told, _thinking_budget(results, summary), f"{', '.join(lacking)} not recorded" if lacking else ""]


def _sampling(settings: Mapping[str, Any]) -> str:
    greedy = not settings.get("temperature")
    parts = ["greedy" if greedy else f"temperature {settings['temperature']:g}"]
    for name, neutral in _SAMPLING.items():
        # Greedy decoding ignores the rest.
        if settings.get(name, neutral) != neutral and (name.endswith("penalty") or not greedy):
            parts.append(f"{name.replace('_', ' ')} {settings[name]:g}")
    if settings.get("detect_loops"):
        parts.append("loops ended")
    return ", ".join(parts)


def _thinking_budget(results: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    sampling = summary.get("sampling")
    if sampling is None:  # nobody recorded it
        return ""
    budget = results.get("thinking_budget") or sampling.get("thinking_budget")
    if not budget:
        return "no thinking budget" if results.get("mode") == "thinking" else ""
    how = sampling.get("budget_close")
    return f"thinking budget {number(budget)} tokens" + (f" ({how})" if how else "")
