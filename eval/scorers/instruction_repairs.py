"""Verifiers of IFEval whose code does not check what its instruction says, written anew.

- letter_frequency: where a character that is no letter is asked for (keys 1122 and 1129), the official code draws a
  letter at random. Here it is that character.
- nth_paragraph_first_word: the official code counts the paragraphs that are not blank, but takes the n-th of all of
  them; and ``Summary:`` is not the word ``summary``. Here one list serves both, and a word ends where its letters do.
- number_bullet_lists: it counts dividers (``---``), emphasis that begins a line (``*so* it is``) and negative numbers
  (``-5``). These are no bullets here.
- number_highlighted_sections: it counts whatever stands between two asterisks, as in ``2 * 3 * 4``, and bold text after
  a bullet (``* **so**``) twice. Here Markdown's emphasis counts, each once.
- english_capital: it detects the language of capitals, most of which langdetect leaves out of account. Here the
  language of the same text in small letters counts.
- response_language: a text in which no language is found, such as ``123``, is in any language that is asked for. Here
  it is in none.

What is a matter of definition stays as it is: a keyword counts inside of words, ``don't`` is two words, and ``I`` is a
word in capitals.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

_DIVIDER = re.compile(r"\s*([*-])(?:\s*\1)+\s*")
_EMPHASIS_FIRST = re.compile(r"\s*\*[^\s*][^*]*\*")
_NEGATIVE = re.compile(r"\s*-[\d.]")
_BULLET = re.compile(r"\s*(?:\*[^*]|-)")
_HIGHLIGHT = re.compile(r"(?<![*\\])(\*{1,3})(?![\s*])([^\n*]*[^\s*])\1(?!\*)")
_FIRST_WORD = re.compile(r"['\"]*([^\W_]+(?:-[^\W_]+)*)")


@dataclasses.dataclass(frozen=True)
class Repaired:
    """A verifier that is written anew."""

    check: Callable[[str], bool]

    def check_following(self, value: str) -> bool:
        """Returns whether the response follows the instruction."""
        return self.check(value)


def repair(name: str, arguments: Mapping[str, Any] | None) -> Repaired | None:
    """Returns the verifier of an instruction that needs a repair, else None.

    Args:
      name: of the instruction.
      arguments: as the benchmark gives them; those of a wrong type do not come here.
    """
    given = arguments or {}
    if name == "keywords:letter_frequency":
        letter, count, relation = (given.get(key) for key in ("letter", "let_frequency", "let_relation"))
        if letter and count is not None and relation and not re.fullmatch("[A-Za-z]", letter):
            return Repaired(lambda text: (text.lower().count(letter.lower()) >= count) == (relation == "at least"))
    elif name == "length_constraints:nth_paragraph_first_word":
        total, place, word = (given.get(key) for key in ("num_paragraphs", "nth_paragraph", "first_word"))
        if total and place and word and place <= total:
            return Repaired(lambda text: _has_first_word(text, total, place, word.lower()))
    elif name == "detectable_format:number_bullet_lists":
        bullets = given.get("num_bullets")
        if bullets is not None:
            return Repaired(lambda text: sum(map(_is_bullet, text.split("\n"))) == bullets)
    elif name == "detectable_format:number_highlighted_sections":
        highlights = given.get("num_highlights")
        if highlights is not None:
            return Repaired(lambda text: len(_HIGHLIGHT.findall(text)) >= highlights)
    elif name == "change_case:english_capital":
        return Repaired(lambda text: text.isupper() and _language(text.lower()) == "en")
    elif name == "language:response_language" and given.get("language"):
        return Repaired(lambda text: _language(text) == given["language"])
    return None


def _has_first_word(text: str, total: int, place: int, word: str) -> bool:
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) != total:
        return False
    first = _FIRST_WORD.match(paragraphs[place - 1])
    return first is not None and first[1].lower() == word


def _is_bullet(line: str) -> bool:
    if _DIVIDER.fullmatch(line) or _EMPHASIS_FIRST.match(line) or _NEGATIVE.match(line):
        return False
    return _BULLET.match(line) is not None


def _language(text: str) -> str | None:
    langdetect = importlib.import_module("langdetect")
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None
