"""Types of the arguments of a tool call: what a value's text means under the JSON schema of its parameter."""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

# The chat template writes a value that is no mapping and no list as Python does.
_PYTHON_WORDS = {"True": True, "False": False, "None": None}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def typed_value(text: str, schema: Any = None) -> Any:
    """Returns the value that a text stands for.

    - Where the schema allows nothing but strings, it is the text as it is.
    - Otherwise it is what the text says as JSON, if the schema allows this type; ``True``, ``False`` and ``None`` are
      read too where the schema names their type.
    - Otherwise it is the text, whatever the schema says: a caller sees what the model wrote.

    Args:
      schema: the JSON schema of the parameter. One that names no type, or none at all, allows every type.
    """
    allowed = _types(schema)
    if allowed == {"string"}:
        return text
    word = text.strip()
    if word in _PYTHON_WORDS:
        value = _PYTHON_WORDS[word]
        return value if allowed and _type(value) in allowed else text
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    # Python refuses integers of thousands of digits and lists in thousands of lists.
    except (ValueError, RecursionError):
        return text
    kind = _type(value)
    if not allowed or kind in allowed or (kind == "integer" and "number" in allowed):
        return value
    if kind == "number" and "integer" in allowed and value.is_integer():
        return int(value)
    return text


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number} cannot be written as JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _type(value: Any) -> str:
    return "null" if value is None else _TYPES[type(value)]


def _types(schema: Any) -> set[str]:
    """Returns the types that a schema names, an empty set if it names none."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    if named:
        types = {named} if isinstance(named, str) else set(named)
    elif "const" in schema or "enum" in schema:
        types = {_type(value) for value in schema.get("enum", [schema.get("const")])}
    else:
        branches = [_types(branch) for key in ("anyOf", "oneOf") for branch in schema.get(key) or ()]
        types = set().union(*branches) if all(branches) else set()
    return types | {"null"} if types and schema.get("nullable") else types
