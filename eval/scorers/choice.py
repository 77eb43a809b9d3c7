r"""Final choices: which letter a response states as its answer to a multiple-choice question.

A response states its choice in the first of these that it contains; of several of one kind the last counts:

1. a mark or a correction: ``"answer": "C"``, ``\boxed{C}``, ``Answer: C``, ``The answer is (C)``, ``答案：C``,
   ``故选C``, ``wait, no: D``;
2. a verdict: ``Option C is correct``, ``I choose C``, ``so it must be C.``;
3. a letter in the dress of a choice: ``(C)``, ``**C**``, ``Option C``, ``C.`` or ``C)`` at the start of a line, a line
   that is only a letter.

``A`` before a word is the article and ``I`` the pronoun, unless the word explains the choice (``A because``). Several
letters (``Answer: A or B``), an example (``e.g., "answer": "C"``), a choice that is called wrong (``Option B is
incorrect``) and a list of the options state nothing. A small letter counts where nothing follows it in its clause.
Letters of full width, in circles and of mathematical alphabets are letters.
"""

import functools
import re
import unicodedata

from eval.scorers.marks import TAKES_BACK

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _plain_characters() -> dict[int, str]:
    """Returns the ASCII characters that full-width, circled and mathematical ones stand for, and plain spaces."""
    ranges = (range(0xFF01, 0xFF5F), range(0x24B6, 0x24EA), range(0x1D400, 0x1D6A4))
    table = {code: unicodedata.normalize("NFKC", chr(code)) for codes in ranges for code in codes}
    spaces = dict.fromkeys((0xA0, 0x2009, 0x202F, 0x3000), " ")
    return {code: plain for code, plain in table.items() if plain.isascii()} | spaces | {0x2019: "'"}


_PLAIN = _plain_characters()

# Every repetition below is bounded: a search takes time in proportion to the text.
_WORD = r"[^\W\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"  # of a word; Chinese, Japanese and Korean put no spaces
_OPEN = r"(?:[\s*_`\"'“‘(\[{$<「『【《]|\\(?:text|math|bf|rm)\w{0,8}\s?\{?|\\[(\[,;: ]|\\boxed\s?\{){0,12}+"
_LETTER = rf"(?P<letter>(?<!{_WORD})[A-Za-z](?!{_WORD}|'[A-Za-z]|[-‐‑][A-Za-z]|[+#°&^=]))"
_FILLER = (
    r"(?:(?:therefore|thus|hence|then|clearly|definitely|most|likely|probably|indeed|simply|actually|just|indicated|by|"
    r"given|option|choice|letter|the|选项|应该|应|就)[\s,:]{0,3}){0,4}+"
)
_LINK = r"[\s*_`\"'”’)\]]{0,6}(?::|\||=>?|->?|–|—|→|⇒|\b(?:is|was|would be|should be|must be|will be)\b)[\s:]{0,4}"
_HEADING = r"[ \t*_:]{0,6}\r?\n[\s]{0,4}"
_MARK_NAMES = (
    r"(?:answer|ans|choice|(?:correct|right|best|final|true|false|incorrect) (?:option|statement|one|letter))"
    r"(?:_\w{1,12})?"
)

