"""Cuts out of a published tokenizer.json the part that encodes some texts as the whole does.

python -m tests.published.cut_tokenizer TOKENIZER.json tests/published/tokenizer_part.json
"""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

Pair = tuple[str, str]

_CHAT = ("system\n", "user\nhi", "assistant\n", "\n\n", "What is 2 + 2?", "Two.\n\nAnd two.", "4", "Sure?", "Yes.")


def cut(content: dict[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    """Returns the tokenizer with only those merges that BPE applies in these texts.

    A merge that is never applied changes nothing when it is gone, and ids stay as they are. Added tokens come into the
    vocabulary too, since the library would number them after the last id of a smaller one.
    """
    ranks = {tuple(pair): rank for rank, pair in enumerate(content["model"]["merges"])}
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    applied = {pair for text in texts for word in _words(backend, text) for pair in _merges(word, ranks)}
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"]
    kept = {token for token in vocabulary if len(token) == 1} | {first + second for first, second in applied}
    model = content["model"] | {
        "vocab": {token: id for token, id in vocabulary.items() if token in kept} | added,
        "merges": [list(pair) for pair in sorted(applied, key=ranks.__getitem__)],
    }
    return content | {"model": model}


def texts() -> list[str]:
    """Returns the texts of the stored cases, and what the tests write in conversations."""
    stored = json.loads(Path(__file__).with_name("tokenizer_cases.json").read_text(encoding="utf-8"))
    return [*(case["text"] for case in stored), *_CHAT]


def _words(backend: tokenizers.Tokenizer, text: str) -> Iterator[str]:
    normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    assert backend.pre_tokenizer is not None
    return (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))


def _merges(word: Sequence[str], ranks: dict[Pair, int]) -> Iterator[Pair]:
    """Yields the pairs that BPE joins in a word, in its order."""
    symbols = list(word)
    while True:
        pairs = [(ranks.get(pair, len(ranks)), place) for place, pair in enumerate(itertools.pairwise(symbols))]
        rank, place = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return
        yield symbols[place], symbols[place + 1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def main(tokenizer: str, out: str) -> None:
    part = cut(json.loads(Path(tokenizer).read_text(encoding="utf-8")), texts())
    Path(out).write_text(json.dumps(part, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
