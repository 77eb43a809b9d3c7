"""The chat loop with an engine whose answers are known."""

import io

import jax
import pytest

from qwen35_jax.inference.chat import HELP, chat
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from tests.inference.scripted import END, ScriptedEngine


def engine_saying(tokenizer, *answers: str) -> ScriptedEngine:
    """Ends every answer that does not end in ``...``."""
    whole = [answer if answer == "too long" or answer.endswith("...") else answer + END for answer in answers]
    return ScriptedEngine(tokenizer, whole)


def talk(engine, *lines: str, **settings) -> str:
    out = io.StringIO()
    chat(engine, [f"{line}\n" for line in lines], out, sampling=SamplingParams(), max_new_tokens=99, **settings)
    return out.getvalue()


def test_answers_every_line_with_the_history(tokenizer):
    engine = engine_saying(tokenizer, "Hello 🙂", "Bye")
    assert talk(engine, "hi", "", "leaving", system="Be brief.") == "Hello 🙂\n\nBye\n\n"
    first, second = engine.prompts
    assert first.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n")
    assert "Hello 🙂<|im_end|>\n<|im_start|>user\nleaving<|im_end|>\n" in second
    assert len(set(engine.seeds)) == 2


def test_thinking_is_shown_apart_and_leaves_the_history(tokenizer):
    engine = engine_saying(tokenizer, "easy\n</think>\n\n4", "nothing\n</think>\n\nok")
    shown = talk(engine, "2 + 2?", "thanks", enable_thinking=True)
    assert shown.startswith("thinking:\neasy\n\n\nanswer:\n4\n\nthinking:\nnothing")
    assert engine.prompts[0].endswith("<think>\n")
    assert "easy" not in engine.prompts[1] and "4<|im_end|>" in engine.prompts[1]


def test_an_answer_that_was_cut_off_is_marked(tokenizer):
    engine = engine_saying(tokenizer, "let me think...", "4")
    shown = talk(engine, "2 + 2?", "shorter", enable_thinking=True)
    assert shown.startswith("thinking:\nlet me think...\n\n(cut off; raise --max-new-tokens")
    assert shown.count("cut off") == 1


def test_color_is_switched_off_where_thinking_ends(tokenizer):
    shown = talk(engine_saying(tokenizer, "a</think>b", "cut off"), "x", "y", enable_thinking=True, color=True)
    assert shown == "\x1b[2mthinking:\na\x1b[0m\n\nanswer:\nb\n\n\x1b[2mthinking:\ncut off\x1b[0m\n\n"


def test_reset_starts_anew_and_quit_ends(tokenizer):
    engine = engine_saying(tokenizer, "one", "two")
    talk(engine, "first", "/reset", "second", "/quit", "never asked")
    assert len(engine.prompts) == 2
    assert "first" not in engine.prompts[1]


def test_a_line_that_ends_with_a_backslash_goes_on(tokenizer):
    engine = engine_saying(tokenizer, "6", "8")
    talk(engine, "add\\", "2 \\", "4", "and 8?\\")
    assert "user\nadd\n2 \n4<|im_end|>" in engine.prompts[0] and "user\nand 8?<|im_end|>" in engine.prompts[1]


def test_a_command_that_is_not_known_gets_the_help_and_no_answer(tokenizer):
    engine = engine_saying(tokenizer, "a path")
    shown = talk(engine, "/help", "/images a.png", "/image", "/quit now", "/etc/hosts is")
    assert shown == f"{HELP}\n" * 4 + "a path\n\n"


def test_a_turn_that_cannot_be_answered_is_left_out(tokenizer):
    engine = engine_saying(tokenizer, "too long", "fine")
    assert talk(engine, "first", "second") == "error: prompt 0 has too many tokens\nfine\n\n"
    assert "first" not in engine.prompts[1]


def test_a_conversation_that_is_repeated_compiles_nothing(model, tokenizer, caplog):
    engine, compiled = Engine(model, tokenizer, slots=1, cache_tokens=704), []

    def lines():
        yield from ("hello", "and you?")
        compiled.extend(caplog.messages)
        caplog.clear()
        yield from ("/reset", "hello", "and you?")

    with jax.log_compiles():
        chat(engine, lines(), io.StringIO(), sampling=SamplingParams(temperature=1.0, top_k=20), max_new_tokens=5)
    assert any("Compiling" in message for message in compiled)
    assert not [message for message in caplog.messages if "Compiling" in message]


@pytest.mark.parametrize("text", ["naïve 日本語", "🙃"])
def test_text_is_written_in_whole_characters(tokenizer, text):
    assert talk(engine_saying(tokenizer, text), "x") == f"{text}\n\n"