_MARKS = re.compile(
    rf"(?:(?<![A-Za-z]){_MARK_NAMES}(?:{_LINK}|{_HEADING}|\s{{1,2}}(?=\())"
    r"|<\w{0,12}answer\w{0,12}>"
    r"|\\(?:boxed|fbox)\s?\{?"
    r"|(?:答案|正确的?选项)[\s*_\"'”」』)]{0,6}(?:应该|应|就|必)?(?:】|是|为|選|选|:)[\s:]{0,4}|正确的是"
    r"|(?<![不未勿别没])(?:选择|选|選擇|選)(?!项)[\s:]{0,3}"
    rf"|(?:{TAKES_BACK}|\bno(?=[,:;.!—–-]))"
    r"(?:[\s,:;.!—–-]{0,4}\b(?:no|it|that|this|its|s|is|was|should|must|be|would|wrong|incorrect|i|mean|meant|make|change|"
    r"choose|pick|to|my|answer|correct|actually|rather|instead|so|final|go|with)\b|'s|[，,。应该是选]){0,12}+[\s,:;—–-]{0,4}"
    r"(?P<correction>))"
    rf"{_FILLER}{_OPEN}{_FILLER}{_OPEN}{_LETTER}",
    re.IGNORECASE,
)
_VERDICTS = re.compile(
    rf"(?<!tatement )(?<!tatements )(?<!if )(?<!If ){_LETTER}[)\]*_`.:\"']{{0,4}}\s{{0,3}}"
    r"(?:is|must be|should be)\s{1,3}(?:clearly |therefore |thus |indeed |definitely |also )?(?:the )?"
    r"(?:single |only |most )?(?:correct|right|best|answer|true answer)\b(?!\s{0,2}\?)"
    rf"|(?<!{_WORD})(?:choose|choosing|chose|pick|select|go with|going with)\s{{1,3}}{_FILLER}{_OPEN}"
    rf"{_LETTER.replace('letter', 'chosen')}"
    rf"|(?<!{_WORD})(?:(?:[Ii]t|[Tt]his|[Tt]hat)(?:'s|\s(?:is|must be|should be|would be|has to be))|"
    rf"(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),?)\s{{1,3}}{_FILLER}{_OPEN}"
    rf"{_LETTER.replace('letter', 'last')}(?=[)\]*_`\"'.!]{{0,4}}[ \t]{{0,4}}(?:\r?\n|$))"
    rf"|{_LETTER.replace('letter', 'chinese')}(?:项|選項|选项)?(?:是|为)?(?:正确|對的|对的)"
)
_DRESSED = re.compile(
    r"(?<![\w/=+^_)}\]\\])(?:\((?P<round>[A-Z])\)|\[(?P<square>[A-Z])\](?=[*_.!,;:]{0,3}\s|[*_.!]{0,3}$))"
    r"|\*\*\(?(?P<bold>[A-Z])(?=[).:]{0,2}\*\*|[).:]\s)"
    rf"|(?<!{_WORD})(?:[Oo]ption|OPTION|[Cc]hoice|[Aa]nswer|选项|選項)\s{{0,3}}[*(\"'`]{{0,4}}"
    rf"(?P<option>[A-Z])(?!{_WORD}|'[A-Za-z])"
    r"|(?:\b(?:is|are|was|as|to|except)|:)\s{1,3}(?P<inline>[A-Z])(?=[.)]\s)"
)
_LINE = re.compile(r"[\s*_`#>\-\"'$]{0,12}(?:\((?P<round>[A-Z])\)|\(?(?P<plain>[A-Z])[*_`]{0,3}[.):])")
_ALONE = re.compile(rf"{_OPEN}(?P<letter>[A-Za-z])[\s*_`\"'”’)\]}}$>」』】》.:,!。]{{0,12}}$")
_AS_WORD = re.compile(
    r"[ \t]{1,3}(?!(?:because|since|as|is|for|due|which|based|given|so|with|would|by|while|from|"
    r"in|and|or|but|here|seems|appears|fits|matches)\b)[^\W\d_A-Z]"
)
_AFTER_SMALL = re.compile(r"[)\]}\"'*_`$”’]{0,6}\s{0,2}(?:[.,;:!。，](?![A-Za-z])|\\[)\]]|\r?\n|$)|[)\]}\"”]")
_MORE = re.compile(
    r"[)\]*_`\"'”]{0,4}\s{0,2}(?:/|(?:,\s{0,2})?\b(?:and|or)\b|[&、和或与及]|,(?=\s{0,2}[(*\"']{0,3}[A-Z][)*\"']{0,3}\s{0,2}"
    r"(?:,|\band\b|\bor\b|[.)}]{0,3}\s{0,2}$)))\s{0,2}(?:option |choice )?[(*\"'\[]{0,4}[A-Z](?![A-Za-z0-9_'])",
    re.MULTILINE,
)
_WRONG = re.compile(
    r"[)\]*_`.:\"']{0,5}\s{0,3}(?:(?:is|are|was|can|could|must|would|does|do|seems|looks|cannot)\b\s{0,2}){0,2}(?:be\s{1,2}|"
    r"clearly\s|also\s|therefore\s|thus\s|simply\s){0,2}(?:not\b|n't|isn't|doesn't|incorrect|wrong|false|ruled out|"
    r"eliminated|excluded|implausible|unlikely|不|错)"
)
_EXAMPLE = re.compile(
    r"(?:\be\.g\.|\bfor example|\bfor instance|\bsuch as|\bin the form(?:at)?(?: of)?|例如|比如)[^\n]{0,30}$",
    re.IGNORECASE,
)
_QUOTE = re.compile(
    r"(?:[\"“](?:the|my|so|thus|therefore)\b[ \w,]{0,20}|^[ \t]{0,3}>[^\n]{0,50})$", re.IGNORECASE | re.MULTILINE
)
_CLAUSE_END = re.compile(
    r"[)\]}*_`\"'$”’]{0,6}\s{0,2}(?:[.!,;。！，；]|\r?\n|$)|[)\].:]{0,2}\s{0,2}(?:is\s|是)?(?:the\s)?(?:correct|right|正确)"
)


