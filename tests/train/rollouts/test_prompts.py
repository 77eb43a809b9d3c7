"""Prompts: which rows give one, in which order, and what is said of the others."""

import dataclasses
import json
import logging

import pytest

from tests.train.rollouts.conftest import SETTINGS
from train.config import DataConfig
from train.data.documents import Documents
from train.rollouts import RolloutBatches
from train.rollouts.prompts import Prompts


def conversation(question, *more):
    roles = ("user", "assistant", "user", "assistant")
    texts = (question, "It is 2.", *more)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


@pytest.fixture
def open_documents(tmp_path, tokenizer):
    def open_documents(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        documents = Documents(DataConfig(str(path), sequence_length=512, **settings), tokenizer)
        documents.check()
        return documents

    return open_documents


def test_prompts_come_in_the_order_of_the_documents_and_others_are_counted(open_documents, tokenizer, caplog):
    rows = [
        conversation("What is 1 plus 1"),
        {"text": "What is 3"},
        conversation("What is 7 plus 2? " * 40),
        {"text": "It is 5"},
        conversation("What is 1", "And 2", "It is 4."),
    ]
    documents = open_documents(*rows)
    prompts = Prompts(documents, dataclasses.replace(SETTINGS, max_prompt_tokens=99))
    with caplog.at_level(logging.WARNING):
        taken = prompts.take(4)
    lines = [int(documents.where(position).split()[-1]) for position in range(10)]
    usable = [position for position, line in enumerate(lines) if line in (1, 5)]
    assert [prompt.position for prompt in taken] == usable[:4]
    shown = {
        lines[prompt.position]: tokenizer.decode(prompt.token_ids.tolist(), skip_special_tokens=False)
        for prompt in taken
    }
    assert "What is 1 plus 1" in shown[1] and "It is 2" not in shown[1]
    # Up to the last answer: earlier ones are part of the prompt.
    assert "It is 2." in shown[5] and "And 2" in shown[5] and "It is 4." not in shown[5]
    passed = lines[: prompts.position]
    assert prompts.left_out == {"no_prompt": sum(line in (2, 4) for line in passed), "too_long": passed.count(3)}
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2 and any("more than rollouts.max_prompt_tokens=99" in warning for warning in warnings)


def test_held_out_rows_are_no_prompts(open_documents, tokenizer):
    documents = open_documents(*(conversation(f"What is {n} plus 1") for n in range(8)), eval_fraction=0.25)
    prompts = Prompts(documents, dataclasses.replace(SETTINGS, max_prompt_tokens=99))
    rows = {documents.locate(prompt.position)[1] for prompt in prompts.take(12)}
    assert len(rows) == 6 and not rows & documents.held_out[0] and prompts.left_out["held_out"] > 0


@pytest.mark.parametrize(("mode", "end"), [("thinking", "<think>\n"), ("non_thinking", "<think>\n\n</think>\n\n")])
def test_the_template_opens_the_mode_of_the_settings(open_documents, tokenizer, mode, end):
    documents = open_documents(conversation("What is 1"))
    [prompt] = Prompts(documents, dataclasses.replace(SETTINGS, max_prompt_tokens=99, mode=mode)).take(1)
    assert tokenizer.decode(prompt.token_ids.tolist(), skip_special_tokens=False).endswith(f"assistant\n{end}")


def test_data_without_usable_prompts_are_refused(open_documents, tokenizer):
    documents = open_documents(conversation("What is 7 plus 2? " * 40))
    with pytest.raises(
        ValueError, match=r"gives a prompt; 1 rows in a row .*'too_long': 1.*max_prompt_tokens, or mend .* line 1: a"
    ):
        Prompts(documents, SETTINGS).take(1)
    texts = open_documents({"text": "What is 3"})
    with pytest.raises(ValueError, match="holds no conversations, so there is nothing to answer"):
        RolloutBatches(texts.config, SETTINGS, tokenizer, seed=0)


def test_a_look_at_the_prompts_takes_none(open_documents, tokenizer):
    rows = [conversation("What is 1 plus 1"), {"text": "What is 3"}, conversation("What is 7 plus 2? " * 40)]
    prompts = Prompts(open_documents(*rows), SETTINGS)
    assert prompts.look().startswith("1 of the first 3 rows give a prompt; ")
    assert prompts.position == 0 and not prompts.left_out


def test_a_look_names_the_first_row_of_each_kind_once(open_documents, caplog):
    rows = [{"text": "What is 3"}, {"messages": 7}, *(conversation(f"What is {n} plus 1") for n in range(6))]
    prompts = Prompts(open_documents(*rows, bad_rows="drop"), SETTINGS)
    with caplog.at_level(logging.WARNING, logger="train.rollouts.prompts"):
        caplog.clear()
        prompts.look()
        prompts.take(9)
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and prompts.left_out.keys() == {"no_prompt", "wrong_type"}
    assert any(
        each.endswith("rows.jsonl line 1 is left out, as are all rows like it: no conversation with an answer")
        for each in told
    )
    assert any("rows.jsonl line 2 is left out" in each and "'messages' is the number 7" in each for each in told)


def test_prompts_that_are_all_too_long_are_refused_at_the_start(open_documents, tokenizer):
    documents = open_documents(conversation("What is 7 plus 2? " * 40))
    batches = RolloutBatches(documents.config, SETTINGS, tokenizer, seed=0)
    with pytest.raises(
        ValueError,
        match=r"none of the first 1 rows .* the shortest has \d+ tokens; give conversations with shorter ones",
    ):
        list(batches.describe(1))
