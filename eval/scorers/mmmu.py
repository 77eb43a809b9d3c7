r"""What MMMU's authors read from a response, and what they count as right.

Of a question with options, in this order: a letter in brackets; a letter between spaces; in a response of more than
five words the text of an option. Where several of one kind are found the last one counts. Their code guesses where
nothing is found; ``read_choice`` does not.

Of an open question everything is an answer that follows a word such as ``is`` or ``therefore`` in its sentence, and
every number in that. It is right if one of the numbers equals the right one after rounding to two decimals, or if
a text holds the right text.

Their code has oddities, which are kept: sentences are split before a capital letter, but after the text was made small,
so that only line breaks split; ``=`` leads to an answer in the last line alone.

Source: eval_utils.py of github.com/MMMU-Benchmark/MMMU.
"""

import re
from collections.abc import Mapping, Sequence

Answer = str | float

_ENDS = (",", ".", "!", "?", ";", ":", "'")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
# The authors' patterns for numbers with commas, with exponents, and others. Theirs also begin inside of a run of
# digits, where they find nothing that they do not find from its start, in time in the square of its length.
_NUMBERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"(?:-|(?<!\d))\d++(?:\.\d++)?[eE][+-]?\d+",
        r"(?:-|(?=\.)|(?<!\d))(?:\d++\.\d++|\.\d++|\d++\b)(?![eE][+-]?\d+)(?![,\d])",
    )
)


def read_choice(response: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the option that a response chooses; None where the authors guess.

    Args:
      options: their texts by letter, in order.
    """
    for sign in _ENDS:
        response = response.strip(sign)
    text = f" {response} "
    for form in ("({})", " {} "):
        found = {letter: form.format(letter) for letter in options if form.format(letter) in text}
        if found:
            # Where letters in brackets are many the last place counts; of two at one place the first option.
            return max(found, key=lambda letter: text.rfind(found[letter]))
    if len(text.split()) <= 5:
        return None
    small = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in small]
    return max(named, key=lambda letter: small.rfind(options[letter].lower()), default=None)


def normalized(text: str) -> list[Answer]:
    """Returns the forms in which an answer is compared: a rounded number, or a small text.

    A text of one character gets a space before or after it, so that it is not found inside of words.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def read_open(response: str) -> list[Answer]:
    """Returns all answers that an open response gives, without order, each once."""
    passages = _passages(response)
    numbers = [number for passage in passages for pattern in _NUMBERS for number in pattern.findall(passage)]
    found = [form for text in (*passages, *numbers) for form in normalized(text)]
    return list(dict.fromkeys(found))


def _passages(response: str) -> list[str]:
    """Returns the shortest text after a leading word in each line that has one, or the whole response."""
    text = response.strip().strip(".").lower()
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        leads = (*_LEADS, "=") if number == len(lines) else _LEADS
        shortest = ""
        for lead in leads:
            if lead in line:
                after = line.split(lead)[-1].strip()
                if not shortest or len(after) < len(shortest):
                    shortest = after
        if shortest and shortest not in _ENDS:
            found.append(shortest)
    return found or [text]


def is_right(answers: Sequence[Answer], gold: Sequence[str]) -> bool:
    """Whether one of the answers to an open question is right; ``gold`` are the right ones as the data write them."""
    wanted = [form for text in gold for form in normalized(text)]
    texts = [form for form in wanted if isinstance(form, str)]
    for answer in answers:
        if isinstance(answer, str):
            if any(text in answer for text in texts):
                return True
        elif answer in wanted:
            return True
    return False
