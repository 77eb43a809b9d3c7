"""Makes plain JSON values of what a file or a user's function gives, or says why it cannot be trained.

Keys of objects whose value is null are left out. Table libraries give every object of a column all keys and fill the
absent ones with null, so a null that somebody wrote cannot be told from one that was filled in.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from train.data.rows import RowError

_MAX_DEPTH = 64
# Python refuses to write an integer of more than 4,300 digits.
_MAX_BITS = 14_000


def parse_json(text: str | bytes, where: str) -> Any:
    """Parses JSON text.

    Raises:
      RowError: it is not JSON, or holds what Python cannot read.
    """
    try:
        return json.loads(text)
    except RecursionError as err:
        raise RowError("too_deep", f"{where} is nested too deep to be read") from err
    except json.JSONDecodeError as err:
        raise RowError("invalid_json", f"{where} is not valid JSON: {err.msg} at character {err.pos + 1}") from err
    except UnicodeDecodeError as err:
        raise RowError("invalid_json", f"{where} is not valid JSON: {err}") from err
    except ValueError as err:  # an integer of thousands of digits
        raise RowError("number", f"{where} holds a number that cannot be read: {err}") from err


def parsed(value: Any, where: str) -> Any:
    """Parses a value that is JSON text where an object or a list is meant; any other value is returned as it is."""
    if isinstance(value, str | bytes):
        return parse_json(value, where)
    return value


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Rebuilds a value out of JSON types, without the keys whose value is null.

    Raises:
      RowError: it holds something that is no JSON value, no text, or nested too deep.
    """
    if depth > _MAX_DEPTH:
        raise RowError("too_deep", f"{where} is nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | bytes):
        return text_of(value, where)
    if isinstance(value, int | float):
        return _number(value, where)
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1) for item in value]
    if isinstance(value, Mapping):
        filled = ((key, item) for key, item in value.items() if item is not None)
        return {_key(key, where): plain(item, where, depth + 1) for key, item in filled}
    raise RowError("wrong_type", f"{where} holds {kind(value)}, which JSON does not have; write it as a string")


def text_of(value: Any, where: str) -> str:
    """Returns a string, or bytes as UTF-8, if every character of it can be trained.

    Raises:
      RowError: it is something else, or holds half of a character.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as err:
            raise RowError("not_utf8", f"{where} holds bytes that are not UTF-8: {err.reason}") from err
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{where} is {kind(value)}, not a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as err:
            half = f"\\u{ord(value[err.start]):04x}"
            raise RowError("surrogate", f"{where} holds {half}, one half of a UTF-16 surrogate pair") from err
    return value


def kind(value: Any) -> str:
    """Names a value's type as JSON does; Parquet and Python know further types."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    number = f"the number {value}" if isinstance(value, int | float) else f"a value of type {type(value).__name__}"
    return names.get(type(value), number)


def shown(value: Any) -> str:
    """Quotes a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def named(keys: Any) -> str:
    """Lists keys for a message, shortened."""
    keys = [str(key) for key in keys]
    more = f" and {len(keys) - 20} more" if len(keys) > 20 else ""
    return (
        ", ".join(key if key.isprintable() and len(key) <= 40 else shown(key) for key in keys[:20]) + more
    ) or "none"


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise RowError("wrong_type", f"{where} has a key that is {kind(key)}, not a string")
    return text_of(key, where)


def _number(value: int | float, where: str) -> int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError("number", f"{where} holds the number {value}, which JSON does not have")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise RowError("number", f"{where} holds a number of thousands of digits")
    return value
