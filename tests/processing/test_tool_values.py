"""Types of tool arguments: one line for each rule."""

import pytest

from qwen35_jax.processing.tool_values import typed_value

OPTIONAL_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("text", "schema", "want"),
    [
        ("12", {"type": "string"}, "12"),
        ("null", {"type": ["string"]}, "null"),
        ('"a"', {"type": "string"}, '"a"'),
        ("12", {"type": "integer"}, 12),
        (" 12\n", {"type": "integer"}, 12),
        ("12.0", {"type": "integer"}, 12),
        ("12.5", {"type": "integer"}, "12.5"),
        ("true", {"type": "integer"}, "true"),
        ("twelve", {"type": "integer"}, "twelve"),
        ("12", {"type": "number"}, 12),
        ("1e3", {"type": "number"}, 1000.0),
        ("NaN", {"type": "number"}, "NaN"),
        ("-Infinity", {"type": "number"}, "-Infinity"),
        ("1e999", {"type": "number"}, "1e999"),
        ("[-1e999]", {"type": "array"}, "[-1e999]"),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("true", {"type": "boolean"}, True),
        ("False", {"type": "boolean"}, False),
        ("1", {"type": "boolean"}, "1"),
        ("None", {"type": "null"}, None),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
        ("{}", {"type": "array"}, "{}"),
        ('{"a": [null]}', {"type": "object"}, {"a": [None]}),
        ("{'a': 1}", {"type": "object"}, "{'a': 1}"),
        ("null", OPTIONAL_TEXT, None),
        ("None", OPTIONAL_TEXT, None),
        ("12", OPTIONAL_TEXT, "12"),
        ("null", {"type": "integer", "nullable": True}, None),
        ("3", {"oneOf": [{"type": "string"}, {"type": "integer"}]}, 3),
        ("2", {"enum": [1, 2]}, 2),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("2", {"const": "2"}, "2"),
        ("2", {}, 2),
        ("two", {}, "two"),
        ("None", {}, "None"),
        ("2", None, 2),
        ("2", {"anyOf": [{"type": "string"}, {}]}, 2),
    ],
)
def test_typed_value(text, schema, want):
    got = typed_value(text, schema)
    assert (got, type(got)) == (want, type(want))
