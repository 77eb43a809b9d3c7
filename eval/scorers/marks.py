r"""Places where a response marks its final answer.

- hashes: ``#### 18``, the mark of GSM8K's solutions. A heading such as ``#### Step 2: Multiply`` is none.
- boxes: ``\boxed{18}``, ``\fbox{18}``, ``\boxed 18``; the innermost of nested ones, and one that the end of the
  text cuts off.
- statements: ``The answer is 18``, ``**Final answer:** 18``, ``"answer": "18"``, ``答案：18``, a line
  ``Answer`` before one.
- corrections: ``Wait, no: 18``, only after a mark that they can correct.

Marks of a quotation (a Markdown line ``> ...``, or within quotation marks in a line) do not count.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}(\{)?|\\[{}]|[{}]")
_UNBRACED = re.compile(r"[^\s{}$\\]{1,100}")
_STATED = re.compile(
    r"(?:\banswers?\b|答案)(?:\s(?:to|for|in|of|we|that)\b[^\n.:=]{0,60}?)?[ \t*_\"'`)\]]{0,4}"
    r"(?:\b(?:is|was|equals|comes to|(?:would|should|must|will) be)\b(?!\s+not\b)|[=:：是为為])[ \t*_:：\"'`]{0,6}",
    re.IGNORECASE,
)
_ANSWER_LINE = re.compile(
    r"^[#*_> \t]{0,12}(?:(?:the|my)\s)?(?:final\s|correct\s)?answer[*_ \t]{0,6}$", re.IGNORECASE | re.MULTILINE
)
_NEXT_LINE = re.compile(r"[ \t]{0,8}\n\s{0,8}(?=\S)")
_ONLY_DRESS = re.compile(r"[\s*_$`:]{0,12}\Z")
TAKES_BACK = r"(?:\b(?:wait|actually|correction|oops|sorry|scratch that|on second thoughts?)\b|不对|更正|等等)"
"""Pattern of the words by which a text takes something back, to be matched in any case."""
_CUE = re.compile(
    rf"{TAKES_BACK}|\b(?:let me correct|(?:a|an|my) (?:mistake|error))\b|\bno[,:]",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    rf"(?:{TAKES_BACK}|\bno\b)"
    r"(?:[\s,:;.!…—–*，：。应该是]|-(?!\d)|\b(?:no|it|is|it's|its|should|be|that|that's|the|this|answer|actually|make|i|mean|meant|"
    r"sorry|final|correct|result)\b){1,24}+"
    r"(?=[-+−]?[$€£¥₹\\]{0,2}\.?\d)(?!\S{1,40}\s(?:is|was)\s(?:wrong|incorrect|not)\b)",
    re.IGNORECASE,
)
_QUOTED_LINE = re.compile(r"^[ \t]{0,8}>[^\n]*", re.MULTILINE)


class Mark(NamedTuple):
    """A mark and what follows it, to the end of the line or to the next mark of its kind."""

    place: int
    text: str


def without_quoted_lines(text: str) -> str:
    """Returns a text without its Markdown quotations, unless it has nothing else."""
    rest = _QUOTED_LINE.sub("", text)
    return rest if rest.strip() else text


def hashes(text: str) -> list[Mark]:
    """Returns what stands after each ``####``, headings included."""
    return _to_line_end(text, [found.span() for found in _HASHES.finditer(text)])


def boxes(text: str) -> list[Mark]:
    """Returns the contents of boxes that hold no other box, in order."""
    spans: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []
    for found in _BOX.finditer(text):
        if found[1]:
            open_braces.append((found.start(), found.end()))
        elif found[0] == "{":
            open_braces.append(None)
        elif found[0] == "}":
            box = open_braces.pop() if open_braces else None
            if box is not None:
                spans.append((*box, found.start()))
        elif len(found[0]) > 2 and (bare := _UNBRACED.match(text, found.end())):
            spans.append((found.start(), *bare.span()))
    cut_off = next((box for box in reversed(open_braces) if box is not None), None)
    if cut_off is not None:
        end = text.find("\n", cut_off[1])
        spans.append((*cut_off, len(text) if end < 0 else end))
    spans.sort()
    following = [start for start, _, _ in spans[1:]] + [len(text)]
    return [
        Mark(start, text[begin:end])
        for (start, begin, end), after in zip(spans, following, strict=False)
        if end <= after
    ]


def statements(text: str) -> list[Mark]:
    """Returns what a text says that the answer is."""
    spans = [found.span() for found in _STATED.finditer(text) if not _is_quoted(text, *found.span())]
    spans += [found.span() for found in _ANSWER_LINE.finditer(text)]
    return _to_line_end(text, sorted(spans), or_next_line=True)


def corrections(text: str) -> list[Mark]:
    """Returns what directly follows a word of correction."""
    return _to_line_end(text, [found.span() for found in _CORRECTED.finditer(text)])


def cues(text: str) -> list[int]:
    """Returns the places of words that take something back."""
    return [found.start() for found in _CUE.finditer(text)]


def _to_line_end(text: str, spans: Sequence[tuple[int, int]], *, or_next_line: bool = False) -> list[Mark]:
    marks = []
    starts = [start for start, _ in spans[1:]] + [len(text)]
    for (start, end), following in zip(spans, starts, strict=False):
        line_end = text.find("\n", end, max(end, following))
        stop = max(end, following) if line_end < 0 else line_end
        if or_next_line and _ONLY_DRESS.match(text[end:stop]) and (following_line := _NEXT_LINE.match(text, stop)):
            begin = following_line.end()
            stop = max(begin, following)
            line_end = text.find("\n", begin, stop)
            marks.append(Mark(start, text[begin : stop if line_end < 0 else line_end]))
        else:
            marks.append(Mark(start, text[end:stop]))
    return marks


def _is_quoted(text: str, start: int, end: int) -> bool:
    """Returns whether a mark stands within quotation marks that opened in its line, but not with the line."""
    before = text[max(0, start - 200) : start].rpartition("\n")[2]
    if before.endswith('"') and '"' in text[start:end]:  # the key of a JSON object
        return False
    opening = before.rfind("“") if before.rfind("“") > before.rfind("”") else -1
    if opening < 0 and before.count('"') % 2:
        opening = before.rfind('"')
    return opening > 0 and bool(before[:opening].strip(" \t*_>"))
