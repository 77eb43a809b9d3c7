r"""Numbers in text: how people and models write them, and one form in which equal numbers are equal strings.

| written | read as |
|---|---|
| ``70,000``, ``70{,}000``, ``70\,000``, ``70\!,\!000``, ``70 000``, ``70_000``, ``70'000``, ``7,00,000`` | groups |
| ``1.234.567``, ``1.234,50`` | groups with full stops; a lone one is a decimal point: ``70.000`` is 70 |
| ``-3``, ``−3``, ``+3``, ``-$5``, ``$-5``, ``.5``, ``3.``, ``３`` | signs, currencies, digits of any script |
| ``1e3``, ``1.5 \times 10^{3}``, ``10³``, ``2^{10}`` | powers |
| ``1/2``, ``\frac{1}{2}``, ``\frac12``, ``½``, ``2\frac{1}{2}``, ``2 1/2`` | fractions |
| ``50%``, ``50\%``, ``50 %`` | 50: the sign is a unit, as a currency is |

The exponent of a unit (``cm^2``), an index (``x_1``), a digit in a name (``CO2``) and an ordinal (``5th``) are numbers
only where a text has no other.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction

# Longer numbers are compared as they are written: arithmetic on them would not take linear time.
_MOST_DIGITS = 300

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_FROM_SUPERSCRIPT = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_MINUS = "−–‐‑﹣"
_TIMES = "×·∙⋅"

_DRESS = re.compile(
    r"\\(?:text|math|operatorname|boldsymbol|mbox|bm|bf|rm)(?:bf|rm|it|sf|tt|normal)?(?![A-Za-z])|\\[!()\[\]]"
    r"|\\(?:left|right|displaystyle)(?![A-Za-z])|(?<=,)\\[,;: ]"
)
_SPACE = re.compile(r"\\(?:[,;: ]|q?quad(?![A-Za-z])|thinspace(?![A-Za-z]))|~")
_BRACED_SEPARATOR = re.compile(r"\{([,. +-]?)\}")
_BRACED_NUMBER = re.compile(r"(?<![A-Za-z^_}])\{(\d{1,300})\}")
_ESCAPED = re.compile(r"\\([$%#&_])")
_COMMAND_BEFORE_DIGIT = re.compile(r"(\\(?![dtc]?frac|boxed|fbox)[A-Za-z]{1,20}+)(?=\d)")
_PART = r"\s{0,3}(?:\{\s{0,3}([-+]?[\d.,]{1,300})\s{0,3}\}|(\d))"
_FRACTION = re.compile(rf"(?<=(\d))?\s{{0,3}}\\[dtc]?frac{_PART}{_PART}")
_POWER = re.compile(
    r"(?:(?<=\d)\s?(?:\\times|\\cdot|[*x])\s?(?=10\s?[\^*])|(?<![\w.}*]))"
    r"(\d{1,6}+)(?:\s?\^\s?|\*\*)(?:\{\s?([-+]?\d{1,3}+)\s?\}|([-+]?\d{1,3}+))(?!\w)"
)
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%])[-+][$€£¥₹]?|[$€£¥₹]\s?-?)?"
    r"(?P<plain>"
    r"\d{1,3}(?P<separator>[, _'])\d{3}(?:(?P=separator)\d{3})*+(?!\d)(?:\.\d++)?"
    r"|\d{1,2}(?:,\d{2}(?!\d)){1,12}+,\d{3}(?!\d)(?:\.\d++)?"
    r"|\d{1,3}(?:\.\d{3}){2,12}+(?![.\d])(?:,\d{1,2}+(?!\d))?|\d{1,3}(?:\.\d{3}){1,12}+,\d{1,2}+(?!\d)"
    r"|\d++(?:\.\d++)?|(?<![\w)\].])\.\d++)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3}+)(?!\w))?"
    r"(?:(?P<numerator>\s\d{1,9}+)?\s?/\s?(?P<denominator>\d{1,300}+)(?![\d/]))?"
)
_IN_A_NAME = re.compile(r"(?:[A-Za-z]|[\^_]\{?-?)\Z")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")


def tidy(text: str) -> str:
    """Returns a text without what LaTeX and scripts put around and into numbers."""
    text = _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_FROM_SUPERSCRIPT), text)
    text = _NOT_ASCII.sub(lambda found: _plain_character(found[0]), text)
    text = _SPACE.sub(" ", _DRESS.sub("", text))
    text = _BRACED_NUMBER.sub(r"\1", _BRACED_SEPARATOR.sub(r"\1", text))
    text = _COMMAND_BEFORE_DIGIT.sub(r"\1 ", _ESCAPED.sub(r"\1", text))
    return _POWER.sub(_power, _FRACTION.sub(_fraction, text))


def first_number(text: str) -> str | None:
    """Returns the first number of a text as ``number`` writes it."""
    return _choose(_NUMBER.finditer(tidy(text)))


def last_number(text: str) -> str | None:
    """Returns the last number of a text as ``number`` writes it."""
    return _choose(reversed(list(_NUMBER.finditer(tidy(text)))))


def _choose(numbers: Iterable[re.Match[str]]) -> str | None:
    other = None
    for found in numbers:
        if not _is_part_of_a_name(found):
            return _value(found)
        other = other or found
    return _value(other) if other else None


def _is_part_of_a_name(found: re.Match[str]) -> bool:
    before = found.string[max(0, found.start() - 3) : found.start()]
    return bool(_IN_A_NAME.search(before) or _ORDINAL.match(found.string, found.end()))


def number(text: str) -> str | None:
    """Returns the number that a text consists of, or None.

    Equal numbers give equal strings: a decimal fraction without needless zeros, or a reduced ``a/b`` where that would
    not end.
    """
    found = _NUMBER.fullmatch(tidy(text).strip())
    return _value(found) if found and (found["denominator"] or "1").strip("0") else None


@functools.cache
def _plain_character(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if character in _MINUS:
        return "-"
    if character in _TIMES:
        return r"\times"
    if "VULGAR FRACTION" in unicodedata.name(character, ""):
        return " " + unicodedata.normalize("NFKC", character).replace("⁄", "/")
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    if category == "Cf":
        return ""
    if "\uff01" <= character <= "\uff5e":
        return chr(ord(character) - 0xFEE0)
    return "'" if character == "’" else character


def _fraction(found: re.Match[str]) -> str:
    above, below = found[2] or found[3], found[4] or found[5]
    return f"{' ' if found[1] else ''}{above.replace(',', '')}/{below.replace(',', '')}"


def _power(found: re.Match[str]) -> str:
    base, exponent = found[1], int(found[2] or found[3])
    if base == "10":
        return f"e{exponent}" if not found[0].startswith("10") else f"1e{exponent}"
    return str(int(base) ** exponent) if 0 <= exponent <= 40 else found[0]


def _value(found: re.Match[str]) -> str:
    plain = found["plain"]
    if plain.count(".") > 1 or plain.rfind(",") > plain.rfind(".") >= 0:
        plain = plain.replace(".", "").replace(",", ".")
    plain = re.sub("[, _']", "", plain)
    negative = "-" in (found["sign"] or "")
    special = found["exponent"] or (found["denominator"] and int(found["denominator"]))
    if special and len(plain) <= _MOST_DIGITS:
        value = Fraction(plain) * Fraction(10) ** int(found["exponent"] or 0)
        if found["denominator"]:
            below = int(found["denominator"])
            value = value + Fraction(int(found["numerator"]), below) if found["numerator"] else value / below
        magnitude = _written(value)
    else:
        whole, _, decimals = plain.partition(".")
        magnitude = ".".join(part for part in (whole.lstrip("0") or "0", decimals.rstrip("0")) if part)
    return f"-{magnitude}" if negative and magnitude != "0" else magnitude


def _written(value: Fraction) -> str:
    """Returns a fraction as a decimal one if that ends."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(value.numerator * 10**places // value.denominator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ".".join(part for part in (whole, decimals.rstrip("0")) if part)
