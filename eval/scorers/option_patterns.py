r"""The answer that SuperGPQA's authors read from a response, in time linear in the response.

Three forms are looked for, first in the last line, then in the whole text:

1. ``The correct answer is (C)``; 2. ``Answer: $\boxed{C}$``; 3. a text that begins with the letter, however dressed.

A response without any is searched for the same forms with the text of an option in place of the letter.

The authors' regular expressions nest repetitions, and are given up after 5 seconds. These find the same: a repetition
whose characters cannot begin what follows it is possessive, and where an option may begin with such a character the
places are tried one by one in the order of the original. Two weaknesses are kept: a small letter matches and counts as
wrong, and a response that begins with the word "I" or "A" is read as that letter if it has none of the other forms.

Source: eval/eval.py of github.com/SuperGPQA/SuperGPQA.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

_OPENING = "*${([\\"
_STYLE = r"(?:boxed|mathbf|mathrm|text)\{"
_NAME = rf"\\{_STYLE}"
_DRESS = rf"(?:{_NAME}|[{re.escape(_OPENING)}])*+\s*+"
# The closing signs may hold the bracket that ends the answer, so they are read up to the first one only.
_LETTER = r"([A-J])(?=[\\}$\]]*+(?:[\s:.*)]|$))"
_NOT_A_WORD = rf"(?:[^\w\r\n\\]|\\(?!{_STYLE}))*+"
_LETTERS = tuple(
    re.compile(pattern + _DRESS + _LETTER, re.IGNORECASE)
    for pattern in (
        r"the\s++(?:\w++\s++)?(?:answer|option)(?:\w++\s{2,}+|\s++)is?+:?+\s*+",
        r"answer[*\s]*+:\s*+",
        rf"\A{_NOT_A_WORD}",
    )
)

_STATEMENT = re.compile(r"[Tt]he\s++(?:\w++\s++)?(?:answer|option)(?:\w++\s{2,}+|\s++)is(?P<colon>:?)")
_MARK = re.compile(r"(?i:answer)")
_NAMED = re.compile(_NAME)
_NO_WORD = re.compile(r"[^\w\r\n]*")
_SPACE = re.compile(r"\s*")
_CLOSING = re.compile(r"[\\}$\]]+")


def stated_letter(text: str, options: Sequence[str]) -> str | None:
    """Returns the letter from A to J that a response states, or that of the option whose text it states, or None."""
    text = text.rstrip()
    line = text[text.rfind("\n") + 1 :]
    passages = (line,) if line == text else (line, text)
    for passage in passages:
        for pattern in _LETTERS:
            if found := pattern.search(passage):
                return found[1]
    for passage in passages:
        option = _stated_option(passage, options)
        if option is not None:
            # The authors take an empty option for none.
            return chr(ord("A") + options.index(option)) if option else None
    return None


def _stated_option(text: str, options: Sequence[str]) -> str | None:
    closings = _Closings(text)
    some_option = re.compile("|".join(map(re.escape, options)))
    for place in _places(text):
        if some_option.match(text, place):
            for option in options:
                if text.startswith(option, place) and closings.end_at(place + len(option)):
                    return option
    return None


def _places(text: str) -> Iterator[int]:
    """Yields where an option may begin, in the order of the three forms."""
    found = _STATEMENT.search(text)
    while found:
        yield from _places_after(text, found.end())
        if found["colon"]:
            yield found.start("colon")
        found = _STATEMENT.search(text, found.start() + 1)
    for mark in _MARK.finditer(text):
        yield from _places_after(text, mark.end())
    start = _end(_NO_WORD, text, 0)
    yield from _places_inside(text, start)
    if start:
        yield from _places_inside(text, start - 1)
    yield from range(start - 2, -1, -1)


def _places_after(text: str, begin: int) -> Iterator[int]:
    first = _end(_SPACE, text, begin)
    yield from _places_inside(text, first)
    yield from range(first - 1, begin - 1, -1)


def _places_inside(text: str, place: int) -> Iterator[int]:
    """Yields the places behind as many opening signs and names as there are: names are passed first, signs last."""
    passed = []
    while True:
        if name := _NAMED.match(text, place):
            passed.append(place)
            place = name.end()
            continue
        yield from range(_end(_SPACE, text, place), place - 1, -1)
        if place == len(text) or text[place] not in _OPENING:
            break
        place += 1
    for before in reversed(passed):
        yield from (before, before + 1)


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    assert found is not None, "the pattern matches the empty text"
    return found.end()


class _Closings:
    """Knows where closing signs lead to the end of an answer."""

    def __init__(self, text: str):
        self._text = text
        runs = [found.span() for found in _CLOSING.finditer(text)]
        self._starts, self._ends = [start for start, _ in runs], [end for _, end in runs]

    def end_at(self, place: int) -> bool:
        """Returns whether an answer may end at a place."""
        run = bisect_right(self._starts, place)
        if run:
            place = max(place, self._ends[run - 1])
        return place == len(self._text) or self._text[place].isspace() or self._text[place] in ":.*)"
