"""Grammars: whatever is drawn from their masks fits the schema, and ends where the schema ends."""

import functools
import json
import random

import numpy as np
import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.inference.requests import Grammar
from qwen35_jax.processing import Tokenizer
from qwen35_jax.serving.grammar import JsonGrammar, Vocabulary

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "bé"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["kind", "size", "tags"],
    "additionalProperties": False,
}
PADDED = 20


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary(tokenizer, len(tokenizer) + PADDED)


def allowed(grammar, vocabulary):
    mask = grammar.mask()
    assert mask.dtype == np.int32 and mask.shape == (-(-vocabulary.size // 32),)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[: vocabulary.size]).tolist()


def write(grammar, vocabulary, rng):
    ids = []
    while not grammar.finished:
        ids.append(rng.choice(allowed(grammar, vocabulary)))
        grammar.accept(ids[-1])
        assert len(ids) < 2000
    return ids


def test_random_text_fits_the_schema(vocabulary, tokenizer):
    matcher, rng = vocabulary.compile(SCHEMA), random.Random(0)
    seen = set()
    for _ in range(50):
        grammar = JsonGrammar(vocabulary, matcher, tokenizer.encode("hi"))
        assert isinstance(grammar, Grammar)
        value = json.loads(tokenizer.decode(write(grammar, vocabulary, rng)))
        assert list(value) == ["kind", "size", "tags"]
        assert value["kind"] in ("a", "bé") and value["size"] in range(100) and len(value["tags"]) <= 2
        seen.add(json.dumps(value))
    assert len(seen) > 10


def test_a_thought_is_free_but_cannot_end_the_completion(vocabulary, tokenizer):
    matcher, rng = vocabulary.compile(SCHEMA), random.Random(1)
    grammar = JsonGrammar(vocabulary, matcher, tokenizer.encode("<|im_start|>assistant\n<think>\n"))
    everything = set(range(vocabulary.size)) - set(tokenizer.eos_token_ids)
    for token in [*tokenizer.encode("it is {é"), tokenizer.token_id("<think>")]:
        assert set(allowed(grammar, vocabulary)) == everything and not grammar.finished
        grammar.accept(token)
    grammar.accept(tokenizer.token_id("</think>"))
    assert {tokenizer.decode([token]) for token in allowed(grammar, vocabulary)} == {"{", "\n"}
    assert json.loads(tokenizer.decode(write(grammar, vocabulary, rng)))["kind"]


@pytest.mark.parametrize(("text", "num_tokens"), [("a\n\nb", 1), ("ab", 2)])
def test_an_empty_line_may_stand_between_thought_and_answer(tmp_path, text, num_tokens):
    tokenizer = Tokenizer.from_pretrained(build_tiny_tokenizer([text] * 4, tmp_path, vocab_size=310))
    gap = tokenizer.encode("\n\n")
    assert len(gap) == num_tokens
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    grammar = JsonGrammar(vocabulary, vocabulary.compile({"type": "object"}), tokenizer.encode("<think>\n"))
    assert gap[0] in allowed(grammar, vocabulary)
    grammar.accept(tokenizer.token_id("</think>"))
    for token in gap:
        assert token in allowed(grammar, vocabulary)
        grammar.accept(token)
    assert gap[0] not in allowed(grammar, vocabulary)
    assert json.loads(tokenizer.decode(write(grammar, vocabulary, random.Random(0)))) is not None


def test_the_end_is_allowed_where_the_json_may_end(vocabulary, tokenizer):
    grammar = JsonGrammar(vocabulary, vocabulary.compile({"type": "integer"}), tokenizer.encode("hi"))
    ends = set(tokenizer.eos_token_ids)
    assert not ends & set(allowed(grammar, vocabulary))
    grammar.accept(tokenizer.encode("1")[0])
    assert ends <= set(allowed(grammar, vocabulary)) and not grammar.finished
    grammar.accept(tokenizer.eos_token_ids[0])
    assert grammar.finished


def test_white_space_has_a_limit(vocabulary, tokenizer):
    grammar = JsonGrammar(vocabulary, vocabulary.compile({"type": "object"}), tokenizer.encode("hi"))
    [space] = tokenizer.encode(" ")
    grammar.accept(tokenizer.encode("{")[0])
    count = 0
    while space in allowed(grammar, vocabulary):
        grammar.accept(space)
        count += 1
    assert 0 < count <= 100


def test_bytes_of_tokens_join_to_text(vocabulary, tokenizer):
    ids = tokenizer.encode("é🙂 word")
    assert b"".join(map(vocabulary.bytes_of, ids)).decode() == "é🙂 word"
    assert not vocabulary.has_text(tokenizer.eos_token_ids[0]) and not vocabulary.has_text(len(tokenizer) + 1)
    assert vocabulary.has_text(tokenizer.token_id("</think>"))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "Invalid type"),
        ({"$ref": "http://example.com/a"}, "does not fetch"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "array", "minItems": 5, "maxItems": 2}, "Unsatisfiable"),
        ({"unevaluatedProperties": False}, "Unimplemented"),
        (functools.reduce(lambda inner, _: {"allOf": [inner]}, range(90), {}), "recursion limit"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_in_one_line(vocabulary, schema, reason):
    with pytest.raises(ValueError) as raised:
        vocabulary.compile(schema)
    message = str(raised.value)
    assert message.startswith("the JSON schema cannot be used: ") and reason in message
    assert "\n" not in message and len(message) < 400
