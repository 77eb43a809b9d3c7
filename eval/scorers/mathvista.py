r"""How MathVista's authors normalise an extracted answer, and when it is right.

To a question with choices an extraction is the choice whose letter stands in brackets, or that it is itself the letter
of, or else the choice at the smallest edit distance. Numbers are cut to whole ones, or rounded to the precision of the
question. What is then equal to the answer as a text is right.

Source: evaluation/calculate_score.py and extract_answer.py of github.com/lupantech/MathVista.
"""

import re
from collections.abc import Sequence
from typing import Any

_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_SAID, _SAID_END = 'The answer is "', '".'


def normalized(extraction: Any, choices: Sequence[str] | None, answer_type: str, precision: float | None) -> str | None:
    """Returns an extraction in the form of the answers; None where it has none.

    Args:
      extraction: a text, or whatever a stored file holds.
      choices: of a question that has some.
      answer_type: text, integer, float or list.
      precision: decimals of a float.
    """
    if choices:
        return _choice(extraction.strip() if isinstance(extraction, str) else str(extraction), choices)
    try:
        if answer_type == "integer":
            return str(int(float(extraction)))
        if answer_type == "float":
            if precision is None:
                return None
            return str(round(float(extraction), int(precision)))
    except (ValueError, TypeError, OverflowError):
        return None
    return str(extraction) if answer_type == "list" else extraction


def _choice(extraction: str, choices: Sequence[str]) -> str:
    bracketed = _BRACKETED.search(extraction)
    letter = bracketed[1].upper() if bracketed else extraction
    if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
        return choices[ord(letter) - ord("A")]
    return min(choices, key=lambda choice: edit_distance(letter, choice))


def quick_extraction(response: str, choices: Sequence[str] | None, answer_type: str) -> str | None:
    """Returns what the authors extract without a language model; None where they ask one."""
    if choices and response in choices:
        return response
    try:
        if answer_type == "integer":
            return str(int(response))
        if answer_type == "float":
            return str(float(response))
    except ValueError:
        pass
    # As the pattern `The answer is "(.*)"\.`, in time linear in the response.
    for line in response.split("\n"):
        start, end = line.find(_SAID), line.rfind(_SAID_END)
        if start >= 0 and end >= start + len(_SAID):
            return line[start + len(_SAID) : end]
    return None


def edit_distance(a: str, b: str) -> int:
    """Returns the fewest insertions, deletions and replacements of characters that turn one text into the other.

    Source: Hyyrö (2001), "Explaining and extending the bit-parallel approximate string matching algorithm of Myers":
    one column of the table of distances at a time, its differences as the bits of two whole numbers.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for place, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << place
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = every, 0, len(a)
    for character in b:
        same = places.get(character, 0)
        level = (((same & rises) + rises) ^ rises) | same | falls
        up, down = falls | ~(level | rises) & every, rises & level
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & every, down << 1 & every
        rises, falls = down | ~(level | up) & every, up & level
    return distance
