"""How the page words numbers and the conditions that they were measured under."""

from collections.abc import Mapping
from typing import Any

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


def is_share(metric: Mapping[str, Any]) -> bool:
    """Whether an estimate is a share, which is told in percent; any other number is told as it is."""
    return metric["low"] >= 0 and metric["high"] <= 1


def amount(metric: Mapping[str, Any]) -> str:
    """Returns the value of an estimate."""
    return f"{100 * metric['value']:.2f} %" if is_share(metric) else number(float(metric["value"]))


def interval(metric: Mapping[str, Any]) -> str:
    """Returns the ends of the interval of an estimate."""
    if is_share(metric):
        return f"[{100 * metric['low']:.2f}, {100 * metric['high']:.2f}]"
    return f"[{number(float(metric['low']))}, {number(float(metric['high']))}]"


def estimate(metric: Mapping[str, Any]) -> str:
    """Returns an estimate with its interval."""
    return f"{amount(metric)} {interval(metric)}"


def published(summary: Mapping[str, Any]) -> float | None:
    """Returns the model card's figure as a share; cards write percent."""
    value = (summary.get("card") or {}).get("published")
    return None if value is None else value / 100 if value > 1 else value


def card(summary: Mapping[str, Any]) -> str:
    """Returns how a score compares with the model card; a figure that is missed is told with the share cut."""
    told, share = summary["card"], published(summary)
    if share is None:
        return told.get("note") or ""
    parts = [f"card {100 * share:.1f} %"]
    if told.get("difference") is not None:
        scale = 1 if told["published"] > 1 else 100
        parts.append(f"difference {scale * told['difference']:+.2f} points".replace("-", "\u2212"))
    if told.get("inside") is not None:
        parts.append("inside the interval" if told["inside"] else "outside the interval")
    if told.get("inside") is False and "cut" in summary:
        parts.append(f"{estimate(summary['cut'])} cut")
    if told.get("note"):
        parts.append(told["note"])
    return ", ".join(parts)


def conditions(results: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Returns what a task's figures were measured under, as far as it is known.

    These are protocol, mode, style, sampling, budget, documents, repeats and the share of responses that were cut.
    """
    protocol = summary.get("protocol") or results.get("protocol")
    parts = [f"protocol {protocol}" if protocol else ""]
    if results.get("mode"):
        parts.append(str(results["mode"]).replace("_", "-"))
    if results.get("style", "chat") != "chat":
        parts.append(f"style {results['style']}")
    if summary.get("sampling") is not None:
        parts.append(_sampling(summary["sampling"]))
    if summary.get("max_new_tokens") is not None:
        parts.append(f"at most {number(summary['max_new_tokens'])} tokens")
    parts.append(_budget(results, summary))
    parts.append(f"N {number(summary['n'])}")
    if results.get("repeats", 1) > 1:
        parts.append(f"{results['repeats']} samples each")
    if "cut" in summary:
        parts.append(f"cut {estimate(summary['cut'])}")
    return " · ".join(part for part in parts if part)


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


def _budget(results: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    sampling = summary.get("sampling") or {}
    budget = results.get("thinking_budget") or sampling.get("thinking_budget")
    if not budget:
        return "no thinking budget" if results.get("mode") == "thinking" else ""
    how = sampling.get("budget_close")
    return f"thinking budget {number(budget)} tokens" + (f" ({how})" if how else "")
