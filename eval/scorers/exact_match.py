r"""Final answers: where a response states one, and when two are the same.

A response states its final answer in the first of these that it contains; of several of one kind the last counts
(``eval.scorers.marks`` says what each looks like):

1. ``#### ANSWER``, the mark of GSM8K's solutions;
2. ``\boxed{ANSWER}``;
3. ``answer is ANSWER`` or ``answer: ANSWER``;
4. nothing marked: its last line, or for numbers bold text there that begins with a number, or else the last number
   anywhere that numbers no step, heading or list item.

A later correction goes before all of them: a mark after a word such as ``wait``, or ``Wait, no: ANSWER``.

Where a number is asked for, it is the first one of a marked text, after the last ``=`` of its first sentence if that
has any (``The answer is 2 * 9 = 18 a day.``). A mark without a number does not count. ``eval.scorers.numbers`` says how
numbers are read.
"""

import bisect
import re
from collections.abc import Callable

from eval.scorers import marks
from eval.scorers.marks import Mark
from eval.scorers.numbers import first_number, last_number, number, tidy

_SENTENCE_END = re.compile(r"(?<=[\w)\]}%$*\"'])[.!?。](?=[\s*_\"')]|$)")
_LEADING_DRESS = " \t*_`$([{\\"
_LEADS_WITH_NUMBER = re.compile(r"(?:[-+]?[$€£¥₹]?\s?-?\.?\d)")
_COUNTS = re.compile(r"\d{1,3}[.):]\**\s+\S")
_LIST_NUMBER = re.compile(r"^[ \t>#*_]{0,12}(\d{1,3})[.)](?=[*_]{0,3}[ \t]+\S)", re.MULTILINE)
_STEP = re.compile(
    r"\b(?:step|part|section|question|problem|example|case|method)[ \t]{1,3}#?\d+\b(?![.,]\d)", re.IGNORECASE
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_QUOTES = "\"'`*_“”‘’"
_WRAPPED = re.compile(
    r"\$+([^$]+)\$+|\\\((.+)\\\)|\\\[(.+)\\\]|\\(?:text|math)(?:bf|rm|it|sf|tt)?\{([^{}]*)\}", re.DOTALL
)


def final_text(response: str) -> str | None:
    """Returns the final answer as written, or None for a response without text."""
    text = marks.without_quoted_lines(response)
    last = text.rstrip().rpartition("\n")[2].strip()

    def hashed(mark: Mark) -> str | None:
        written = mark.text.strip()
        return written if written and (_is_answer(mark) or last.endswith(f"#### {written}")) else None

    found = _decide(
        text,
        [
            (hashed, marks.hashes(text)),
            (lambda mark: mark.text.strip() or None, marks.boxes(text)),
            (lambda mark: mark.text.strip().strip("*_").strip() or None, marks.statements(text)),
        ],
    )
    return found or last or None


def final_number(response: str) -> str | None:
    """Returns the final number as ``normalize`` writes it, or None for a response without one."""
    text = marks.without_quoted_lines(response)
    found = _decide(
        text,
        [
            (lambda mark: _number_of(mark.text) if _is_answer(mark) else None, marks.hashes(text)),
            (lambda mark: _number_of(re.sub(r"^\s*-\s+", "-", mark.text)), marks.boxes(text)),
            (lambda mark: _number_of(mark.text), marks.statements(text)),
            (lambda mark: _number_of(mark.text), marks.corrections(text)),
        ],
    )
    return found if found is not None else _unmarked_number(text)


def normalize(answer: str) -> str:
    """Returns the form in which equal answers are equal strings.

    Case, outer white space, quotes, Markdown emphasis, math delimiters, a final full stop and runs of spaces do not
    matter; numbers are written as ``eval.scorers.numbers.number`` does (``$1,234.50`` is ``1234.5``).
    """
    text = " ".join(answer.casefold().split()).strip(_QUOTES + " ")
    text = text.removesuffix(".").strip(_QUOTES + " ")
    for _ in range(3):
        if wrapped := _WRAPPED.fullmatch(text):
            text = next(part for part in wrapped.groups() if part is not None).strip()
    text = text.replace("\\%", "%").replace(" %", "%")
    return number(text) or text


def _decide(text: str, kinds: list[tuple[Callable[[Mark], str | None], list[Mark]]]) -> str | None:
    """Returns the answer of the last mark of the first kind that has one, or of a mark that corrects it.

    Args:
      kinds: the answer of a mark and the marks, by rank. The fourth can only correct.
    """
    answers = []
    for answer_of, found in kinds:
        last = next(((mark.place, answer) for mark in reversed(found) if (answer := answer_of(mark)) is not None), None)
        answers.append(last)
    best = next((answer for answer in answers[:3] if answer is not None), None)
    if best is None:
        return None
    cues = marks.cues(text)
    while True:
        place = bisect.bisect_right(cues, best[0])
        later = [answer for answer in answers if answer and place < len(cues) and answer[0] >= cues[place]]
        if not later:
            return best[1]
        best = later[0]


def _is_answer(mark: Mark) -> bool:
    """Returns whether hashes mark an answer: a number follows, and it does not number a heading."""
    text = tidy(mark.text[:200]).lstrip(_LEADING_DRESS)
    return bool(_LEADS_WITH_NUMBER.match(text)) and not _COUNTS.match(text)


def _number_of(text: str) -> str | None:
    end = _SENTENCE_END.search(text)
    for part in (text[: end.start()], text) if end else (text,):
        found = first_number(part.rpartition("=")[2]) or first_number(part)
        if found is not None:
            return found
    return None


def _unmarked_number(text: str) -> str | None:
    last = text.rstrip().rpartition("\n")[2]
    for bold in reversed(_BOLD.findall(last)):
        if _LEADS_WITH_NUMBER.match(tidy(bold).lstrip(_LEADING_DRESS)):
            return _number_of(bold)
    listed: set[int] = set()

    def without_list_number(found: re.Match[str]) -> str:
        place = int(found[1])
        if place != 1 and place - 1 not in listed:
            return found[0]
        listed.add(place)
        return ""

    return last_number(_STEP.sub("", _LIST_NUMBER.sub(without_list_number, text)))