def final_letter(text: str, count: int) -> str | None:
    """Returns the letter that a response states as its answer, or None where it states none.

    Args:
      text: the response after its think block; any text, in time linear in its length.
      count: how many options the question has; letters after theirs are no choice.
    """
    text = text.translate(_PLAIN)
    allowed = LETTERS[:count]
    alone = _ALONE.match(text.strip())
    if alone is not None:
        letter = alone["letter"].upper()
        return letter if letter in allowed else None
    letter = _marked(text, allowed, quoted=False)
    for statements in (_judged, functools.partial(_marked, quoted=True), _dressed):
        letter = statements(text, allowed) if letter is None else letter
    return letter or None


def _marked(text: str, allowed: str, *, quoted: bool) -> str | None:
    """Returns the last letter after a mark, or the empty text where the last mark names several."""
    letter = None
    for found in _MARKS.finditer(text):
        if _is_example(text, found.start()) or _is_quoted(text, found.start()) is not quoted:
            continue
        if found["correction"] is not None and not _CLAUSE_END.match(text, found.end()):
            continue
        if found["letter"].upper() in allowed and _MORE.match(text, found.end()):
            letter = ""
        elif _is_choice(text, found, "letter", allowed):
            letter = found["letter"].upper()
    return letter


def _judged(text: str, allowed: str) -> str | None:
    letter = None
    for found in _VERDICTS.finditer(text):
        name = found.lastgroup or "letter"
        if found[name].isupper() and (name in ("letter", "chinese") or _is_choice(text, found, name, allowed)):
            letter = found[name] if found[name] in allowed else letter
    return letter


def _dressed(text: str, allowed: str) -> str | None:
    """Returns the last letter in the dress of a choice, unless the letters are a list of the options."""
    found: dict[int, tuple[str, bool]] = {}
    for dressed in _DRESSED.finditer(text):
        name = dressed.lastgroup
        assert name is not None
        if dressed[name] not in allowed or _WRONG.match(text, dressed.end()):
            continue
        if name != "option" or not _is_word(text, dressed.end(), dressed[name]):
            ends = _CLAUSE_END.match(text, dressed.end()) is not None
            found[dressed.start(name)] = dressed[name], ends
    listed: list[tuple[int, str]] = []
    start = 0
    for line in text.split("\n"):
        alone, first = _ALONE.match(line), _LINE.match(line)
        if alone is not None and alone["letter"] in allowed:
            found[start + alone.start("letter")] = alone["letter"], True
        elif first is not None and (first["round"] or first["plain"]) in allowed:
            name = "round" if first["round"] else "plain"
            listed.append((start + first.start(name), first[name]))
        start += len(line) + 1
    chosen = _chosen_line(listed)
    for place, letter in listed:
        if place != chosen:
            found.pop(place, None)
        elif not _WRONG.match(text, place + 1):
            found.setdefault(place, (letter, False))
    if not found:
        return None
    letters = "".join(found[place][0] for place in sorted(found))
    letter, ends = found[max(found)]
    return letter if ends or letters != allowed else None


def _chosen_line(listed: list[tuple[int, str]]) -> int | None:
    """Returns the place of the last line that begins with an option's letter, unless it belongs to a list of them."""
    if not listed:
        return None
    place, letter = listed[-1]
    others = [each for _, each in listed[:-1]]
    return place if not others or letter in others else None


def _is_choice(text: str, found: re.Match[str], name: str, allowed: str) -> bool:
    letter, end = found[name], found.end(name)
    if letter.upper() not in allowed or _MORE.match(text, end):
        return False
    if letter.islower():
        return _AFTER_SMALL.match(text, end) is not None
    return not _is_word(text, end, letter)


def _is_word(text: str, end: int, letter: str) -> bool:
    return letter in "AI" and _AS_WORD.match(text, end) is not None


def _is_quoted(text: str, start: int) -> bool:
    return _QUOTE.search(text, max(0, start - 60), start) is not None


def _is_example(text: str, start: int) -> bool:
    return _EXAMPLE.search(text, max(0, start - 60), start) is not None
