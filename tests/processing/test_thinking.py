"""Where thinking ends: the rule by example, and its three forms against each other."""

import random

import pytest

from qwen35_jax.processing import Tokenizer
from qwen35_jax.processing.thinking import Split, TextStream, ThinkingStream, opens_thinking, split_text, split_tokens


def stream_split(tokenizer, token_ids, opened) -> tuple[Split, dict[str, str]]:
    """The split of the streaming form, and the pieces that it gave out, joined by section."""
    stream, shown = ThinkingStream(tokenizer, opened=opened), {"thinking": "", "answer": ""}
    for section, text in [*map(stream.push, token_ids), stream.flush()]:
        shown[section] += text
    return stream.split, shown


def check_all_forms(tokenizer, token_ids, opened) -> Split:
    split = split_tokens(tokenizer, token_ids, opened=opened)
    text = tokenizer.decode(token_ids)
    streamed, shown = stream_split(tokenizer, token_ids, opened)
    assert streamed == split, (text, opened)
    assert split_text(text, opened=opened) == split, (text, opened)
    assert shown["answer"] == split.answer
    assert shown["thinking"].rstrip("\n") == (split.thinking or "")
    return split


@pytest.mark.parametrize(
    ("opened", "completion", "want"),
    [
        (True, "why\n</think>\n\nthis<|im_end|>", ("why", "this", 0)),
        (True, "a</think>b</think>c</think>", ("a", "b</think>c</think>", 2)),
        (True, "a\n</think>\n\nb<think>\nc\n</think>\n\nd", ("a", "b<think>\nc\n</think>\n\nd", 1)),
        (True, "a</think><think>b", ("a", "<think>b", 0)),
        (True, "a</think></think>", ("a", "</think>", 1)),
        (True, "cut off", ("cut off", "", 0)),
        (True, "", ("", "", 0)),
        (True, "\n</think>\n\nb", ("", "b", 0)),
        (True, " \n<think>\na\n</think>\n\nb", ("a", "b", 0)),
        (True, "a<think>b</think>c", ("a<think>b", "c", 0)),
        (True, "  a \n\n</think> b\n", ("  a ", " b\n", 0)),
        (False, "<think>\na\n</think>\n\nb", ("a", "b", 0)),
        (False, " \n\t<think>a", ("a", "", 0)),
        (False, "\n b\n", (None, "\n b\n", 0)),
        (False, "b<think>c</think>d", (None, "b<think>c</think>d", 1)),
        (False, "a</think>b", (None, "a</think>b", 1)),
        (False, "  ", (None, "  ", 0)),
        (False, "", (None, "", 0)),
    ],
)
def test_all_forms_follow_the_rule_on_examples(tiny_tokenizer, opened, completion, want):
    assert check_all_forms(tiny_tokenizer, tiny_tokenizer.encode(completion), opened) == Split(*want)


def test_all_forms_agree_on_random_completions(tiny_tokenizer):
    rng = random.Random(0)
    emoji, accent = tiny_tokenizer.encode("🙂"), tiny_tokenizer.encode("é")
    assert len(emoji) == 4 and len(accent) == 2, "characters must span tokens for this test to break them"
    pieces = [
        *map(tiny_tokenizer.encode, ["<think>", "</think>", "</think>", "\n", " ", "x", "word one", "\n\n"]),
        *map(tiny_tokenizer.encode, ["\N{REPLACEMENT CHARACTER}", "\u3000", "<|im_end|>", "think>"]),
        *[emoji, emoji[:1], emoji[1:], emoji[2:3], accent, accent[:1], accent[1:]],
    ]
    closes = set()
    for _ in range(4000):
        token_ids = [token for piece in rng.choices(pieces, k=rng.randrange(12)) for token in piece]
        for opened in (True, False):
            closes.add(check_all_forms(tiny_tokenizer, token_ids, opened).multiple_closes)
    assert closes >= {0, 1, 2, 3}


def test_all_forms_agree_on_random_tokens(tiny_tokenizer):
    rng = random.Random(1)
    marks = [tiny_tokenizer.token_id(mark) for mark in ("<think>", "</think>")]
    for _ in range(500):
        token_ids = [rng.choice([rng.randrange(len(tiny_tokenizer)), *marks]) for _ in range(rng.randrange(40))]
        for opened in (True, False):
            check_all_forms(tiny_tokenizer, token_ids, opened)


def test_all_forms_agree_with_the_official_tokenizer(official_tokenizer_dir):
    tokenizer = Tokenizer.from_pretrained(official_tokenizer_dir)
    rng = random.Random(2)
    known = sorted(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    marks = [tokenizer.token_id(mark) for mark in ("<think>", "</think>", "<|im_end|>")]
    for _ in range(300):
        token_ids = [rng.choice([rng.choice(known), rng.randrange(248320), *marks]) for _ in range(rng.randrange(30))]
        for opened in (True, False):
            check_all_forms(tokenizer, token_ids, opened)
    messages = [{"role": "user", "content": "hi"}]
    assert opens_thinking(tokenizer, tokenizer.encode_chat(messages, enable_thinking=True))
    assert not opens_thinking(tokenizer, tokenizer.encode_chat(messages, enable_thinking=False))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("so</think>42", ("so", "42", 0)),
        ("a</think>b</think>c", ("a", "b</think>c", 1)),
        ("<think>cut", ("cut", "", 0)),
        ("42", (None, "42", 0)),
    ],
)
def test_text_of_an_unknown_prompt_has_thinking_if_a_mark_shows_it(text, want):
    assert split_text(text) == Split(*want)


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("", False),
        ("no marks", False),
        ("<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<think>a</think>b<think>\n", True),
    ],
)
def test_the_last_mark_of_a_prompt_says_whether_it_opens_thinking(tiny_tokenizer, prompt, opened):
    assert opens_thinking(tiny_tokenizer, tiny_tokenizer.encode(prompt)) == opened


def test_a_stream_gives_text_as_soon_as_it_is_certain(tiny_tokenizer):
    stream = ThinkingStream(tiny_tokenizer, opened=False)
    given = [stream.push(token)[1] for token in tiny_tokenizer.encode("xé ")]
    assert given == ["x", "", "é", " "]
    assert stream.split == Split(None, "xé ", 0)


class CountingTokenizer(Tokenizer):
    """Counts the tokens that are decoded."""

    num_decoded = 0

    def decode(self, ids, **settings):
        self.num_decoded += len(ids)
        return super().decode(ids, **settings)


@pytest.mark.parametrize("text", ["🙂", "é", "x🙂<|im_start|>", "<|im_end|>é"])
def test_an_endless_run_of_broken_bytes_takes_linear_time(tiny_tokenizer, text):
    rng = random.Random(3)
    pieces = tiny_tokenizer.encode(text)
    for choices in (pieces, pieces[1:], pieces[:-1]):
        token_ids = rng.choices(choices, k=3000)
        counting = CountingTokenizer(tiny_tokenizer.backend)
        stream = TextStream(counting)
        given = [*map(stream.push, token_ids), stream.flush()]
        assert "".join(given) == tiny_tokenizer.decode(token_ids)
        assert counting.num_decoded < 20 * len(token_ids)
