r"""Final answers: where a response states one, and when two are the same.

A response states its final answer in the first of these that it contains; of several of one kind
the last counts:

1. ``#### ANSWER`` (the rest of the line), the mark of GSM8K's solutions;
2. ``\boxed{ANSWER}``;
3. ``answer is ANSWER`` or ``answer: ANSWER`` (the rest of the line, in any case);
4. nothing marked: its last line, or for numbers the last number anywhere.

Where a number is asked for, it is the last number of a boxed text (``\boxed{x = 18}``), but the
first of a marked or stated one (``The answer is 18, 3 more than before``), after the last ``=`` if
it has any (``The answer is 2 * 9 = 18``). A mark without a number does not count.
"""

import re

# Thousands groups are one number (1,234.5); other commas separate numbers. A minus right after a
# digit, letter or bracket is a subtraction or a hyphen.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-−]\$?|\$[-−]?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w)\]])[-−]?\$?\.\d+"
)
_MARKED = re.compile(r"####[ \t]*(\S.*)")
_STATED = re.compile(r"\banswer\W{0,2}(?:\s+is|:)[ \t]*:?[ \t]*(\S.*)", re.IGNORECASE)
_BARE_NUMBER = str.maketrans({",": "", "$": "", "−": "-"})
_BRACES = re.compile(r"\\boxed\{|\{|\}")
_QUOTES = "\"'`*_“”‘’"


def final_text(response: str) -> str | None:
    """Returns the final answer as written, or None for a response without text."""
    marked = _MARKED.findall(response)
    boxed = _boxed(response)
    stated = _STATED.findall(response)
    for found in (marked, boxed, stated):
        if found:
            return found[-1].strip()
    lines = response.strip().splitlines()
    return lines[-1].strip() if lines else None


def final_number(response: str) -> str | None:
    """Returns the final number as ``normalize`` writes it, or None for a response without digits."""
    marked, stated = (pattern.findall(response) for pattern in (_MARKED, _STATED))
    for texts, place in ((marked, 0), (_boxed(response), -1), (stated, 0), ([response], -1)):
        numbers = _NUMBER.findall(texts[-1].rpartition("=")[2] if place == 0 else texts[-1]) if texts else []
        if numbers:
            return normalize(numbers[place])
    return None


def normalize(answer: str) -> str:
    """Returns the form in which equal answers are equal strings.

    Case, outer white space, quotes, Markdown emphasis, a final full stop and runs of spaces do not
    matter; for a number neither do thousands commas, a dollar sign, and zeros after the point
    (``$1,234.50`` is ``1234.5``, ``18.0`` is ``18``).
    """
    text = " ".join(answer.casefold().split()).strip(_QUOTES + " ")
    text = text.removesuffix(".").strip(_QUOTES + " ")
    if not _NUMBER.fullmatch(text):
        return text
    number = text.translate(_BARE_NUMBER)
    whole, _, fraction = number.removeprefix("-").partition(".")
    magnitude = ".".join(part for part in (whole.lstrip("0") or "0", fraction.rstrip("0")) if part)
    return f"-{magnitude}" if number.startswith("-") and magnitude != "0" else magnitude


def _boxed(response: str) -> list[str]:
    """Returns the contents of every closed ``\\boxed{...}``, braces inside it included."""
    contents = []
    open_braces: list[int | None] = []
    for brace in _BRACES.finditer(response):
        if brace.group() != "}":
            open_braces.append(None if brace.group() == "{" else brace.end())
        elif open_braces:
            start = open_braces.pop()
            if start is not None:
                contents.append(response[start : brace.start()])
    return contents
