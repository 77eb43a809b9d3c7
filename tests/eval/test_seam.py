"""One completion gives one thinking and one answer, whichever command splits it."""

import io
import itertools
import json

import pytest

from eval import score as score_module
from eval.config import EvalConfig
from eval.run import run
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.inference.chat import chat
from qwen35_jax.inference.generate import generate_rows, in_order, read_requests
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing import Tokenizer
from tests.eval.conftest import write_rows
from tests.inference.scripted import END, ScriptedEngine

QUESTION = {"role": "user", "content": "2+2?"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = build_tiny_tokenizer(["user assistant\n"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    return Tokenizer.from_pretrained(folder)


def from_generate(engine, tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [{"messages": [QUESTION]}])
    rows = []
    requests = read_requests(path, engine.tokenizer, enable_thinking=True)
    generate_rows(engine, requests, in_order(rows.append), sampling=SamplingParams(), max_new_tokens=99)
    return rows[0]


def from_chat(engine, monkeypatch):
    """What the conversation keeps of the turn: the template of the next turn is given it."""
    seen = []
    encode = engine.tokenizer.encode_chat

    def record(messages, **settings):
        seen.append(messages)
        return encode(messages, **settings)

    monkeypatch.setattr(engine.tokenizer, "encode_chat", record)
    chat(engine, ["2+2?", "again"], io.StringIO(), sampling=SamplingParams(), max_new_tokens=99, enable_thinking=True)
    monkeypatch.undo()
    return seen[1][1]


def from_run(engine, tmp_path):
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", [{"question": "2+2?", "answer": "4"}])
    config = EvalConfig(tasks=("qa",), mode="thinking", data_dir=str(tmp_path / "data"), out=str(tmp_path / "run"))
    run(config, engine)
    return json.loads((tmp_path / "run" / "samples" / "qa.jsonl").read_text(encoding="utf-8"))


def from_score(rows, tmp_path, *flags):
    responses = write_rows(tmp_path / "responses.jsonl", rows)
    data = ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / f"scored{len(list(tmp_path.iterdir()))}")]
    score_module.main(["--task", "qa", "--responses", str(responses), *data, *flags])
    return json.loads((tmp_path / data[-1] / "samples" / "qa.jsonl").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("completion", "finish_reason", "thinking", "answer", "closes", "outcome"),
    [
        ("why\n</think>\n\n4</think>\n\n5</think>", "stop", "why", "4</think>\n\n5</think>", 2, "ok"),
        ("why\n</think>\n\n4<think>\nno\n</think>\n\n4", "stop", "why", "4<think>\nno\n</think>\n\n4", 1, "ok"),
        ("why 4", "length", "why 4", "", 0, "truncated"),
        ("why\n</think>\n\n4", "stop", "why", "4", 0, "ok"),
    ],
    ids=["several closes", "a reopening", "a cut", "one close"],
)
def test_every_command_splits_alike(
    tokenizer, tmp_path, monkeypatch, completion, finish_reason, thinking, answer, closes, outcome
):
    text = completion + (END if finish_reason == "stop" else "")
    engine = ScriptedEngine(tokenizer, itertools.repeat(text))

    row = from_generate(engine, tmp_path)
    assert (row["thinking"], row["response"], row.get("multiple_closes", 0)) == (thinking, answer, closes)

    message = from_chat(engine, monkeypatch)
    assert (message["reasoning_content"], message["content"]) == (thinking, answer)

    sample = from_run(engine, tmp_path)
    assert (sample["thinking"], sample["response"], sample["multiple_closes"]) == (thinking, answer, closes)
    assert (sample["outcome"], sample["token_ids"]) == (outcome, tokenizer.encode(text))

    raw = {"id": 0, "response": completion, "finish_reason": finish_reason}
    for rows, flags in (([sample], []), ([row], []), ([raw], ["--opened"])):
        scored = from_score(rows, tmp_path, *flags)
        assert (scored["thinking"], scored["response"], scored["multiple_closes"]) == (thinking, answer, closes)
        assert scored["outcome"] == outcome
